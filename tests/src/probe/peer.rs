//! The probe's peer on the network: sends every frame of its EtherType back to the sender, and every large frame of
//! IPv4.
//!
//! Unsafe, because a packet socket is bound by an address structure that no safe crate here builds.
#![expect(unsafe_code, reason = "a packet socket is bound by an address structure")]

use crate::lan::sh;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread;

/// IEEE 802 local experimental EtherType 1.
const ETHERTYPE: u16 = 0x88b5;
/// The answer's source. Locally administered.
const OWN_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
/// The largest frame plus room for a VLAN tag.
const FRAME_MAX: usize = 2048;

const ETHERTYPE_IPV4: u16 = 0x0800;
/// Bytes of a frame that was not cut.
const LARGE: usize = 8000;
const LARGE_MAX: usize = 1 << 16;
/// `struct virtio_net_hdr` of what is sent back, little-endian as we are. A datagram: NEEDS_CSUM, GSO_UDP, hdr_len 42,
/// gso_size 1480, csum_start 34, csum_offset 6.
const OF_UDP: [u8; 10] = [1, 3, 42, 0, 0xc8, 5, 34, 0, 6, 0];
/// A segment: NEEDS_CSUM, GSO_TCPV4, hdr_len 54, gso_size 1460, csum_start 34, csum_offset 16.
const OF_TCP: [u8; 10] = [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0];
/// Where a frame says what IPv4 carries, and TCP's number there.
const PROTOCOL_AT: usize = 23;
const TCP: u8 = 6;

/// A bridge with a peer behind one of its ports, and an interface behind another.
pub struct PeerLan {
    bridge: &'static str,
}

impl PeerLan {
    /// Makes the bridge and starts the peer, which ends with the process. For a network namespace of our own: the names
    /// are fixed.
    ///
    /// # Errors
    /// If the peer gets no socket.
    pub fn new() -> io::Result<Self> {
        sh("ip link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0 && ip link set br0 up &&
            ip link add peer0 type veth peer name port0 && ip link set port0 master br0 up && ip link set peer0 up &&
            ip link add wire0 type veth peer name port1 && ip link set port1 master br0 up && ip link set wire0 up");
        let mut socket = packet_socket("peer0", ETHERTYPE)?;
        thread::Builder::new().name("peer".to_owned()).spawn(move || {
            let mut frame = [0; FRAME_MAX];
            // An error ends the peer: the probe then reports frames that do not come back.
            while let Ok(len) = socket.read(&mut frame) {
                let Some(frame) = frame.get_mut(..len).filter(|frame| frame.len() >= 14) else { continue };
                frame.copy_within(6..12, 0);
                frame[6..12].copy_from_slice(&OWN_MAC);
                if socket.write(frame).is_err() {
                    break;
                }
            }
        })?;
        return_large("br0")?;
        Ok(Self { bridge: "br0" })
    }

    /// A card on the bridge, as `--net` begins.
    pub fn on_bridge(&self) -> String {
        format!("bridge={}", self.bridge)
    }

    /// A card with a macvtap on the interface.
    pub fn on_interface(&self) -> &'static str {
        "macvtap=wire0"
    }

    /// A new persistent tap on the bridge, for VMMs that want one made for them.
    pub fn tap(&self, name: &str) {
        sh(&format!("ip tuntap add {name} mode tap && ip link set {name} master {} up", self.bridge));
    }
}

/// Starts a thread that sends each frame with more than [`LARGE`] bytes of IPv4 and UDP or TCP back, to be cut on its
/// way. The bridge itself sees frames as its ports have sent them; on the way to a port they are cut as far as that
/// wants it.
fn return_large(bridge: &str) -> io::Result<()> {
    let (mut from, mut to) = (packet_socket(bridge, ETHERTYPE_IPV4)?, packet_socket(bridge, 0)?);
    set_header(&to)?;
    thread::Builder::new().name("large".to_owned()).spawn(move || {
        let mut frame = vec![0; OF_UDP.len() + LARGE_MAX];
        while let Ok(len) = from.read(&mut frame[OF_UDP.len()..]) {
            if len < LARGE {
                continue;
            }
            let whole = &mut frame[..OF_UDP.len() + len];
            let (header, ethernet) = whole.split_at_mut(OF_UDP.len());
            header.copy_from_slice(if ethernet[PROTOCOL_AT] == TCP { &OF_TCP } else { &OF_UDP });
            ethernet.copy_within(6..12, 0);
            ethernet[6..12].copy_from_slice(&OWN_MAC);
            if to.write(whole).is_err() {
                break;
            }
        }
    })?;
    Ok(())
}

/// A socket for frames of one EtherType on one interface; of none if it is 0.
fn packet_socket(interface: &str, ethertype: u16) -> io::Result<File> {
    let index: i32 = std::fs::read_to_string(format!("/sys/class/net/{interface}/ifindex"))?
        .trim()
        .parse()
        .map_err(io::Error::other)?;
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, ethertype.to_be().into()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and has no other owner.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all-zero bytes are a valid value of this plain structure.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = index;
    let len = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
    // SAFETY: `address` is alive and `len` bytes long; the kernel only reads it.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if bound == 0 { Ok(File::from(socket)) } else { Err(io::Error::last_os_error()) }
}

/// Has frames that are sent begin with a virtio header (packet(7), PACKET_VNET_HDR).
fn set_header(socket: &File) -> io::Result<()> {
    let on: libc::c_int = 1;
    let len = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    let (fd, option) = (socket.as_raw_fd(), libc::PACKET_VNET_HDR);
    // SAFETY: `on` is alive and `len` bytes long; the kernel only reads it.
    let set = unsafe { libc::setsockopt(fd, libc::SOL_PACKET, option, (&raw const on).cast(), len) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
