//! The kernel's part of receive-side scaling: a program that names the queue of each frame before the tap queues it.
//!
//! It does what [`dissect`](super::dissect), [`toeplitz`](super::toeplitz) and [`settings`](super::settings) do, but
//! for the hash types that look into extension headers, and reads what it has to know from a map (see [`layout`]). It
//! is of type BPF_PROG_TYPE_SOCKET_FILTER and written out here as instructions (RFC 9669): loading it takes privileges
//! that this crate does not have, so it leaves as plain numbers. Straight code with forward jumps only, so every kernel
//! since 5.2 accepts it.

mod assembler;

use super::dissect::{
    AUTHENTICATION, DESTINATION, FRAGMENT, HOP_BY_HOP, IPV4, IPV4_FRAGMENT, IPV6, IPV6_FRAGMENT, MAX_EXTENSIONS,
    MAX_IP_LEN, MAX_TAGS, MOBILITY, PROVIDER_VLAN, ROUTING, TCP, Types, UDP, VLAN,
};
use super::toeplitz::{MAX_INPUT, NIBBLES, VALUES};
use assembler::{Alu, Assembler, FRAME, If, Label, R0, R1, R2, R3, R6, R7, R8, R9, Width};

/// A program as bpf(2) loads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Its instructions in memory order, as numbers of the host.
    pub instructions: Vec<u64>,
    /// The instruction whose upper half is the descriptor of the map: an array of one element.
    pub map_fd_at: usize,
    /// Bytes of the map's element.
    pub map_bytes: u32,
}

/// Offsets in the map's element, in bytes. All numbers in it are of the host's byte order.
pub(super) mod layout {
    use super::{NIBBLES, VALUES};
    use crate::virtio::net::rss::MAX_TABLE_LEN;

    /// The hash types, 32 bits.
    pub(in crate::virtio::net::rss) const TYPES: usize = 0;
    /// The bits of a hash that are an index of the table, 32 bits.
    pub(in crate::virtio::net::rss) const MASK: usize = 4;
    /// The queue of frames without a hash, 32 bits.
    pub(in crate::virtio::net::rss) const UNCLASSIFIED: usize = 8;
    /// The table of queues, 32 bits each.
    pub(in crate::virtio::net::rss) const TABLE: usize = 12;
    /// The addend of each four bits of input, 32 bits each.
    pub(in crate::virtio::net::rss) const ADDED: usize = TABLE + 4 * MAX_TABLE_LEN as usize;
    /// Bytes of the element.
    pub(in crate::virtio::net::rss) const BYTES: usize = ADDED + 4 * NIBBLES * VALUES;
}

/// Where the stack holds the bytes to hash, all zero at first: an input that is shorter has the same hash with zeros
/// behind it.
const INPUT: i16 = -40;
/// Where it holds the header that is being looked at.
const HEADER: i16 = -80;
/// Where it holds the offset of the IPv6 header.
const PACKET: i16 = -88;

/// The program.
///
/// Registers: r6 the frame, r7 the map's element, r8 the offset from the Ethernet header, r9 the protocol of what is
/// there.
pub fn program() -> Program {
    let mut asm = Assembler::new();
    let [unclassified, ipv4, ipv6, hash] = asm.labels();
    asm.mov(R6, R1);
    let map_fd_at = asm.map_element(R7);
    for at in (INPUT..0).step_by(8) {
        asm.store_zero(at);
    }
    ethernet(&mut asm, [ipv4, ipv6, unclassified]);
    asm.place(ipv4);
    walk_ipv4(&mut asm, [hash, unclassified]);
    asm.place(ipv6);
    walk_ipv6(&mut asm, [hash, unclassified]);
    asm.place(hash);
    find_queue(&mut asm);
    asm.place(unclassified);
    asm.load(Width::U32, R0, R7, offset(layout::UNCLASSIFIED));
    asm.exit();
    Program { instructions: asm.finish(), map_fd_at, map_bytes: u32::try_from(layout::BYTES).unwrap_or(0) }
}

