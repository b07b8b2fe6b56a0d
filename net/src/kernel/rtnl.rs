//! The few rtnetlink requests of surveys and steps.
//!
//! A link changes with one message: the kernel applies address, MTU, bridge and up in a sensible order (`do_setlink`),
//! and a start pays for one round trip.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;

use futures_util::stream::{Stream, StreamExt};
use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    AfSpecUnspec, BridgeStpState, InfoBridge, InfoData, InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo,
    LinkMessage, MacVtapMode,
};
use rtnetlink::packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::AsyncSocket;
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkGetRequest, LinkMacVtap, LinkUnspec, MulticastGroup};
use tokio::task::JoinHandle;

use crate::identity::alias::OUR_GROUP;
use crate::identity::alias::TapAlias;
use crate::identity::mac::MacAddr;
use crate::kernel::netlink::Writer;
use crate::kernel::sysctl::{self, Conf};
use crate::kernel::vlan::PortVlans;
use crate::spec::{ForwardDelay, MacvtapMode, Switch};
use concern::Concern;

pub(crate) mod concern;
pub(crate) mod notices;
pub(crate) mod port;

/// The alias of our bridges in `ip link`.
const BRIDGE_ALIAS: &str = "minivmm: goes with its last port";

/// Ticks per second in the interface to user space (`USER_HZ`, uapi/asm-generic/param.h).
pub(crate) const USER_HZ: u32 = 100;

/// `AF_INET` as an attribute's number, and the attribute in it that holds settings (linux/if_link.h).
const AF_INET: u16 = 2;
const IFLA_INET_CONF: u16 = 1;

/// Room for notifications, each of which takes 4 KiB. Removing a card with 64 queue pairs causes some 200.
const EVENT_BUFFER_BYTES: usize = 2 * 1024 * 1024;

/// A connection to the kernel's network configuration, inside a tokio runtime.
#[derive(Clone, Debug)]
pub(crate) struct Rtnl {
    handle: Handle,
}

/// An IPv4 setting of an interface, with its number (`IPV4_DEVCONF_*`, linux/ip.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ipv4Setting {
    /// ICMP redirects: the interface tells senders of a shorter route.
    SendRedirects,
    /// Routing of 127.0.0.0/8.
    RouteLocalnet,
}

impl Ipv4Setting {
    fn number(self) -> u16 {
        match self {
            Self::SendRedirects => 6,
            Self::RouteLocalnet => 26,
        }
    }

    /// Its name below `/proc/sys`.
    fn name(self) -> &'static str {
        match self {
            Self::SendRedirects => "send_redirects",
            Self::RouteLocalnet => "route_localnet",
        }
    }
}

/// The settings of a tap on its bridge.
#[derive(Clone, Debug)]
pub(crate) struct Attachment {
    /// Its own address.
    pub(crate) mac: MacAddr,
    /// Its MTU in bytes.
    pub(crate) mtu: u16,
    /// The tap's owner.
    pub(crate) alias: TapAlias,
    /// The only MAC behind it, if pinned.
    pub(crate) pinned: Option<MacAddr>,
    /// True to block frames between it and other isolated ports.
    pub(crate) isolated: Switch,
    /// True to let frames return through the port that they came from.
    pub(crate) hairpin: Switch,
    /// Its VLANs, if they differ from the bridge's default.
    pub(crate) vlans: Option<PortVlans>,
}

/// Kernel notifications about links, addresses and neighbours, from the subscription on.
///
/// They have a socket of their own: on a shared one, a buffer full of notifications could make the kernel drop the
/// answer to a request.
pub(crate) struct Events {
    messages: Pin<Box<dyn Stream<Item = NetlinkMessage<RouteNetlinkMessage>>>>,
    connection: JoinHandle<()>,
}

