//! Keeps the gateway's addresses on the bridges of our networks: the kernel drops those of IPv6 when a bridge goes
//! down, and other programs may delete any of them.
//!
//! Every keeper with a card on a network does so: the keeper that made the bridge may have gone. A bridge that is down
//! gets its addresses when it comes up; one that has been removed is not made again.

use std::io;
use std::net::IpAddr;

use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use tokio::time::{Instant, sleep_until};

use super::NotKept;
use super::pace::{Allowance, Grant};
use crate::kernel::link::index_of;
use crate::kernel::rtnl::{self, Rtnl};
use crate::plan::Plan;
use crate::rules::Member;
use crate::services::PREFIX_LEN;
use crate::spec::IfName;
use crate::step::{CreateTables, Step};

/// The networks of ours that a VM has cards on.
pub(super) struct Gateways(Vec<Gateway>);

struct Gateway {
    /// A card on the network.
    card: usize,
    bridge: IfName,
    /// The bridge's number when it was last there.
    index: Option<u32>,
    addresses: Vec<(IpAddr, u8)>,
    allowance: Allowance,
    due: bool,
    trouble: Option<String>,
}

impl Gateways {
    /// The gateways of a plan that has been applied.
    pub(super) fn new(plan: &Plan) -> Self {
        let mut gateways: Vec<Gateway> = Vec::new();
        for member in members(plan) {
            match gateways.iter_mut().find(|gateway| gateway.bridge == member.bridge) {
                // Another card may be the first with IPv6.
                Some(gateway) => gateway.extend(member),
                None => gateways.push(Gateway::of(member)),
            }
        }
        Self(gateways)
    }

    /// Takes note of a notification of the kernel.
    pub(super) fn note(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>) {
        for gateway in &mut self.0 {
            gateway.due |= match &message.payload {
                NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
                ) => gateway.index == Some(link.header.index) || rtnl::name(link) == Some(gateway.bridge.as_str()),
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelAddress(address)) => {
                    gateway.index == Some(address.header.index)
                }
                // The socket's buffer overflowed.
                NetlinkPayload::Overrun(_) => true,
                _ => false,
            };
        }
    }

    /// Waits until there is something to look at.
    pub(super) async fn wait(&self) {
        let due = self.0.iter().filter(|gateway| gateway.due).map(|gateway| gateway.allowance.next()).min();
        match due {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// Looks, and restores missing addresses.
    pub(super) async fn look(&mut self, rtnl: &Rtnl) {
        let now = Instant::now();
        for gateway in self.0.iter_mut().filter(|gateway| gateway.due && gateway.allowance.next() <= now) {
            gateway.due = false;
            if let Err(error) = gateway.mend(rtnl).await {
                gateway.tell(format!("Cannot give network {} its addresses back: {error}", gateway.bridge));
            }
        }
    }

    /// The networks without their addresses.
    pub(super) fn not_kept(&self) -> impl Iterator<Item = NotKept> {
        self.0.iter().filter_map(|gateway| Some(NotKept { card: gateway.card, text: gateway.trouble.clone()? }))
    }
}

impl Gateway {
    fn of(member: &Member) -> Self {
        let Member { card, bridge, subnet, .. } = member;
        let (bridge, index) = (bridge.clone(), index_of(bridge.as_str()).ok());
        let addresses = vec![(subnet.gateway().into(), subnet.prefix_len())];
        let allowance = Allowance::full();
        // The first look also covers events from before the subscription.
        let mut gateway = Self { card: *card, bridge, index, addresses, allowance, due: true, trouble: None };
        gateway.extend(member);
        gateway
    }

    fn extend(&mut self, member: &Member) {
        let ipv6 = member.ipv6.iter().flat_map(|network| [network.link_local, network.gateway]);
        for address in ipv6.map(|ip| (IpAddr::from(ip), PREFIX_LEN)) {
            if !self.addresses.contains(&address) {
                self.addresses.push(address);
            }
        }
    }

    async fn mend(&mut self, rtnl: &Rtnl) -> io::Result<()> {
        let bridge = match index_of(self.bridge.as_str()) {
            Ok(index) => rtnl.link(index).await?,
            Err(_) => None,
        };
        let Some(bridge) = bridge else {
            self.index = None;
            self.tell(format!("Network {} is gone: its bridge has been removed", self.bridge));
            return Ok(());
        };
        let index = bridge.header.index;
        self.index = Some(index);
        if !rtnl::is_up(&bridge) {
            self.tell(format!("Network {} is down", self.bridge));
            return Ok(());
        }
        let present = rtnl.addresses_of(index).await?;
        let missing: Vec<_> = self.addresses.iter().filter(|address| !present.contains(address)).copied().collect();
        if missing.is_empty() {
            self.trouble = None;
            return Ok(());
        }
        let grant = self.allowance.take();
        if let Grant::Later { .. } = grant {
            self.due = true;
            self.tell(format!("The addresses of network {} are deleted again and again", self.bridge));
            return Ok(());
        }
        for &(ip, prefix_len) in &missing {
            match ip {
                IpAddr::V4(_) => rtnl.add_address(index, ip, prefix_len).await?,
                IpAddr::V6(ip) => rtnl.add_address6(index, ip, prefix_len).await?,
            }
        }
        self.trouble = None;
        if grant == Grant::Granted {
            let names: Vec<String> = missing.iter().map(|(ip, len)| format!("{ip}/{len}")).collect();
            log::info!("Network {} had lost {}, which has been put back", self.bridge, names.join(", "));
        }
        Ok(())
    }

    /// Logs a trouble that is new.
    fn tell(&mut self, text: String) {
        if self.trouble.as_ref() != Some(&text) {
            log::warn!("{text}");
            self.trouble = Some(text);
        }
    }
}

/// The cards of a plan that are on networks of ours.
pub(super) fn members(plan: &Plan) -> impl Iterator<Item = &Member> {
    plan.steps.iter().flat_map(|step| match step {
        Step::CreateTables(CreateTables { members, .. }) => members.as_slice(),
        _ => &[],
    })
}
