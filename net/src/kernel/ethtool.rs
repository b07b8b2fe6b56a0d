//! The speed and duplex that an interface reports (linux/ethtool.h), and its index, by ioctl on a socket.
//!
//! A tap reports 10000 Mbit/s and full duplex unless the admin has set others (`ethtool -s TAP speed ...`).
#![allow(unsafe_code)] // ioctl(2) takes untyped pointers.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::kernel::link::Duplex;

/// `ETHTOOL_GSET`: the older of two requests, with all the fields needed here in a struct of fixed size.
const GET_SETTINGS: u32 = 1;

/// `DUPLEX_HALF` and `DUPLEX_FULL`.
const DUPLEX_HALF: u8 = 0;
const DUPLEX_FULL: u8 = 1;

/// `struct ethtool_cmd`.
#[repr(C)]
#[derive(Default)]
struct Settings {
    cmd: u32,
    supported: u32,
    advertising: u32,
    speed_low: u16,
    duplex: u8,
    port: u8,
    phy_address: u8,
    transceiver: u8,
    autoneg: u8,
    mdio_support: u8,
    maxtxpkt: u32,
    maxrxpkt: u32,
    speed_high: u16,
    eth_tp_mdix: u8,
    eth_tp_mdix_ctrl: u8,
    lp_advertising: u32,
    reserved: [u32; 2],
}

/// Speed in Mbit/s and duplex of the interface called `name`, if known.
pub(crate) fn speed(name: &str) -> (Option<u32>, Option<Duplex>) {
    let Some(settings) = settings(name) else { return (None, None) };
    let speed = u32::from(settings.speed_high) << 16 | u32::from(settings.speed_low);
    let duplex = match settings.duplex {
        DUPLEX_HALF => Some(Duplex::Half),
        DUPLEX_FULL => Some(Duplex::Full),
        _ => None,
    };
    // SPEED_UNKNOWN, and 0 and 65535 from drivers older than it.
    (Some(speed).filter(|speed| !matches!(*speed, 0 | 0xffff | u32::MAX)), duplex)
}

fn settings(name: &str) -> Option<Settings> {
    // Any socket identifies the network namespace.
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).ok()?;
    let mut settings = Settings { cmd: GET_SETTINGS, ..Settings::default() };
    let data = libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut settings).cast() };
    let mut request = request(name, data);
    // SAFETY: SIOCETHTOOL reads one ifreq and follows its pointer, which is to `settings`: a struct ethtool_cmd in size
    // and layout, which ETHTOOL_GSET reads and writes, alive until the call returns.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    (result >= 0).then_some(settings)
}

/// The index of the interface called `name`. It needs no socket but one of IPv4.
///
/// # Errors
/// ENODEV for a name that no interface has.
pub(crate) fn index_of(name: &str) -> nix::Result<u32> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut request = request(name, libc::__c_anonymous_ifr_ifru { ifru_ifindex: 0 });
    // SAFETY: SIOCGIFINDEX reads and writes one ifreq.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut request) })?;
    // SAFETY: the kernel has written this member.
    u32::try_from(unsafe { request.ifr_ifru.ifru_ifindex }).map_err(|_| Errno::ENODEV)
}

/// A request about the interface called `name`.
fn request(name: &str, data: libc::__c_anonymous_ifr_ifru) -> libc::ifreq {
    let mut request = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: data };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request
}
