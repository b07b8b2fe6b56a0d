//! Cards whose frames are copied to another interface.

use super::Draft;
use crate::facts::Link;
use crate::host::mirror::Mirror;
use crate::kernel::tun::FdKind;
use crate::refusal::{MirrorRefusal, Refusal};
use crate::spec::{IfName, NetSpec};
use crate::step::{Step, TakeUplink};

impl Draft<'_> {
    /// Records where a card's frames are copied to, if anywhere. A copy must not come back to the card, which would
    /// copy it again.
    pub(super) fn mirror(&mut self, card: usize, spec: &NetSpec) -> Result<(), Refusal> {
        let Some(to) = &spec.card().mirror else { return Ok(()) };
        let name = || to.clone();
        let link = self.facts.link(to.as_str()).ok_or_else(|| MirrorRefusal::Missing { name: name() })?;
        if link.mac.is_none() || link.name == "lo" || link.tun.is_some() {
            return Err(MirrorRefusal::NotAMirror { name: name(), kind: link.kind_text() }.into());
        }
        if spec.shared_interface() == Some(to) {
            return Err(MirrorRefusal::OfItself { name: name() }.into());
        }
        if let Some(bridge) = self.bridge_of(spec)
            && self.leads_to(link, &bridge)
        {
            return Err(MirrorRefusal::Loop { name: name(), bridge }.into());
        }
        if !link.up {
            return Err(MirrorRefusal::Down { name: name() }.into());
        }
        if !self.is_here(spec) {
            return Err(MirrorRefusal::Elsewhere.into());
        }
        self.mirrors.push(Mirror { card, to: name() });
        Ok(())
    }

    /// The bridge that a card is on.
    fn bridge_of(&self, spec: &NetSpec) -> Option<String> {
        match spec {
            NetSpec::Bridge(spec) => Some(spec.bridge.to_string()),
            NetSpec::Tap(spec) => self.master_of(spec.tap.as_str()),
            NetSpec::Fd(_) => self.tap_of(spec).and_then(|tap| self.master_of(&tap)),
            spec => spec.private().map(|private| private.bridge().to_string()),
        }
    }

    fn master_of(&self, tap: &str) -> Option<String> {
        self.facts.link(tap)?.master.map(|master| self.facts.name_of(master))
    }

    /// True if frames sent through `link` reach the bridge: it is the bridge, its port or uplink, or a port's veth
    /// peer.
    fn leads_to(&self, link: &Link, bridge: &str) -> bool {
        let is_port = |link: &Link| link.master.is_some_and(|master| self.facts.name_of(master) == bridge);
        let peer = self.facts.links.iter().find(|other| Some(other.index) == link.peer);
        let planned = self.steps.iter().any(|step| match step {
            Step::TakeUplink(TakeUplink { bridge: other, uplink, .. }) => {
                other.as_str() == bridge
                    && [Some(link), peer].into_iter().flatten().any(|link| link.name == uplink.as_str())
            }
            _ => false,
        });
        link.name == bridge || is_port(link) || peer.is_some_and(is_port) || planned
    }

    /// True if a card's tap is in this network namespace, as far as its name tells.
    fn is_here(&self, spec: &NetSpec) -> bool {
        !matches!(spec, NetSpec::Fd(_)) || self.tap_of(spec).is_some_and(|tap| self.facts.link(&tap).is_some())
    }

    /// The tap behind inherited descriptors.
    fn tap_of(&self, spec: &NetSpec) -> Option<String> {
        let NetSpec::Fd(spec) = spec else { return None };
        let first = spec.fd.as_slice().first()?;
        match &self.facts.fds.iter().find(|fact| fact.fd == *first)?.kind {
            FdKind::Tun { name, .. } => name.parse::<IfName>().ok().map(|name| name.to_string()),
            _ => None,
        }
    }
}
