//! Control commands (virtio 1.3 5.1.6.5) and frame headers (5.1.6) that lie.
//!
//! A command that is not understood, not negotiated or not possible is answered with an error, and the card goes on; so
//! it does after a header that describes a frame which is not there.

use super::hostile_card::{F_MQ, F_MRG_RXBUF, Victim, comes_back, need_strict, others_work, sends_and_receives};
use super::live::NET_HEADER;
use super::net::{Card, need_echo};
use super::{DeviceCheck, Subject};
use crate::report::Check;
use crate::virtio::ring::flag;
use crate::virtio::{LIVE, common, feature};
use crate::{arena, cpu, fail, require, skip};

/// All offloads, CTRL_GUEST_OFFLOADS, and what the control queue can do.
const F_OFFLOADS: u64 = 0x7f83 | 0x7 << 54;
const F_GUEST_OFFLOADS: u64 = 0x0782 | 0x3 << 54;
const F_COMMANDS: u64 = 1 << 2 | 1 << 18 | 1 << 19 | 1 << 20 | 1 << 23 | F_MQ;

const OK: u8 = 0;
const ERR: u8 = 1;
const UNANSWERED: u8 = 0xaa;
/// Rounds of what is repeated.
const ROUNDS: u16 = 200;

/// Commands that are right, by class. Each prefix of one is a command that is wrong.
const COMMANDS: &[&[u8]] = &[
    &[0, 0, 1],
    &[0, 1, 1],
    &[0, 2, 0],
    &[0, 3, 0],
    &[0, 4, 0],
    &[0, 5, 0],
    &[1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 9, 1, 0, 0, 0, 0x33, 0x33, 0, 0, 0, 1],
    &[1, 1, 2, 0, 0, 0, 0, 9],
    &[2, 0, 100, 0],
    &[2, 1, 100, 0],
    &[4, 0, 1, 0],
    &[4, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
    &[4, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    &[6, 0, 1, 0, 0, 0, 1, 0, 0, 0],
    &[6, 1, 1, 0, 0, 0, 1, 0, 0, 0],
];

/// The checks of this file.
pub(super) const CHECKS: &[(&str, DeviceCheck)] = &[
    ("card: commands that are cut short, or go on", cut_short),
    ("card: commands that are huge", huge),
    ("card: commands and answers in pieces of every size", in_pieces),
    ("card: commands that do not exist", unknown),
    ("card: commands whose feature was not negotiated", unnegotiated),
    ("card: address tables that lie about their length", lying_tables),
    ("card: addresses that no card can have", impossible_addresses),
    ("card: numbers of queue pairs that do not exist", impossible_pairs),
    ("card: queue pairs changed in a loop", pairs_in_a_loop),
    ("card: offloads that were not negotiated", unnegotiated_offloads),
    ("card: commands without end", without_end),
    ("card: headers that lie, with all offloads", lying_headers),
    ("card: headers that lie, without offloads", headers_unnegotiated),
];

/// Gives one command in one piece and returns the answer.
fn order(s: &Subject, victim: &mut Victim, command: &[u8]) -> Check<u8> {
    let at = arena::START + (8 << 20);
    for (at, byte) in (at..).zip(command) {
        cpu::write8(at, *byte);
    }
    let Ok(len) = u32::try_from(command.len()) else { fail!("the command is too long") };
    order_at(s, victim, &[(at, len, 0)])
}

/// Gives a command that lies in these pieces.
fn order_at(s: &Subject, victim: &mut Victim, pieces: &[(u64, u32, u16)]) -> Check<u8> {
    let answer = arena::START + (7 << 20);
    cpu::write8(answer, UNANSWERED);
    let mut chain = [(0, 0, 0); 16];
    let Some(slots) = chain.get_mut(..=pieces.len()) else { fail!("the command has too many pieces") };
    if let Some((last, front)) = slots.split_last_mut() {
        front.copy_from_slice(pieces);
        *last = (answer, 1, flag::WRITE);
    }
    victim.ctrl.chain(slots);
    victim.ctrl.publish(0);
    victim.ctrl.kick();
    let Some(used) = victim.ctrl.wait_used(cpu::PATIENCE_TICKS) else { fail!("{pieces:x?} is not answered") };
    require!(used.len == 1, "{} bytes written for {pieces:x?}", used.len);
    require!(s.device.status() == LIVE, "status {:#x}", s.device.status());
    Ok(cpu::read8(answer))
}

fn start(s: &Subject) -> Check<Victim> {
    Victim::start(&s.device, F_COMMANDS | F_OFFLOADS | F_MRG_RXBUF)
}

fn refused(s: &Subject, victim: &mut Victim, command: &[u8]) -> Check {
    let answer = order(s, victim, command)?;
    require!(answer == ERR, "{command:x?} is answered with {answer}");
    Ok(())
}

fn cut_short(s: &Subject) -> Check {
    need_strict(s)?;
    let mut victim = start(s)?;
    for command in COMMANDS {
        for len in 0..command.len() {
            refused(s, &mut victim, &command[..len])?;
        }
        let mut longer = [0; 32];
        longer[..command.len()].copy_from_slice(command);
        refused(s, &mut victim, &longer[..=command.len()])?;
    }
    comes_back(s)
}

fn huge(s: &Subject) -> Check {
    need_strict(s)?;
    let mut victim = start(s)?;
    let at = arena::START + (8 << 20);
    for command in COMMANDS {
        for (at, byte) in (at..).zip(*command) {
            cpu::write8(at, *byte);
        }
        for len in [1 << 12, 1 << 16, 4 << 20] {
            let answer = order_at(s, &mut victim, &[(at, len, 0)])?;
            require!(answer == ERR, "{command:x?} in {len} bytes is answered with {answer}");
        }
        // 32 MiB of the same memory again and again.
        let answer = order_at(s, &mut victim, &[(at, 4 << 20, 0); 8])?;
        require!(answer == ERR, "{command:x?} in 32 MiB is answered with {answer}");
    }
    comes_back(s)
}

fn in_pieces(s: &Subject) -> Check {
    let mut victim = start(s)?;
    if victim.features & 1 << 18 == 0 {
        skip!("CTRL_RX is not offered");
    }
    let at = arena::START + (8 << 20);
    for (at, byte) in (at..).zip([0, 0, 1]) {
        cpu::write8(at, byte);
    }
    let whole: &[&[(u64, u32, u16)]] = &[
        &[(at, 3, 0)],
        &[(at, 1, 0), (at + 1, 1, 0), (at + 2, 1, 0)],
        &[(at, 0, 0), (at, 2, 0), (at, 0, 0), (at + 2, 1, 0), (at, 0, 0)],
        &[(at, 3, 0), (at + 64, 0, flag::WRITE)],
    ];
    for pieces in whole {
        let answer = order_at(s, &mut victim, pieces)?;
        require!(answer == OK, "{pieces:x?} is answered with {answer}");
    }
    if s.terms.strict {
        for pieces in [&[][..], &[(at, 0, 0)], &[(at, 1, 0)]] {
            let answer = order_at(s, &mut victim, pieces)?;
            require!(answer == ERR, "{pieces:x?} is answered with {answer}");
        }
    }
    comes_back(s)
}

fn unknown(s: &Subject) -> Check {
    need_strict(s)?;
    let mut victim = start(s)?;
    for class in [3, 6, 7, 8, 0x7f, 0xff] {
        for command in [4, 5, 0x7f, 0xff] {
            refused(s, &mut victim, &[class, command, 1, 0])?;
        }
    }
    for class in 0..8 {
        refused(s, &mut victim, &[class, 0xff, 1, 0])?;
    }
    comes_back(s)
}

fn unnegotiated(s: &Subject) -> Check {
    need_strict(s)?;
    let mut victim = Victim::start(&s.device, 0)?;
    for command in COMMANDS {
        refused(s, &mut victim, command)?;
    }
    comes_back(s)
}

fn lying_tables(s: &Subject) -> Check {
    need_strict(s)?;
    let mut victim = start(s)?;
    for count in [2, 3, 0xff, 0x2aaa_aaab, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        let [a, b, c, d] = count.to_le_bytes();
        refused(s, &mut victim, &[1, 0, a, b, c, d, 2, 0, 0, 0, 0, 9, 0, 0, 0, 0])?;
        refused(s, &mut victim, &[1, 0, 0, 0, 0, 0, a, b, c, d, 2, 0, 0, 0, 0, 9])?;
    }
    // One address less than it says, and one more.
    refused(s, &mut victim, &[1, 0, 1, 0, 0, 0, 0, 0, 0, 0])?;
    refused(s, &mut victim, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 9])?;
    comes_back(s)
}

fn impossible_addresses(s: &Subject) -> Check {
    need_strict(s)?;
    let mut victim = start(s)?;
    let mac = || [0, 1, 2, 3, 4, 5].map(|i| cpu::read8(s.device.config.address + i));
    let before = mac();
    for first in [1, 0x33, 0xff] {
        refused(s, &mut victim, &[1, 1, first, 0xff, 0xff, 0xff, 0xff, 0xff])?;
    }
    refused(s, &mut victim, &[1, 1, 0, 0, 0, 0, 0, 0])?;
    require!(mac() == before, "the address became {:x?}", mac());
    comes_back(s)
}

fn pairs(count: u16) -> [u8; 4] {
    let [low, high] = count.to_le_bytes();
    [4, 0, low, high]
}

fn most_pairs(s: &Subject, victim: &Victim) -> Check<u16> {
    if victim.features & F_MQ == 0 {
        skip!("MQ is not offered");
    }
    Ok(cpu::read16(s.device.config.address + 8))
}

fn impossible_pairs(s: &Subject) -> Check {
    let mut victim = start(s)?;
    let most = most_pairs(s, &victim)?;
    // Of all pairs the driver has set up only one.
    for count in [0, 2, most + 1, 0x7fff, 0x8000, 0x8001, u16::MAX] {
        refused(s, &mut victim, &pairs(count))?;
    }
    require!(order(s, &mut victim, &pairs(1))? == OK, "one pair is refused");
    comes_back(s)
}

fn pairs_in_a_loop(s: &Subject) -> Check {
    need_echo(s)?;
    let d = &s.device;
    let features = d.negotiate(F_COMMANDS | F_MRG_RXBUF | 1 << 17)?;
    if features & F_MQ == 0 {
        skip!("MQ is not offered");
    }
    let most = cpu::read16(d.config.address + 8);
    let first = (d.enable_queue(0, 64)?, d.enable_queue(1, 64)?);
    for queue in 2..2 * most {
        d.enable_queue(queue, 16)?;
    }
    let ctrl = d.enable_queue(d.get16(common::NUM_QUEUES) - 1, 16)?;
    d.go_live()?;
    let mut victim = Victim { rx: first.0, tx: first.1, ctrl, features };
    for round in 0..ROUNDS {
        let count = if round % 2 == 0 { most } else { 1 };
        require!(order(s, &mut victim, &pairs(count))? == OK, "round {round}: {count} pairs are refused");
        refused(s, &mut victim, &pairs(0))?;
        refused(s, &mut victim, &pairs(most + 1))?;
    }
    // Back at one pair, which is the one that has buffers.
    let mut card = Card::on(d, [victim.rx, victim.tx], features, 2048, 16);
    sends_and_receives(s, &mut card)?;
    comes_back(s)
}

fn unnegotiated_offloads(s: &Subject) -> Check {
    need_strict(s)?;
    let mut victim = Victim::start(&s.device, 1 << 2 | 1 << 1)?;
    if victim.features & 1 << 2 == 0 {
        skip!("CTRL_GUEST_OFFLOADS is not offered");
    }
    let offloads = |bits: u64| {
        let mut command = [5, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        command[2..].copy_from_slice(&bits.to_le_bytes());
        command
    };
    for bit in (0..64).filter(|bit| *bit != 1) {
        refused(s, &mut victim, &offloads(1 << bit))?;
        refused(s, &mut victim, &offloads(1 << bit | 2))?;
    }
    refused(s, &mut victim, &offloads(F_GUEST_OFFLOADS))?;
    refused(s, &mut victim, &offloads(u64::MAX))?;
    for bits in [2, 0, 2] {
        require!(order(s, &mut victim, &offloads(bits))? == OK, "{bits:#x} is refused");
    }
    comes_back(s)
}

fn without_end(s: &Subject) -> Check {
    let mut victim = start(s)?;
    let at = arena::take(64, 64);
    for (at, byte) in (at..).zip([2, 0, 5, 0]) {
        cpu::write8(at, byte);
    }
    victim.ctrl.chain(&[(at, 4, 0), (at + 8, 1, flag::WRITE)]);
    let mut answered = 0;
    for _ in 0..ROUNDS {
        for _ in 0..victim.ctrl.size {
            victim.ctrl.publish(0);
        }
        victim.ctrl.kick();
        for _ in 0..victim.ctrl.size {
            require!(victim.ctrl.wait_used(cpu::PATIENCE_TICKS).is_some(), "command {answered} is not answered");
            answered += 1;
        }
    }
    others_work(s)?;
    comes_back(s)
}

/// Headers (5.1.6): flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
const HEADERS: &[(u8, u8, u16, u16, u16, u16)] = &[
    // NEEDS_CSUM on garbage, at the end, past the end, far past the end.
    (1, 0, 0, 0, 14, 0),
    (1, 0, 0, 0, 58, 0),
    (1, 0, 0, 0, 59, 0),
    (1, 0, 0, 0, 60, 0),
    (1, 0, 0, 0, 0xffff, 0xffff),
    (1, 0, 0, 0, 34, 0xffff),
    // GSO without a size, of a byte, larger than the frame; without a checksum; with headers longer than the frame.
    (1, 1, 54, 0, 34, 16),
    (1, 1, 54, 1, 34, 16),
    (1, 1, 54, 0xffff, 34, 16),
    (0, 1, 54, 1448, 0, 0),
    (1, 1, 0, 1448, 34, 16),
    (1, 1, 0xffff, 1448, 34, 16),
    (1, 1, 61, 100, 34, 16),
    (1, 4, 74, 1428, 54, 16),
    (1, 0x81, 54, 1448, 34, 16),
    (1, 3, 42, 1480, 34, 6),
    (1, 5, 42, 1472, 34, 6),
    (1, 5, 0xffff, 0, 0xffff, 0xffff),
    // Types and flags that do not exist.
    (1, 2, 54, 1448, 34, 16),
    (1, 6, 54, 1448, 34, 16),
    (1, 0x7f, 54, 1448, 34, 16),
    (1, 0xff, 54, 1448, 34, 16),
    (0x80, 0, 0, 0, 0, 0),
    (0xff, 0xff, 0xffff, 0xffff, 0xffff, 0xffff),
    (2, 0, 0, 0, 0, 0),
    (4, 0, 0, 0, 0, 0),
    (0, 0x80, 0, 0, 0, 0),
];

/// Sends frames of several kinds and lengths under every lying header; each comes back, and a true one passes after
/// each.
fn lie(s: &Subject, wanted: u64) -> Check {
    need_echo(s)?;
    let mut card = Card::start(&s.device, wanted | F_MRG_RXBUF, 2048, 32)?;
    let at = arena::take(1 << 17, 64);
    for &(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset) in HEADERS {
        for (ethertype, protocol, len) in
            [(0x0800_u16, 6_u8, 60), (0x0800, 17, 1514), (0x86dd, 6, 9000), (0x88b5, 0, 65_549)]
        {
            cpu::write8(at, flags);
            cpu::write8(at + 1, gso_type);
            for (at, value) in (at + 2..).step_by(2).zip([hdr_len, gso_size, csum_start, csum_offset]) {
                cpu::write16(at, value);
            }
            let frame = at + NET_HEADER;
            arena::fill(frame, 6, 0xff);
            cpu::write8(frame + 6, 2);
            cpu::write16(frame + 12, ethertype.to_be());
            cpu::write8(frame + 14, 0x45);
            cpu::write8(frame + 14 + 9, protocol);
            cpu::write8(frame + 14 + 6, protocol);
            card.tx.chain(&[(at, 12 + len, 0)]);
            card.tx.publish(0);
            card.tx.kick();
            let returned = card.tx.wait_used(cpu::PATIENCE_TICKS).is_some();
            require!(returned, "{len} bytes under {flags:x} {gso_type:x} {hdr_len} {gso_size} are not returned");
        }
        card.send_frame(60, flags)?;
    }
    require!(s.device.status() == LIVE, "status {:#x}", s.device.status());
    comes_back(s)
}

fn lying_headers(s: &Subject) -> Check {
    lie(s, F_OFFLOADS | feature::INDIRECT_DESC)
}

fn headers_unnegotiated(s: &Subject) -> Check {
    lie(s, 0)
}
