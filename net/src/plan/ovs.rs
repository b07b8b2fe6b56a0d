//! Cards that are ports of an Open vSwitch bridge.

use std::collections::BTreeMap;

use super::{Draft, ETHERNET_MTU, Plan, TAP_MTU_MAX, guest_mtu};
use crate::facts::ovs::{Datapath, OvsFact};
use crate::host::ovs::OvsPort;
use crate::identity::alias::{Mode, TapAlias};
use crate::identity::mac::MacAddr;
use crate::refusal::Refusal;
use crate::spec::{Mtu, OffloadList, OvsSpec, Queues, Switch};
use crate::step::{CreateOvsPort, RemoveOvsPort, Step};

/// The name of a policy in refusals.
const POLICY: &str = "A policy";

impl Draft<'_> {
    pub(super) fn ovs(&mut self, card: usize, mac: MacAddr, spec: &OvsSpec) -> Result<(u16, Queues), Refusal> {
        let bridge = &spec.ovs;
        let (bridges, datapaths, left_behind) = match &self.facts.ovs {
            OvsFact::There { bridges, datapaths, left_behind } => (bridges, datapaths, left_behind),
            OvsFact::Trouble(error) => return Err(error.clone().into()),
            OvsFact::NotAsked => (&Vec::new(), &BTreeMap::new(), &Vec::new()),
        };
        if !bridges.iter().any(|name| name == bridge.as_str()) {
            return Err(Refusal::NoOvsBridge { name: bridge.clone(), bridges: bridges.clone() });
        }
        let datapath = datapaths.get(bridge.as_str()).copied().unwrap_or_default();
        self.check_rules(spec, datapath)?;
        for port in left_behind {
            let step = Step::RemoveOvsPort(RemoveOvsPort { port: port.clone() });
            if !self.steps.contains(&step) {
                self.steps.push(step);
            }
        }
        // The bridge's own interface takes the smallest MTU of its ports unless one is set. Other ports may carry more.
        let bridge_mtu = self.facts.link(bridge.as_str()).and_then(|link| u16::try_from(link.mtu).ok());
        let wanted = spec.card.mtu.map(Mtu::get);
        let link_mtu = wanted.or(bridge_mtu).unwrap_or(ETHERNET_MTU).min(TAP_MTU_MAX);
        let mtu = guest_mtu(spec.card.mtu, link_mtu, bridge.as_str())?;
        let pairs = spec.card.queues.unwrap_or(self.default_queues);
        let tap = self.spare_name()?;
        let (vm, net) = (self.vm.to_owned(), bridge.to_string());
        let alias = TapAlias { vm, card, mode: Mode::Ovs, net, ip4: None, ip6: None };
        let (bridge, vlan, iface_id, queues) = (bridge.clone(), spec.vlan, spec.iface_id.clone(), pairs.get());
        let port = OvsPort { tap, bridge, datapath, vlan, iface_id, mac, mtu: link_mtu, queues, alias };
        self.steps.push(Step::CreateOvsPort(CreateOvsPort { card, port }));
        self.apply_policy(card, None, Switch::Off);
        Ok((mtu, pairs))
    }

    /// Refuses features that need rules on the tap where frames bypass them.
    fn check_rules(&self, spec: &OvsSpec, datapath: Datapath) -> Result<(), Refusal> {
        // The process hands a copy of every frame to the kernel, which would mirror it again.
        let mirrored = spec.card.mirror.is_some() && datapath == Datapath::TrafficControl;
        let wish = match (self.policy, mirrored) {
            (Some(_), _) => POLICY,
            (None, true) => "mirror=",
            (None, false) => return Ok(()),
        };
        let bridge = spec.ovs.clone();
        if datapath.heeds_rules() { Ok(()) } else { Err(Refusal::AroundRules { wish, bridge, datapath }) }
    }

    /// The wanted offloads that the card's tap can take.
    pub(super) fn offload(&self, card: usize, wanted: OffloadList) -> OffloadList {
        let completes = port_of(&self.steps, card).is_none_or(|port| port.datapath.completes_frames());
        if completes { wanted } else { OffloadList::NONE }
    }
}

impl Plan {
    /// Refuses a policy on a card whose frames bypass the rules.
    pub(crate) fn check_policy(&self, card: usize) -> Result<(), Refusal> {
        match port_of(&self.steps, card) {
            Some(OvsPort { bridge, datapath, .. }) if !datapath.heeds_rules() => {
                Err(Refusal::AroundRules { wish: POLICY, bridge: bridge.clone(), datapath: *datapath })
            }
            _ => Ok(()),
        }
    }
}

/// The port of a card, if it has one.
fn port_of(steps: &[Step], card_idx: usize) -> Option<&OvsPort> {
    steps.iter().find_map(|step| match step {
        Step::CreateOvsPort(CreateOvsPort { card, port }) if *card == card_idx => Some(port),
        _ => None,
    })
}
