//! Cards with an address of their own on an interface of the host.

use super::{Draft, TAP_MTU_MAX, guest_mtu};
use crate::facts::{Link, MacvlanMode};
use crate::host::macvtap::Macvtap;
use crate::identity::alias::{Mode, TapAlias};
use crate::identity::mac::MacAddr;
use crate::refusal::{MacvtapRefusal, Refusal};
use crate::spec::{IfName, MacvtapMode, MacvtapSpec, Queues, Switch};
use crate::step::{CreateMacvtap, RemoveLeftBehind, Step};

impl Draft<'_> {
    pub(super) fn macvtap(&mut self, card: usize, mac: MacAddr, spec: &MacvtapSpec) -> Result<(u16, Queues), Refusal> {
        let (lower, mode) = (&spec.macvtap, spec.mode);
        let facts = self.facts;
        let link = facts.link(lower.as_str()).ok_or_else(|| MacvtapRefusal::Missing {
            name: lower.clone(),
            interfaces: facts.links.iter().filter(|link| can_carry(link)).map(|link| link.name.clone()).collect(),
        })?;
        self.check_lower(link, spec)?;
        let left_behind =
            facts.links.iter().filter(|other| other.lower == Some(link.index) && facts.is_left_behind(other));
        for name in left_behind.filter_map(|link| link.name.parse().ok()) {
            let step = Step::RemoveLeftBehind(RemoveLeftBehind { link: name });
            if !self.steps.contains(&step) {
                self.steps.push(step);
            }
        }
        let link_mtu = u16::try_from(link.mtu).unwrap_or(u16::MAX).min(TAP_MTU_MAX);
        let mtu = guest_mtu(spec.card.mtu, link_mtu, lower.as_str())?;
        let queues = spec.card.queues.unwrap_or(self.default_queues);
        let tap = self.spare_name()?;
        let (vm, net) = (self.vm.to_owned(), lower.to_string());
        let alias = TapAlias { vm, card, mode: Mode::Macvtap, net, ip4: None, ip6: None };
        let macvtap = Macvtap { tap, lower: lower.clone(), mode, mac, queues: queues.get(), alias };
        self.steps.push(Step::CreateMacvtap(CreateMacvtap { card, macvtap }));
        self.apply_policy(card, None, Switch::Off);
        Ok((mtu, queues))
    }

    /// A name for a link that the kernel does not remove with its descriptor.
    pub(super) fn spare_name(&self) -> Result<IfName, Refusal> {
        let named = |step: &&Step| matches!(step, Step::CreateMacvtap(_) | Step::CreateOvsPort(_));
        let taken = self.steps.iter().filter(named).count();
        self.facts.spare_names.get(taken).cloned().ok_or(MacvtapRefusal::NoSpareName.into())
    }

    /// Refuses an interface that cannot carry a macvtap of this mode.
    fn check_lower(&self, link: &Link, spec: &MacvtapSpec) -> Result<(), Refusal> {
        let name = spec.macvtap.clone();
        if !can_carry(link) {
            return Err(MacvtapRefusal::NotForMacvtap { name, kind: link.kind_text() }.into());
        }
        if let Some(master) = link.master {
            let master = self.facts.link_at(master);
            let is_bridge = master.is_some_and(Link::is_bridge);
            let master = master.map_or_else(|| "another interface".to_owned(), |master| master.name.clone());
            return Err(MacvtapRefusal::HasMaster { name, master, is_bridge }.into());
        }
        if self.facts.wireless.contains(&link.name) {
            return Err(MacvtapRefusal::Wireless { name }.into());
        }
        if !link.up {
            return Err(MacvtapRefusal::Down { name }.into());
        }
        // On a macvlan the kernel uses the interface below it.
        let carrier = link.macvlan.and(link.lower).unwrap_or(link.index);
        let users = (self.facts.links.iter())
            .filter(|user| user.lower == Some(carrier) && !self.facts.is_left_behind(user))
            .filter_map(|user| Some((user.name.as_str(), user.macvlan?)));
        let planned = self.steps.iter().filter_map(|step| match step {
            Step::CreateMacvtap(CreateMacvtap { macvtap, .. }) if macvtap.lower == spec.macvtap => Some((
                "another card",
                match macvtap.mode {
                    MacvtapMode::Passthru => MacvlanMode::Passthru,
                    _ => MacvlanMode::Shared,
                },
            )),
            _ => None,
        });
        let alone = spec.mode == MacvtapMode::Passthru;
        match users.chain(planned).find(|(_, mode)| alone || *mode == MacvlanMode::Passthru) {
            Some((by, mode)) => {
                Err(MacvtapRefusal::Busy { name, by: by.to_owned(), alone: mode == MacvlanMode::Passthru }.into())
            }
            None => Ok(()),
        }
    }
}

/// True if the interface carries Ethernet frames and leads somewhere.
fn can_carry(link: &Link) -> bool {
    link.mac.is_some() && link.name != "lo" && link.kind.as_deref() != Some("macvtap")
}
