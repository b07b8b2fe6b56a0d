//! An interface of the host as the way out of a bridge of ours: the bridge gets its addresses and routes, and gives
//! them back.
//!
//! ```text
//! take       addresses on both -> [eth1 is a port] -> routes to br0 -> addresses off eth1
//! give back  addresses on both -> routes to eth1 -> [eth1 is free]  -> addresses off br0 -> br0 goes
//! ```
//!
//! Everything is added in its new place before it is removed from the old one, so that at any moment the two together
//! have all that the interface had, and any later process can go on: the bridge's alias says, before the first address
//! moves, that it gives back, and there is no other record. Packets have a way out at each moment, as a port of a
//! bridge sends what is routed through it, and a way in but for the microseconds in which a port comes or goes. Learned
//! neighbours are copied, so none has to be resolved again.
//!
//! Not moved: link-local addresses of IPv6, which each interface has for itself (the bridge gets copies), routes that
//! the kernel adds and removes with addresses, neighbours that an admin has set, rules that name the interface (`ip
//! rule`, firewalls) and sockets bound to it. A route of the kernel's own that an admin has removed comes back with its
//! address. Temporary IPv6 addresses (privacy extensions) are ordinary ones afterwards, with the lifetime that they
//! had.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, State};
use tokio::time::{Instant, sleep};

use crate::facts::Link;
use crate::host::forwarding;
use crate::identity::alias::UplinkAlias;
use crate::kernel::link::index_of;
use crate::kernel::routes::{Address, Change, Neighbour, Route, RouteSocket};
use crate::kernel::rtnl::Rtnl;
use crate::kernel::sysctl::{self, Conf};
use crate::survey::uplink::Holdings;

/// Timeout for the kernel's deferred work, which takes a millisecond or two; without the wait packets are lost for as
/// long.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Pause between two polls.
const PAUSE: Duration = Duration::from_micros(200);

/// Limit of copied neighbours. The kernel has room for some hundreds by default, and asks for those that are left out.
const NEIGHBOURS_MAX: usize = 64;

/// Settings of an interface that the bridge takes over while it stands in for it. It needs no addresses that it
/// generates itself.
const SETTINGS: &[(Conf, &[&str])] = &[
    (Conf::Ipv4, &["forwarding", "rp_filter", "arp_ignore", "arp_announce", "arp_filter", "accept_redirects"]),
    (Conf::Ipv6, &["disable_ipv6", "forwarding", "accept_ra", "accept_ra_defrtr", "autoconf", "use_tempaddr"]),
];

