//! The addresses and routes of an interface that a bridge of ours is to take over, or has taken over.

use std::io;
use std::path::Path;

use crate::facts::{Link, UplinkFact};
use crate::kernel::routes::{Address, Route, RouteSocket};

/// The addresses and routes of a link that can be moved.
pub(crate) struct Holdings {
    pub(crate) addresses: Vec<Address>,
    pub(crate) link_local: Vec<Address>,
    /// Its routes, those through a router last.
    pub(crate) routes: Vec<Route>,
}

impl Holdings {
    pub(crate) fn of(socket: &mut RouteSocket, link: u32) -> io::Result<Self> {
        let all = socket.addresses(link)?.into_iter();
        let all = all.filter(|address| address.link() == link && !address.is_refuted());
        let (link_local, addresses) = all.partition(Address::is_link_local);
        let routes = socket.routes(link)?.into_iter().filter(|route| !route.is_the_kernels());
        let mut routes: Vec<Route> = routes.flat_map(|route| route.parts_through(link)).collect();
        routes.sort_by_key(Route::has_gateway);
        Ok(Self { addresses, link_local, routes })
    }
}

/// The facts that a plan needs about an interface that is to be an uplink.
pub(crate) fn survey(link: &Link) -> io::Result<UplinkFact> {
    let mut socket = RouteSocket::open()?;
    let Holdings { addresses, routes, .. } = Holdings::of(&mut socket, link.index)?;
    let wireless = ["phy80211", "wireless"].map(|entry| Path::new("/sys/class/net").join(&link.name).join(entry));
    Ok(UplinkFact {
        link: link.index,
        addresses: addresses.iter().map(ToString::to_string).collect(),
        lifetime_s: addresses.iter().filter_map(Address::lifetime_s).min(),
        routes: routes.len(),
        default_route: routes.iter().any(Route::is_default),
        nexthop_objects: routes.iter().any(Route::has_nexthop_object),
        wireless: wireless.iter().any(|path| path.exists()),
    })
}
