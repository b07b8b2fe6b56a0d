//! DHCPv4, DNS, and for IPv6 router advertisements and stateless DHCPv6, for a card in `nat` or `host` mode. Knows no
//! rules.
//!
//! They answer over a packet socket on the VM's own tap, in a thread of the VMM without privileges: no daemon runs, no
//! port of the host is taken, the host's firewall need not let anything through, and the data path is not touched.
//!
//! ```text
//!   keeper:  ServiceSpec -> open_socket --descriptor--.
//!   VMM:     ServiceSpec, Names ----------------------+--> run: a thread -- UDP --> the host's resolvers
//!                                                     |     '-- Responder: frames, time in; frames, questions out
//!   guest ---- tap ---- filter (classic BPF) ---------'
//! ```
//!
//! The guest's kernel asks its gateway. The host's kernel does not answer as well, because the firewall drops the
//! packets that pass the filter here. ARP, neighbour discovery and all other work of the gateway are the host kernel's.
//!
//! # Threats
//!
//! | From | What | Answer |
//! |---|---|---|
//! | guest | any bytes in a frame | total parsers, which are property-tested; what is not understood is counted and ignored |
//! | guest | floods | frames wait in a socket buffer of fixed size, at most [`UPSTREAM_SLOTS`] questions wait upstream and a thousand for their turn, a bounded number goes there in a second, every datagram gets one answer at most, and it goes to the guest that asked |
//! | guest | connections that say nothing, nonsense, or take no answer | a few at a time, each with bounded buffers and ten seconds to say or take something whole |
//! | guest | another VM's lease, or all of them | there is one address, for one Ethernet address |
//! | guest | names of VMs asked from outside | what is under `minivmm`, and the network's own addresses, are never asked upstream |
//! | outside | forged answers | random identifiers and ports, a socket for each question, connected to its server; the question must be repeated |
//!
//! # Not supported
//!
//! Caching: the host's resolver does that. DHCP relays, option overload, rapid commit. IPv6 addresses from DHCPv6.

mod counters;
mod dhcp;
mod dns;
mod exchange;
mod filter;
mod frame;
mod ipv6;
mod mtu;
mod resolv;
mod responder;
mod run;
mod search;
mod socket;
mod streams;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::identity::mac::MacAddr;
pub use counters::Counters;
pub(crate) use dhcp::{CLIENT_PORT as DHCP_CLIENT, SERVER_PORT as DHCP_SERVER};
pub(crate) use dns::PORT as DNS_PORT;
pub use dns::relay::{Transport, Upstream};
pub use frame::Frame;
pub(crate) use ipv6::dhcpv6::{CLIENT_PORT as DHCP6_CLIENT, SERVER_PORT as DHCP6_SERVER};
pub(crate) use ipv6::solicitation::{advertisement, solicitation};
pub use mtu::{MtuReceiver, MtuSender, mtu_channel};
pub use responder::{Output, Responder};
pub use run::{Setup, run};
pub use search::Search;
pub(crate) use socket::SERVICES_MARK;
pub use socket::open_socket;

/// The domain of the VMs of a network.
pub const DOMAIN: &str = "minivmm";

/// Bits of an IPv6 prefix from which a guest can make addresses (RFC 4291 2.5.1).
pub const PREFIX_LEN: u8 = 64;

/// Questions that may wait for a resolver's answer, and sockets that may be open for them.
pub const UPSTREAM_SLOTS: usize = dns::relay::SLOTS;

/// A source of unpredictable numbers.
pub type Random = Box<dyn FnMut() -> u16 + Send>;

/// The configuration of a card's services: plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// The VM's name: the guest's host name.
    pub vm_name: String,
    /// The guest's MAC address, the only one that is served.
    pub mac: MacAddr,
    /// The gateway's MAC address, that of the bridge, from which the guest gets its answers.
    pub gateway_mac: MacAddr,
    /// The network's MTU, in bytes.
    pub mtu: u16,
    /// Where the network leads.
    pub reach: Reach,
    /// The guest's IPv4 network.
    pub ipv4: Ipv4Network,
    /// Its IPv6 network, if it has one.
    pub ipv6: Option<Ipv6Network>,
    /// The domains in which the guest looks for short names, beside [`DOMAIN`].
    pub search: Search,
}

/// Where a network leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reach {
    /// To the host and beyond: the gateway routes, and names of the outside are looked up.
    Outside,
    /// To the host and the other VMs of the network.
    HostOnly,
}

/// An IPv4 network with a guest on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv4Network {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// The gateway's: DHCP server and resolver.
    pub gateway: Ipv4Addr,
    /// Bits of the address that say which network it is on.
    pub prefix_len: u8,
}

/// An IPv6 network on which guests make their own addresses (RFC 4862).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6Network {
    /// The first [`PREFIX_LEN`] bits of the addresses on it; the others are zero.
    pub prefix: Ipv6Addr,
    /// The gateway's address with this prefix: the resolver.
    pub gateway: Ipv6Addr,
    /// The gateway's link-local address: the router, and the DHCPv6 server.
    pub link_local: Ipv6Addr,
}

/// An event of a card's services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest has got its address, or keeps it.
    LeaseAcked {
        /// The address.
        ip: Ipv4Addr,
    },
    /// The guest has given its address back. It would get it again.
    LeaseReleased,
    /// The guest says that another machine uses its address.
    LeaseDeclined {
        /// The address.
        ip: Ipv4Addr,
    },
}

/// Resolves the names of a network's VMs. The thread that runs the services calls it and waits.
pub trait Names: Send {
    /// The addresses of the VM called `name`, in lower case and without the domain; none if there is no such VM.
    fn lookup(&mut self, name: &str) -> Vec<IpAddr>;

    /// The name, without the domain, of the VM that has `address`.
    fn reverse(&mut self, address: IpAddr) -> Option<String>;
}

impl Reach {
    fn leads_out(self) -> bool {
        self == Self::Outside
    }
}

impl Ipv4Network {
    fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX.checked_shl(32_u32.saturating_sub(self.prefix_len.into())).unwrap_or(0))
    }

    fn broadcast(&self) -> Ipv4Addr {
        self.address | !self.mask()
    }

    fn contains(&self, address: Ipv4Addr) -> bool {
        address & self.mask() == self.gateway & self.mask()
    }
}

impl Ipv6Network {
    /// The address that a guest makes from its MAC address (RFC 4291 appendix A), as Linux does unless it is told
    /// otherwise.
    pub fn address_of(&self, mac: MacAddr) -> Ipv6Addr {
        let [a, b, c, d, e, f] = mac.octets();
        let identifier = u64::from_be_bytes([a ^ 0x02, b, c, 0xff, 0xfe, d, e, f]);
        Ipv6Addr::from_bits(self.prefix.to_bits() | u128::from(identifier))
    }

    fn contains(&self, address: Ipv6Addr) -> bool {
        address.is_unicast_link_local() || (address.to_bits() ^ self.prefix.to_bits()) >> (128 - PREFIX_LEN) == 0
    }
}

impl ServiceSpec {
    /// True if `address` belongs to this network.
    fn is_on_network(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.ipv4.contains(address),
            IpAddr::V6(address) => self.ipv6.is_some_and(|network| network.contains(address)),
        }
    }

    fn is_gateway(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address == self.ipv4.gateway,
            IpAddr::V6(address) => {
                self.ipv6.is_some_and(|network| [network.gateway, network.link_local].contains(&address))
            }
        }
    }
}

#[cfg(test)]
mod tests;