impl Events {
    /// Listens from now on to the notifications of concern.
    pub(crate) fn subscribe(concern: &Concern) -> io::Result<Self> {
        let groups =
            [MulticastGroup::Link, MulticastGroup::Neigh, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (mut connection, _, messages) = rtnetlink::new_multicast_connection(&groups)?;
        let socket = connection.socket_mut().socket_mut();
        // The keeper may exceed the host's limit; a smaller buffer only means more frequent surveys.
        if let Err(errno) = setsockopt(socket, sockopt::RcvBufForce, &EVENT_BUFFER_BYTES) {
            log::debug!("The buffer for link notifications keeps its size: {errno}");
        }
        if let Err(error) = concern.attach_to(socket) {
            log::debug!("Notifications about other VMs are not filtered: {error}");
        }
        let messages = Box::pin(messages.map(|(message, _)| message));
        Ok(Self { messages, connection: tokio::spawn(connection) })
    }

    /// The next notification; none if the connection broke.
    pub(crate) async fn next(&mut self) -> Option<NetlinkMessage<RouteNetlinkMessage>> {
        self.messages.next().await
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // Left alone it would log every notification after the receiver is gone.
        self.connection.abort();
    }
}

impl Rtnl {
    /// Connects.
    pub(crate) fn connect() -> io::Result<Self> {
        // Strict: otherwise the kernel silently ignores the filter of a dump.
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Every link, without statistics, which are two thirds of a message.
    pub(crate) async fn links(&self) -> io::Result<Vec<LinkMessage>> {
        collect(without_statistics(self.handle.link().get()).execute()).await
    }

    /// Every link with its statistics.
    pub(crate) async fn links_with_statistics(&self) -> io::Result<Vec<LinkMessage>> {
        collect(self.handle.link().get().execute()).await
    }

    /// The link with this index; none if it is gone.
    pub(crate) async fn link(&self, index: u32) -> io::Result<Option<LinkMessage>> {
        match collect(without_statistics(self.handle.link().get().match_index(index)).execute()).await {
            Ok(links) => Ok(links.into_iter().next()),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The MACs behind the ports of a bridge.
    pub(crate) async fn fdb(&self, bridge: u32) -> io::Result<Vec<NeighbourMessage>> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.attributes.push(NeighbourAttribute::Controller(bridge));
        self.dump_neighbours(message).await
    }

    /// IPv4 and IPv6 neighbours.
    pub(crate) async fn neighbours(&self) -> io::Result<Vec<NeighbourMessage>> {
        self.dump_neighbours(NeighbourMessage::default()).await
    }

    /// Every address of the host.
    pub(crate) async fn addresses(&self) -> io::Result<Vec<AddressMessage>> {
        collect(self.handle.address().get().execute()).await
    }

    /// Every route of all tables.
    pub(crate) async fn routes(&self, family: AddressFamily) -> io::Result<Vec<RouteMessage>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        collect(self.handle.route().get(message).execute()).await
    }

    /// The links by which IPv4 routes of any table lead to other machines. Does not store the routes.
    pub(crate) async fn leading(&self) -> io::Result<BTreeSet<u32>> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        let mut routes = std::pin::pin!(self.handle.route().get(message).execute());
        let mut links = BTreeSet::new();
        while let Some(route) = routes.next().await {
            let route = route.map_err(io_error)?;
            if route.header.kind == RouteType::Unicast {
                links.extend(route.attributes.iter().flat_map(links_of));
            }
        }
        Ok(links)
    }

    /// Adds an address to a link; an existing one is fine.
    pub(crate) async fn add_address(&self, link: u32, ip: IpAddr, prefix_len: u8) -> io::Result<()> {
        self.handle.address().add(link, ip, prefix_len).replace().execute().await.map_err(io_error)
    }

    /// The same for IPv6, without duplicate address detection, so that it is valid before the link has a carrier.
    pub(crate) async fn add_address6(&self, link: u32, ip: Ipv6Addr, prefix_len: u8) -> io::Result<()> {
        let mut request = self.handle.address().add(link, ip.into(), prefix_len).replace();
        request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        request.execute().await.map_err(io_error)
    }

