//! The network cards and their addresses, as the kernel tells them.

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;
use serde::Serialize;
use std::fs;
use std::net::{IpAddr, Ipv6Addr};

/// `ARPHRD_ETHER` (linux/if_arp.h) as sysfs shows it.
const ETHERNET: &str = "1";

/// One card, as in the ready line.
#[derive(Debug, Serialize)]
pub(crate) struct Card {
    /// Its name, such as `eth0`.
    pub(crate) name: String,
    /// Its hardware address.
    pub(crate) mac: String,
    /// Addresses with their prefix lengths, IPv4 first, without link-local ones.
    pub(crate) addresses: Vec<String>,
}

/// The names of the Ethernet cards, in the order of their appearance.
pub(crate) fn names() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/class/net") else { return Vec::new() };
    let mut cards: Vec<(u32, String)> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| attribute(name, "type") == ETHERNET)
        .map(|name| (attribute(&name, "ifindex").parse().unwrap_or(u32::MAX), name))
        .collect();
    cards.sort();
    cards.into_iter().map(|(_, name)| name).collect()
}

/// The cards with what they have now.
pub(crate) fn list() -> Vec<Card> {
    let known: Vec<(String, IpAddr, u32)> = addresses();
    names()
        .into_iter()
        .map(|name| {
            let mut own: Vec<_> = known.iter().filter(|(card, ..)| *card == name).collect();
            own.sort_by_key(|(_, address, _)| *address);
            let addresses = own.into_iter().map(|(_, address, bits)| format!("{address}/{bits}")).collect();
            Card { mac: attribute(&name, "address"), name, addresses }
        })
        .collect()
}

/// Every address of every card with the length of its prefix.
fn addresses() -> Vec<(String, IpAddr, u32)> {
    let Ok(all) = getifaddrs() else { return Vec::new() };
    all.filter_map(|entry| {
        let address = ip(entry.address?)?;
        let bits = ip(entry.netmask?)?;
        let is_link_local = matches!(address, IpAddr::V6(six) if is_link_local(six));
        (!is_link_local).then(|| (entry.interface_name, address, prefix_bits(bits)))
    })
    .collect()
}

fn ip(address: SockaddrStorage) -> Option<IpAddr> {
    let four = address.as_sockaddr_in().map(|four| IpAddr::V4(four.ip()));
    four.or_else(|| address.as_sockaddr_in6().map(|six| IpAddr::V6(six.ip())))
}

fn prefix_bits(mask: IpAddr) -> u32 {
    match mask {
        IpAddr::V4(mask) => mask.to_bits().leading_ones(),
        IpAddr::V6(mask) => mask.to_bits().leading_ones(),
    }
}

fn is_link_local(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

fn attribute(card: &str, name: &str) -> String {
    fs::read_to_string(format!("/sys/class/net/{card}/{name}")).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_become_prefix_lengths() {
        assert_eq!(prefix_bits("255.255.255.0".parse().unwrap()), 24);
        assert_eq!(prefix_bits("0.0.0.0".parse().unwrap()), 0);
        assert_eq!(prefix_bits("ffff:ffff:ffff:ffff::".parse().unwrap()), 64);
    }

    #[test]
    fn link_local_is_told_apart() {
        assert!(is_link_local("fe80::1".parse().unwrap()));
        assert!(!is_link_local("2001:db8::1".parse().unwrap()));
    }
}
