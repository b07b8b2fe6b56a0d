//! Puts a tap back on its bridge when somebody took it off.
//!
//! NetworkManager and systemd-networkd do that to interfaces they think are theirs, some seconds after a start. A
//! notification only makes us look: notifications are old news when they are read, and the ones of our own set-up
//! show the tap without its bridge as well. A tap that is on another bridge now was moved on purpose and stays there.

use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkMessage;

use crate::mac::MacAddr;
use crate::plan::Plan;
use crate::rtnl;
use crate::spec::IfName;
use crate::step::{Host, Step};

/// How often one tap is put back. Whoever takes it off more often means it.
const REATTACH_MAX: u32 = 16;

/// Our taps on bridges.
pub(super) struct Watch {
    taps: Vec<Attached>,
}

struct Attached {
    card: usize,
    bridge: IfName,
    mac: MacAddr,
    mtu: u16,
    reattached: u32,
    state: State,
}

/// What is known of a tap.
///
/// ```text
/// [on bridge] --detached, and the bridge has gone--> [no bridge]
///      ^------a bridge of that name appeared------------'
/// [on bridge] --detached too often--> [given up]
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    OnBridge,
    NoBridge,
    GivenUp,
}

impl Watch {
    /// Watches the taps that a plan attaches.
    pub(super) fn new(plan: &Plan) -> Self {
        let attached = |step: &Step| match step {
            Step::AttachTap { card, bridge, mac, mtu } => Some(Attached {
                card: *card,
                bridge: bridge.clone(),
                mac: *mac,
                mtu: *mtu,
                reattached: 0,
                state: State::OnBridge,
            }),
            _ => None,
        };
        Self { taps: plan.steps.iter().filter_map(attached).collect() }
    }

    /// Looks at every tap as it is now.
    pub(super) async fn look(&mut self, host: &Host) {
        for tap in &mut self.taps {
            tap.check(host).await;
        }
    }

    /// Acts on a notification of the kernel.
    pub(super) async fn note(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>, host: &Host) {
        for tap in &mut self.taps {
            let concerned = match &message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => tap.is_concerned(link, host),
                // The kernel had more news than the socket could hold: any tap may have been detached.
                NetlinkPayload::Overrun(_) => true,
                _ => false,
            };
            if concerned && tap.state != State::GivenUp {
                tap.check(host).await;
            }
        }
    }
}

impl Attached {
    fn is_concerned(&self, link: &LinkMessage, host: &Host) -> bool {
        let is_ours = host.taps.get(&self.card).is_some_and(|tap| tap.index == Some(link.header.index));
        match self.state {
            State::OnBridge => is_ours && rtnl::master(link).is_none(),
            State::NoBridge => rtnl::name(link) == Some(self.bridge.as_str()),
            State::GivenUp => false,
        }
    }

    /// Looks at the tap as it is now and attaches it if it is nowhere.
    async fn check(&mut self, host: &Host) {
        let Some(tap) = host.taps.get(&self.card) else { return };
        let Some(index) = tap.index else { return };
        let detached = match host.rtnl.link(index).await {
            Ok(Some(link)) => rtnl::master(&link).is_none(),
            Ok(None) => false,
            Err(error) => {
                log::warn!("Cannot look at tap {}: {error}", tap.name);
                false
            }
        };
        if !detached {
            return;
        }
        if self.reattached == REATTACH_MAX {
            log::error!("Tap {} was taken off bridge {} {REATTACH_MAX} times: leave it off", tap.name, self.bridge);
            self.state = State::GivenUp;
            return;
        }
        match host.attach(self.card, &self.bridge, self.mac, self.mtu).await {
            Ok(()) => {
                self.reattached += 1;
                self.state = State::OnBridge;
                log::warn!("Tap {} was taken off bridge {}: put it back", tap.name, self.bridge);
            }
            Err(error) => {
                self.state = State::NoBridge;
                log::error!("Tap {} was taken off its bridge: {}", tap.name, error.report().message);
            }
        }
    }
}