    /// Sets the alias of a link.
    pub(crate) async fn set_alias(&self, name: &str, alias: &str) -> io::Result<()> {
        let message = LinkUnspec::new_with_name(name).alias(alias).build();
        self.handle.link().change(message).execute().await.map_err(io_error)
    }

    /// Adds an alternative name to a link. `EEXIST` if another link of the namespace has it.
    pub(crate) async fn add_name(&self, index: u32, name: &str) -> io::Result<()> {
        self.handle.link().property_add(index).alt_ifname(&[name]).execute().await.map_err(io_error)
    }

    /// Removes an alternative name.
    pub(crate) async fn remove_name(&self, index: u32, name: &str) -> io::Result<()> {
        self.handle.link().property_del(index).alt_ifname(&[name]).execute().await.map_err(io_error)
    }

    /// Creates a bridge of ours and raises it.
    pub(crate) async fn create_bridge(&self, name: &str, mac: MacAddr, mtu: u16) -> io::Result<()> {
        let bridge =
            LinkBridge::new(name).address(mac.octets().to_vec()).mtu(u32::from(mtu)).link_group(OUR_GROUP).up().build();
        self.handle.link().add(bridge).execute().await.map_err(io_error)?;
        self.set_alias(name, BRIDGE_ALIAS).await
    }