/// Skips tags, and goes on by protocol with r8 at the packet.
fn ethernet(asm: &mut Assembler, [ipv4, ipv6, unclassified]: [Label; 3]) {
    asm.set(R8, 12);
    load_frame(asm, HEADER, 2, unclassified);
    for _ in 0..MAX_TAGS {
        let [tag, done] = asm.labels();
        asm.load(Width::U16, R1, FRAME, HEADER);
        asm.jump_if(R1, If::Equal, network(VLAN), tag);
        asm.jump_if(R1, If::NotEqual, network(PROVIDER_VLAN), done);
        asm.place(tag);
        asm.alu(Alu::Add, R8, 4);
        load_frame(asm, HEADER, 2, unclassified);
        asm.place(done);
    }
    asm.load(Width::U16, R1, FRAME, HEADER);
    asm.alu(Alu::Add, R8, 2);
    asm.jump_if(R1, If::Equal, network(IPV4), ipv4);
    asm.jump_if(R1, If::Equal, network(IPV6), ipv6);
    asm.jump(unclassified);
}

/// Puts addresses and ports of an IPv4 packet into the input.
fn walk_ipv4(asm: &mut Assembler, [hash, unclassified]: [Label; 2]) {
    let addresses = asm.label();
    load_frame(asm, HEADER, 20, unclassified);
    asm.load(Width::U8, R1, FRAME, HEADER);
    asm.mov(R2, R1);
    asm.alu(Alu::Right, R2, 4);
    asm.jump_if(R2, If::NotEqual, 4, unclassified);
    asm.alu(Alu::And, R1, 0xf);
    asm.jump_if(R1, If::Less, 5, unclassified);
    asm.alu(Alu::Left, R1, 2);
    asm.add(R8, R1);
    for (from, to) in [(12, 0), (16, 4)] {
        asm.load(Width::U32, R1, FRAME, HEADER + from);
        asm.store(Width::U32, FRAME, INPUT + to, R1);
    }
    asm.load(Width::U16, R1, FRAME, HEADER + 6);
    asm.alu(Alu::And, R1, network(IPV4_FRAGMENT));
    asm.jump_if(R1, If::NotEqual, 0, addresses);
    asm.load(Width::U8, R9, FRAME, HEADER + 9);
    ports(asm, 8, [(TCP, Types::TCPV4), (UDP, Types::UDPV4)], addresses);
    asm.jump(hash);
    asm.place(addresses);
    jump_unless(asm, Types::IPV4, unclassified);
    asm.jump(hash);
}

/// Puts addresses and ports of an IPv6 packet into the input, and falls through if it is to be hashed.
fn walk_ipv6(asm: &mut Assembler, [hash, unclassified]: [Label; 2]) {
    let [end, addresses] = asm.labels();
    load_frame(asm, HEADER, 40, unclassified);
    asm.load(Width::U8, R1, FRAME, HEADER);
    asm.alu(Alu::Right, R1, 4);
    asm.jump_if(R1, If::NotEqual, 6, unclassified);
    for at in (0..32).step_by(8) {
        asm.load(Width::U64, R1, FRAME, HEADER + 8 + at);
        asm.store(Width::U64, FRAME, INPUT + at, R1);
    }
    asm.load(Width::U8, R9, FRAME, HEADER + 6);
    asm.store(Width::U64, FRAME, PACKET, R8);
    asm.alu(Alu::Add, R8, 40);
    for _ in 0..MAX_EXTENSIONS {
        skip_extension(asm, end, addresses);
    }
    asm.place(end);
    asm.load(Width::U64, R1, FRAME, PACKET);
    asm.mov(R2, R8);
    asm.subtract(R2, R1);
    asm.jump_if(R2, If::Greater, i32::try_from(MAX_IP_LEN).unwrap_or(0), addresses);
    ports(asm, 32, [(TCP, Types::TCPV6), (UDP, Types::UDPV6)], addresses);
    asm.jump(hash);
    asm.place(addresses);
    jump_unless(asm, Types::IPV6, unclassified);
}