/// Failure to move the addresses of an interface. Each address is still on one of the two.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// No socket, or no answer.
    #[error("Cannot exchange rtnetlink messages with the kernel")]
    Exchange(#[source] io::Error),
    /// `RTM_SETLINK` with the bridge's alias.
    #[error("Cannot write to the bridge's alias what its uplink gets back")]
    Write(#[source] io::Error),
    /// `RTM_SETLINK` with the bridge, or without one.
    #[error("Cannot change the interface's bridge")]
    Attach(#[source] io::Error),
    /// An address or a route.
    #[error("Cannot {change}")]
    Refused {
        /// The refused change, such as "add address 192.0.2.1/24".
        change: String,
        /// The kernel's error.
        source: io::Error,
    },
}

impl MoveError {
    /// The kernel's error code.
    pub fn errno(&self) -> Option<i32> {
        let (Self::Exchange(source) | Self::Write(source) | Self::Attach(source) | Self::Refused { source, .. }) = self;
        source.raw_os_error()
    }
}

/// Makes `uplink` a port of `bridge`, a bridge of ours, and moves its addresses and routes if the alias says so. May be
/// repeated.
pub(crate) async fn take(rtnl: &Rtnl, bridge: &str, alias: &UplinkAlias) -> Result<(), MoveError> {
    let (to, from) =
        (index_of(bridge).map_err(MoveError::Attach)?, index_of(&alias.uplink).map_err(MoveError::Attach)?);
    rtnl.set_alias(bridge, &alias.to_string()).await.map_err(MoveError::Write)?;
    if !alias.moved {
        return rtnl.join(from, to).await.map_err(MoveError::Attach);
    }
    forwarding::inherit(rtnl, from, to).await.map_err(MoveError::Write)?;
    inherit_settings(&alias.uplink, bridge);
    let mut socket = RouteSocket::open().map_err(MoveError::Exchange)?;
    let holdings = Holdings::of(&mut socket, from).map_err(MoveError::Exchange)?;
    copy_addresses(&mut socket, &[&holdings.link_local[..], &holdings.addresses].concat(), &alias.uplink, to).await?;
    rtnl.join(from, to).await.map_err(MoveError::Attach)?;
    carry(rtnl, from, to).await.map_err(MoveError::Exchange)?;
    move_routes(&mut socket, &holdings, from, to)?;
    remove_addresses(&mut socket, &holdings)
}

/// Gives the uplink of `bridge` its addresses and routes back, and releases it. May be repeated.
pub(crate) async fn give_back(rtnl: &Rtnl, bridge: &Link, alias: &UplinkAlias, uplink: &Link) -> Result<(), MoveError> {
    let (from, to) = (bridge.index, uplink.index);
    let mut moving = None;
    if alias.moved {
        let mut socket = RouteSocket::open().map_err(MoveError::Exchange)?;
        let holdings = Holdings::of(&mut socket, from).map_err(MoveError::Exchange)?;
        copy_addresses(&mut socket, &holdings.addresses, &bridge.name, to).await?;
        move_routes(&mut socket, &holdings, from, to)?;
        moving = Some((socket, holdings));
    }
    if uplink.master == Some(from) {
        rtnl.leave(to).await.map_err(MoveError::Attach)?;
    }
    if let Some((mut socket, holdings)) = moving {
        remove_addresses(&mut socket, &holdings)?;
    }
    if alias.raised {
        rtnl.lower(&uplink.name).await.map_err(MoveError::Attach)?;
    }
    Ok(())
}

/// Gives `to` the addresses that the link called `name_before` has as well, and waits until they hold there.
async fn copy_addresses(
    socket: &mut RouteSocket,
    addresses: &[Address],
    name_before: &str,
    to: u32,
) -> Result<(), MoveError> {
    let copies: Vec<Address> = addresses.iter().map(|address| address.on(to, name_before)).collect();
    let undetected = copies.iter().filter_map(Address::without_detection);
    // Added first as they hold at once, and then as they were.
    let changes: Vec<Change> = undetected.chain(copies.iter().cloned()).map(Change::AddAddress).collect();
    apply(socket, &changes)?;
    // The kernel adds the route by which an IPv6 address is the host's own from a work queue.
    let six: Vec<IpAddr> = copies.iter().filter_map(Address::ip).filter(IpAddr::is_ipv6).collect();
    let start = Instant::now();
    while !six.is_empty() && start.elapsed() < TIMEOUT {
        let routes = socket.routes(to).map_err(MoveError::Exchange)?;
        if six.iter().all(|ip| routes.iter().any(|route| route.is_local_for(*ip))) {
            break;
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

/// Has routes lead through `to` instead of `from`, to neighbours that are known there.
fn move_routes(socket: &mut RouteSocket, holdings: &Holdings, from: u32, to: u32) -> Result<(), MoveError> {
    let neighbours = socket.neighbours(from).map_err(MoveError::Exchange)?.into_iter();
    let mut neighbours: Vec<_> = neighbours.filter(|other| other.link() == from && other.is_learned()).collect();
    neighbours.sort_by_key(Neighbour::age);
    neighbours.truncate(NEIGHBOURS_MAX);
    let routes: Vec<Route> = holdings.routes.iter().map(Route::again).collect();
    let added = routes.iter().map(|route| Change::AddRoute(route.through(from, to)));
    let known = neighbours.iter().map(|neighbour| Change::AddNeighbour(neighbour.on(to)));
    apply(socket, &known.chain(added).collect::<Vec<_>>())?;
    apply(socket, &routes.into_iter().map(Change::RemoveRoute).collect::<Vec<_>>())
}

/// Takes the addresses off the link that they come from. In reverse, so that none goes with one that it is secondary
/// to.
fn remove_addresses(socket: &mut RouteSocket, holdings: &Holdings) -> Result<(), MoveError> {
    let addresses = holdings.addresses.iter().rev().cloned().map(Change::RemoveAddress);
    apply(socket, &addresses.collect::<Vec<_>>())
}

fn apply(socket: &mut RouteSocket, changes: &[Change]) -> Result<(), MoveError> {
    let refused = socket.apply(changes).map_err(MoveError::Exchange)?;
    match refused.into_iter().next() {
        Some((change, source)) => Err(MoveError::Refused { change: change.to_string(), source }),
        None => Ok(()),
    }
}

/// Waits until the bridge is operational, if its port has a carrier: until then the kernel drops all of its frames.
async fn carry(rtnl: &Rtnl, port: u32, bridge: u32) -> io::Result<()> {
    let carries = rtnl.link(port).await?.is_some_and(|link| link.header.flags.contains(LinkFlags::LowerUp));
    let start = Instant::now();
    while carries && start.elapsed() < TIMEOUT {
        let link = rtnl.link(bridge).await?;
        let up = |attribute: &LinkAttribute| *attribute == LinkAttribute::OperState(State::Up);
        if link.is_some_and(|link| link.attributes.iter().any(up)) {
            break;
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

/// Has the bridge behave as the interface did, as far as the kernel has settings for it.
fn inherit_settings(uplink: &str, bridge: &str) {
    // IN6_ADDR_GEN_MODE_NONE: the addresses are the interface's.
    let mut written = vec![sysctl::set(Conf::Ipv6, bridge, "addr_gen_mode", "1")];
    for (conf, keys) in SETTINGS {
        for key in *keys {
            let (Ok(theirs), Ok(ours)) = (sysctl::read(*conf, uplink, key), sysctl::read(*conf, bridge, key)) else {
                continue;
            };
            if theirs != ours {
                written.push(sysctl::set(*conf, bridge, key, &theirs));
            }
        }
    }
    for error in written.into_iter().filter_map(Result::err) {
        log::debug!("Cannot copy a setting of {uplink} to {bridge}: {error}");
    }
}