    /// Sets a tap's address and MTU and raises it.
    pub(crate) async fn raise_tap(&self, index: u32, mac: MacAddr, mtu: u16, alias: &TapAlias) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index).address(mac.octets().to_vec()).mtu(u32::from(mtu));
        self.handle.link().change(message.alias(alias.to_string()).up().build()).execute().await.map_err(io_error)
    }

    /// Creates a macvtap of ours on the interface `lower`, and leaves it down.
    pub(crate) async fn create_macvtap(&self, name: &str, lower: u32, mode: MacvtapMode) -> io::Result<()> {
        let mode = match mode {
            MacvtapMode::Bridge => MacVtapMode::Bridge,
            MacvtapMode::Private => MacVtapMode::Private,
            MacvtapMode::Vepa => MacVtapMode::Vepa,
            MacvtapMode::Passthru => MacVtapMode::Passthrough,
        };
        let message = LinkMacVtap::new(name, lower, mode).link_group(OUR_GROUP).build();
        self.handle.link().add(message).execute().await.map_err(io_error)
    }

    /// Sets a macvtap's address and raises it. It receives all multicast, of which the guest's card passes on what the
    /// guest asked for: the host has joined no groups there. In passthru mode it is promiscuous instead, as the lower
    /// interface is anyway: all-multicast alone would stay set on that one (drivers/net/macvlan.c, `macvlan_stop`).
    pub(crate) async fn raise_macvtap(
        &self,
        index: u32,
        mode: MacvtapMode,
        mac: MacAddr,
        alias: &TapAlias,
    ) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index).address(mac.octets().to_vec()).alias(alias.to_string());
        let message = match mode {
            MacvtapMode::Passthru => message.promiscuous(true),
            MacvtapMode::Bridge | MacvtapMode::Private | MacvtapMode::Vepa => message.allmulticast(true),
        };
        self.handle.link().change(message.up().build()).execute().await.map_err(io_error)
    }

    /// Creates an ifb of ours and raises it.
    pub(crate) async fn create_ifb(&self, name: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Group(OUR_GROUP),
            // Otherwise it has a queue per processor, each with a buffer and a thread's work.
            LinkAttribute::NumTxQueues(1),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]),
        ];
        self.handle.link().add(message).execute().await.map_err(io_error)
    }

    /// Makes a link a port of `bridge` and raises it.
    pub(crate) async fn attach(&self, index: u32, bridge: u32, attachment: &Attachment) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index)
            .address(attachment.mac.octets().to_vec())
            .mtu(u32::from(attachment.mtu))
            .alias(attachment.alias.to_string())
            .controller(bridge);
        match &attachment.vlans {
            None => self.handle.link().change(message.up().build()).execute().await.map_err(io_error)?,
            Some(vlans) => {
                // A bridge puts a new port in its default VLAN, whose frames this port must not see.
                self.handle.link().change(message.down().build()).execute().await.map_err(io_error)?;
                self.set_vlans(index, vlans).await?;
                let up = LinkUnspec::new_with_index(index).up().build();
                self.handle.link().change(up).execute().await.map_err(io_error)?;
            }
        }
        let on = |switch| switch == Switch::On;
        if on(attachment.isolated) || on(attachment.hairpin) {
            let message = LinkBridgePort::new(index).isolated(on(attachment.isolated)).hairpin(on(attachment.hairpin));
            self.handle.link().set_port(message.build()).execute().await.map_err(io_error)?;
        }
        match attachment.pinned {
            Some(mac) => self.pin(index, mac).await,
            None => Ok(()),
        }
    }

    /// Sets the VLANs of a bridge port, and no others.
    async fn set_vlans(&self, port: u32, vlans: &PortVlans) -> io::Result<()> {
        if let Some(message) = vlans.leave_message(port) {
            match self.handle.link().del_with_message(message).execute().await.map_err(io_error) {
                // The bridge's default has changed since the survey.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                result => result?,
            }
        }
        self.handle.link().set(vlans.join_message(port)).execute().await.map_err(io_error)
    }

    /// Turns on a bridge's VLAN filter, if the kernel supports it.
    pub(crate) async fn filter_vlans(&self, bridge: u32) -> io::Result<()> {
        self.set_bridge(bridge, vec![InfoBridge::VlanFiltering(true)]).await
    }

    /// Turns on a bridge's spanning tree protocol.
    pub(crate) async fn start_stp(&self, bridge: u32, delay: ForwardDelay) -> io::Result<()> {
        let delay = InfoBridge::ForwardDelay(u32::from(delay.seconds()).saturating_mul(USER_HZ));
        self.set_bridge(bridge, vec![delay, InfoBridge::StpState(BridgeStpState::KernelStp)]).await
    }

    async fn set_bridge(&self, bridge: u32, data: Vec<InfoBridge>) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = bridge;
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(data)),
        ]));
        self.handle.link().change(message).execute().await.map_err(io_error)
    }

    /// Has a bridge send only frames for `mac` to its port: it learns no address there and floods no unknown unicast.
    async fn pin(&self, port: u32, mac: MacAddr) -> io::Result<()> {
        let message = LinkBridgePort::new(port).learning(false).flood(false).build();
        self.handle.link().set_port(message).execute().await.map_err(io_error)?;
        let entry = self.handle.neighbours().add_bridge(port, &mac.octets()).state(NeighbourState::Noarp);
        entry.flags(NeighbourFlags::Controller).replace().execute().await.map_err(io_error)
    }

    /// Removes the queueing discipline of a new link, before it is raised.
    ///
    /// A tap drops frames that its ring cannot hold and never asks the sender to wait. So a discipline before it never
    /// holds a frame and only costs: a lock per frame, and 256 disciplines when a multi-queue tap is raised, 1.4 ms and
    /// 6 MiB (measured on Linux 6.18).
    pub(crate) async fn bypass_queueing(&self, index: u32) -> io::Result<()> {
        self.set_qdisc(index, "noqueue", Vec::new()).await
    }

    /// Replaces the queueing discipline of a link.
    pub(crate) async fn set_qdisc(&self, index: u32, kind: &str, options: Vec<TcOption>) -> io::Result<()> {
        let mut message = TcMessage::default();
        message.header.index = i32::try_from(index).map_err(io::Error::other)?;
        message.header.parent = TcHandle::ROOT;
        message.attributes.push(TcAttribute::Kind(kind.to_owned()));
        if !options.is_empty() {
            message.attributes.push(TcAttribute::Options(options));
        }
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        let mut answers = self.handle.clone().request(request).map_err(io_error)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(error.to_io());
            }
        }
        Ok(())
    }

    /// Makes a link a port of a bridge unchanged, and raises it.
    pub(crate) async fn join(&self, index: u32, bridge: u32) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index).controller(bridge).up().build();
        self.handle.link().change(message).execute().await.map_err(io_error)
    }

    /// Removes a link from its bridge.
    pub(crate) async fn leave(&self, index: u32) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index).nocontroller().build();
        self.handle.link().change(message).execute().await.map_err(io_error)
    }

    /// Adds VLANs to a bridge port.
    pub(crate) async fn join_vlans(&self, port: u32, vlans: &PortVlans) -> io::Result<()> {
        self.handle.link().set(vlans.join_message(port)).execute().await.map_err(io_error)
    }

    /// Sets the address of a link.
    pub(crate) async fn set_address(&self, name: &str, mac: MacAddr) -> io::Result<()> {
        let message = LinkUnspec::new_with_name(name).address(mac.octets().to_vec()).build();
        self.handle.link().change(message).execute().await.map_err(io_error)
    }

    /// Changes a setting of a bridge of ours. Where `/proc/sys` is read-only, as in containers, the kernel also takes
    /// it in a message.
    pub(crate) async fn set_ipv4(&self, name: &str, setting: Ipv4Setting, value: Switch) -> io::Result<()> {
        let value: u32 = if value == Switch::On { 1 } else { 0 };
        match sysctl::set(Conf::Ipv4, name, setting.name(), &value.to_string()) {
            Err(error) if error.raw_os_error() == Some(libc::EROFS) => {}
            result => return result,
        }
        let mut writer = Writer::default();
        writer.nest(IFLA_INET_CONF, |settings| settings.attr(setting.number(), &value.to_ne_bytes()));
        let inet = DefaultNla::new(AF_INET, writer.bytes().to_vec());
        let mut message = LinkUnspec::new_with_name(name).build();
        message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Other(inet)]));
        self.handle.link().change(message).execute().await.map_err(io_error)
    }

    /// Raises a link.
    pub(crate) async fn raise(&self, name: &str) -> io::Result<()> {
        self.handle.link().change(LinkUnspec::new_with_name(name).up().build()).execute().await.map_err(io_error)
    }

    /// Lowers a link.
    pub(crate) async fn lower(&self, name: &str) -> io::Result<()> {
        self.handle.link().change(LinkUnspec::new_with_name(name).down().build()).execute().await.map_err(io_error)
    }

    /// Removes a link; one that is gone already is fine.
    pub(crate) async fn remove(&self, index: u32) -> io::Result<()> {
        match self.handle.link().del(index).execute().await.map_err(io_error) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            result => result,
        }
    }

    async fn dump_neighbours(&self, message: NeighbourMessage) -> io::Result<Vec<NeighbourMessage>> {
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbour(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut answers = self.handle.clone().request(request).map_err(io_error)?;
        let mut entries = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(entry)) => entries.push(entry),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
        }
        Ok(entries)
    }
}

/// True if a link is administratively up.
pub(crate) fn is_up(link: &LinkMessage) -> bool {
    link.header.flags.contains(LinkFlags::Up)
}

/// The bridge or bond that a link is a port of.
pub(crate) fn master(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Controller(index) if *index != 0 => Some(*index),
        _ => None,
    })
}

/// The name of a link.
pub(crate) fn name(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn without_statistics(request: LinkGetRequest) -> LinkGetRequest {
    request.set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats])
}

/// The links that an attribute of a route names.
fn links_of(attribute: &RouteAttribute) -> Vec<u32> {
    match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    }
}

async fn collect<T>(answers: impl Stream<Item = Result<T, rtnetlink::Error>>) -> io::Result<Vec<T>> {
    let mut answers = std::pin::pin!(answers);
    let mut items = Vec::new();
    while let Some(answer) = answers.next().await {
        items.push(answer.map_err(io_error)?);
    }
    Ok(items)
}

fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}
