//! Keeps the uplinks of bridges of ours on them: a network manager may take an interface off that it thinks is its own,
//! and one that has gone may come back.
//!
//! The bridge says which interface that is. Every keeper with a card on it looks after it, as the one that made it may
//! have gone. An uplink that is a port of something else was moved on purpose and stays there.

use std::io;

use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use tokio::time::{Instant, sleep_until};

use super::NotKept;
use super::pace::{Allowance, Grant};
use crate::error::error_chain;
use crate::host::lock::NamespaceLock;
use crate::host::uplink;
use crate::identity::alias::UplinkAlias;
use crate::kernel::link::index_of;
use crate::kernel::rtnl::{self, Rtnl};
use crate::kernel::vlan::PortVlans;
use crate::plan::Plan;
use crate::spec::IfName;
use crate::step::{AttachTap, JoinVlans, Step};
use crate::survey;

/// The bridges that a VM has cards on.
pub(super) struct Uplinks<'a>(Vec<Uplink<'a>>);

struct Uplink<'a> {
    /// A card on the bridge.
    card: usize,
    bridge: &'a IfName,
    /// The bridge's way out, if it is one of ours with a way out: known after the first look.
    name: Option<String>,
    /// VLANs that its ports carry, by port.
    vlans: Vec<(&'a IfName, &'a PortVlans)>,
    allowance: Allowance,
    due: bool,
    trouble: Option<String>,
}

/// The state in which an uplink is found.
enum Found {
    /// None of ours, or on its bridge.
    Fine,
    /// Free, though it is to be on this bridge.
    Free(UplinkAlias),
    /// Elsewhere, or gone.
    Lost(String),
}

impl<'a> Uplinks<'a> {
    /// The uplinks of a plan that has been applied.
    pub(super) fn new(plan: &'a Plan) -> Self {
        let vlans = plan.steps.iter().filter_map(|step| match step {
            Step::JoinVlans(JoinVlans { link, vlans }) => Some((link, vlans)),
            _ => None,
        });
        let vlans: Vec<_> = vlans.collect();
        let mut uplinks: Vec<Uplink<'a>> = Vec::new();
        for step in &plan.steps {
            let Step::AttachTap(AttachTap { card, bridge, .. }) = step else { continue };
            if uplinks.iter().all(|uplink| uplink.bridge != bridge) {
                let (allowance, vlans) = (Allowance::full(), vlans.clone());
                uplinks.push(Uplink { card: *card, bridge, name: None, vlans, allowance, due: true, trouble: None });
            }
        }
        Self(uplinks)
    }

    /// Takes note of a notification of the kernel.
    pub(super) fn note(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>) {
        for uplink in self.0.iter_mut().filter(|uplink| uplink.name.is_some()) {
            uplink.due |= match &message.payload {
                NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
                ) => rtnl::name(link) == uplink.name.as_deref(),
                // The socket's buffer overflowed.
                NetlinkPayload::Overrun(_) => true,
                _ => false,
            };
        }
    }

    /// Waits until there is something to look at.
    pub(super) async fn wait(&self) {
        let due = self.0.iter().filter(|uplink| uplink.due).map(|uplink| uplink.allowance.next()).min();
        match due {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// Looks, and puts free uplinks back.
    pub(super) async fn look(&mut self, rtnl: &Rtnl) {
        let now = Instant::now();
        for uplink in self.0.iter_mut().filter(|uplink| uplink.due && uplink.allowance.next() <= now) {
            uplink.due = false;
            let trouble = match uplink.find(rtnl).await {
                Ok(Found::Fine) => None,
                Ok(Found::Lost(text)) => Some(text),
                Ok(Found::Free(alias)) => uplink.put_back(&alias, rtnl).await,
                Err(error) => Some(format!("Cannot read the state of the uplink of bridge {}: {error}", uplink.bridge)),
            };
            if let Some(text) = trouble.as_ref().filter(|text| uplink.trouble.as_ref() != Some(text)) {
                log::warn!("{text}");
            }
            uplink.trouble = trouble;
        }
    }

    /// The bridges without their uplink.
    pub(super) fn not_kept(&self) -> impl Iterator<Item = NotKept> {
        self.0.iter().filter_map(|uplink| Some(NotKept { card: uplink.card, text: uplink.trouble.clone()? }))
    }
}

impl Uplink<'_> {
    async fn find(&mut self, rtnl: &Rtnl) -> io::Result<Found> {
        let bridge = match index_of(self.bridge.as_str()) {
            Ok(index) => rtnl.link(index).await?.as_ref().and_then(survey::link),
            // Its taps report that.
            Err(_) => None,
        };
        let Some(bridge) = bridge.filter(|bridge| bridge.is_our_bridge()) else { return Ok(Found::Fine) };
        let Some(alias) = bridge.alias.as_deref().and_then(UplinkAlias::parse) else { return Ok(Found::Fine) };
        let name = self.name.insert(alias.uplink.clone());
        let link = match index_of(name) {
            Ok(index) => rtnl.link(index).await?,
            Err(_) => None,
        };
        Ok(match link.as_ref().map(rtnl::master) {
            None => Found::Lost(format!("Uplink {name} of bridge {} is gone", bridge.name)),
            Some(None) => Found::Free(alias),
            Some(Some(master)) if master == bridge.index => Found::Fine,
            Some(Some(_)) => Found::Lost(format!("Uplink {name} of bridge {} is a port of another", bridge.name)),
        })
    }

    /// Makes the uplink a port of its bridge again. Returns the reason if that fails.
    async fn put_back(&mut self, alias: &UplinkAlias, rtnl: &Rtnl) -> Option<String> {
        let (bridge, name) = (self.bridge, &alias.uplink);
        let grant = self.allowance.take();
        if let Grant::Later { .. } = grant {
            self.due = true;
            return Some(format!("Uplink {name} is taken off bridge {bridge} again and again"));
        }
        let _lock = NamespaceLock::take().await;
        let taken = uplink::take(rtnl, bridge.as_str(), alias).await;
        if let Err(error) = taken {
            let error = error_chain(&error);
            return Some(format!("Cannot put uplink {name} back on bridge {bridge}: {error}"));
        }
        for (_, vlans) in self.vlans.iter().filter(|(link, _)| link.as_str() == name) {
            let joined = async { rtnl.join_vlans(index_of(name)?, vlans).await };
            if let Err(error) = joined.await {
                return Some(format!("Cannot give uplink {name} its VLANs back: {error}"));
            }
        }
        if grant == Grant::Granted {
            log::warn!("Uplink {name} was taken off bridge {bridge} and has been put back");
        }
        None
    }
}