/// Moves r8 and r9 past one extension header; to `end` if there is none, to `addresses` if what it carries cannot be
/// known.
fn skip_extension(asm: &mut Assembler, end: Label, addresses: Label) {
    let [known, fragment, words, skip, next] = asm.labels();
    for protocol in [HOP_BY_HOP, ROUTING, DESTINATION, MOBILITY, FRAGMENT, AUTHENTICATION] {
        asm.jump_if(R9, If::Equal, protocol.into(), known);
    }
    asm.jump(end);
    asm.place(known);
    load_frame(asm, HEADER, 4, addresses);
    asm.mov(R2, R9);
    asm.load(Width::U8, R9, FRAME, HEADER);
    asm.load(Width::U8, R1, FRAME, HEADER + 1);
    asm.jump_if(R2, If::Equal, FRAGMENT.into(), fragment);
    asm.jump_if(R2, If::Equal, AUTHENTICATION.into(), words);
    asm.alu(Alu::Add, R1, 1);
    asm.alu(Alu::Left, R1, 3);
    asm.jump(skip);
    asm.place(words);
    asm.alu(Alu::Add, R1, 2);
    asm.alu(Alu::Left, R1, 2);
    asm.place(skip);
    asm.add(R8, R1);
    asm.jump(next);
    asm.place(fragment);
    asm.load(Width::U16, R1, FRAME, HEADER + 2);
    asm.alu(Alu::And, R1, network(IPV6_FRAGMENT));
    asm.jump_if(R1, If::NotEqual, 0, addresses);
    asm.alu(Alu::Add, R8, 8);
    asm.place(next);
}

/// Puts the ports at r8 into the input from byte `to` on if r9 is a protocol whose type is enabled, and goes to
/// `addresses` if not.
fn ports(asm: &mut Assembler, to: i16, protocols: [(u8, Types); 2], addresses: Label) {
    let wanted = asm.label();
    for (protocol, types) in protocols {
        let other = asm.label();
        asm.jump_if(R9, If::NotEqual, protocol.into(), other);
        jump_unless(asm, types, addresses);
        asm.jump(wanted);
        asm.place(other);
    }
    asm.jump(addresses);
    asm.place(wanted);
    load_frame(asm, INPUT + to, 4, addresses);
}

/// Hashes the input and returns the table's queue.
fn find_queue(asm: &mut Assembler) {
    asm.set(R0, 0);
    for byte in 0..MAX_INPUT {
        let nibble = |nibble: usize| offset(layout::ADDED + 4 * VALUES * (2 * byte + nibble));
        asm.load(Width::U8, R1, FRAME, INPUT + offset(byte));
        asm.mov(R2, R1);
        asm.alu(Alu::Right, R1, 4);
        asm.alu(Alu::And, R2, 0xf);
        for (register, half) in [(R1, 0), (R2, 1)] {
            asm.alu(Alu::Left, register, 2);
            asm.add(register, R7);
            asm.load(Width::U32, R3, register, nibble(half));
            asm.xor(R0, R3);
        }
    }
    asm.load(Width::U32, R1, R7, offset(layout::MASK));
    asm.and(R0, R1);
    // The mask is less, which the kernel cannot know.
    asm.alu(Alu::And, R0, i32::from(super::MAX_TABLE_LEN) - 1);
    asm.alu(Alu::Left, R0, 2);
    asm.add(R0, R7);
    asm.load(Width::U32, R0, R0, offset(layout::TABLE));
    asm.exit();
}

/// Goes to `label` if none of `types` is enabled.
fn jump_unless(asm: &mut Assembler, types: Types, label: Label) {
    asm.load(Width::U32, R1, R7, offset(layout::TYPES));
    asm.alu(Alu::And, R1, i32::try_from(types.bits()).unwrap_or(0));
    asm.jump_if(R1, If::Equal, 0, label);
}

/// Copies `len` bytes at r8 of the frame to the stack; to `cut` if there are fewer, and the bytes are then zero.
fn load_frame(asm: &mut Assembler, to: i16, len: i32, cut: Label) {
    asm.load_frame(R6, R8, to, len);
    asm.jump_if(R0, If::NotEqual, 0, cut);
}

/// A number of the network's byte order as a load of the host's sees it.
fn network(number: u16) -> i32 {
    number.to_be().into()
}

/// All offsets fit: the largest is that of the map's last word.
fn offset(offset: usize) -> i16 {
    i16::try_from(offset).unwrap_or(i16::MAX)
}

const _: () = assert!(layout::BYTES <= i16::MAX as usize);

#[cfg(test)]
mod tests;
