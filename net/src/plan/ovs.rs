//! Cards that are ports of an Open vSwitch bridge.

use super::{Draft, ETHERNET_MTU, TAP_MTU_MAX, guest_mtu};
use crate::alias::{Mode, TapAlias};
use crate::mac::MacAddr;
use crate::ovs::{OvsFact, OvsPort};
use crate::refusal::Refusal;
use crate::spec::{Mtu, OvsSpec, Queues, Switch};
use crate::step::Step;

impl Draft<'_> {
    pub(super) fn ovs(&mut self, card: usize, mac: MacAddr, spec: &OvsSpec) -> Result<(u16, Queues), Refusal> {
        let bridge = &spec.ovs;
        let (bridges, left_behind) = match &self.facts.ovs {
            OvsFact::There { bridges, left_behind } => (bridges, left_behind),
            OvsFact::Trouble(error) => return Err(error.clone().into()),
            OvsFact::NotAsked => (&Vec::new(), &Vec::new()),
        };
        if !bridges.iter().any(|name| name == bridge.as_str()) {
            return Err(Refusal::NoOvsBridge { name: bridge.clone(), bridges: bridges.clone() });
        }
        for port in left_behind {
            let step = Step::RemoveOvsPort { port: port.clone() };
            if !self.steps.contains(&step) {
                self.steps.push(step);
            }
        }
        // The bridge's own interface takes the smallest MTU of its ports, unless somebody has set it. Others may carry more.
        let bridge_mtu = self.facts.link(bridge.as_str()).and_then(|link| u16::try_from(link.mtu).ok());
        let wanted = spec.card.mtu.map(Mtu::get);
        let link_mtu = wanted.or(bridge_mtu).unwrap_or(ETHERNET_MTU).min(TAP_MTU_MAX);
        let mtu = guest_mtu(spec.card.mtu, link_mtu, bridge.as_str())?;
        let queues = spec.card.queues.unwrap_or(self.default_queues);
        let tap = self.spare_name()?;
        let (vm, net) = (self.vm.to_owned(), bridge.to_string());
        let alias = TapAlias { vm, card, mode: Mode::Ovs, net, ip4: None, ip6: None };
        let (vlan, iface_id) = (spec.vlan, spec.iface_id.clone());
        let port =
            OvsPort { tap, bridge: bridge.clone(), vlan, iface_id, mac, mtu: link_mtu, queues: queues.get(), alias };
        self.steps.push(Step::CreateOvsPort { card, port });
        self.judge(card, None, Switch::Off);
        Ok((mtu, queues))
    }
}
