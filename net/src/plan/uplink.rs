//! Cards on a bridge of ours that leads out by an interface of the host.

use super::Draft;
use crate::facts::Link;
use crate::identity::alias::{NetworkAlias, UplinkAlias};
use crate::identity::mac::MacAddr;
use crate::kernel::vlan::PortVlans;
use crate::refusal::{Refusal, UplinkRefusal};
use crate::spec::{BridgeSpec, IfName, Switch, VlanSpec};
use crate::step::{JoinVlans, Step, TakeUplink};

impl Draft<'_> {
    /// The address and the MTU that a new bridge takes from its uplink, if the card names one.
    pub(super) fn uplink_card(&self, spec: &BridgeSpec) -> Result<Option<(MacAddr, u16)>, Refusal> {
        let Some(name) = &spec.uplink.uplink else { return Ok(None) };
        let link = self.uplink_link(name)?;
        let kind = || UplinkRefusal::NotAnUplink { name: name.clone(), kind: link.kind_text() };
        let mac = link.mac.and_then(|mac| MacAddr::new(mac).ok()).ok_or_else(kind)?;
        Ok(Some((mac, u16::try_from(link.mtu).unwrap_or(u16::MAX))))
    }

    /// Adds the step that makes the uplink a port, unless the uplink is a port already and has nothing left to hand
    /// over.
    pub(super) fn uplink(&mut self, spec: &BridgeSpec) -> Result<(), Refusal> {
        let Some(name) = &spec.uplink.uplink else { return Ok(()) };
        let planned = self.steps.iter().find_map(|step| match step {
            Step::TakeUplink(TakeUplink { bridge, uplink, .. }) if uplink == name || *bridge == spec.bridge => {
                Some((bridge, uplink))
            }
            _ => None,
        });
        match planned {
            Some((bridge, uplink)) if *bridge == spec.bridge && uplink == name => return Ok(()),
            Some((bridge, uplink)) if uplink == name => {
                return Err(UplinkRefusal::PortOfOther { name: name.clone(), master: bridge.to_string() }.into());
            }
            Some((bridge, uplink)) => {
                return Err(
                    UplinkRefusal::OtherUplink { name: bridge.clone(), uplink: Some(uplink.to_string()) }.into()
                );
            }
            None => {}
        }
        let link = self.uplink_link(name)?;
        let bridge = self.facts.link(spec.bridge.as_str());
        let known = bridge.map(|bridge| known_uplink(bridge, link, &spec.bridge)).transpose()?.flatten();
        let is_port = bridge.is_some_and(|bridge| link.master == Some(bridge.index));
        if let Some(master) = link.master.filter(|_| !is_port) {
            return Err(UplinkRefusal::PortOfOther { name: name.clone(), master: self.facts.name_of(master) }.into());
        }
        let fact = self.facts.uplink(link).cloned().unwrap_or_default();
        if fact.wireless {
            return Err(UplinkRefusal::Wireless { name: name.clone() }.into());
        }
        if let Some(user) = self.facts.links.iter().find(|other| other.lower == Some(link.index)) {
            return Err(
                UplinkRefusal::InUse { name: name.clone(), by: user.name.clone(), kind: user.kind_text() }.into()
            );
        }
        let moves = spec.uplink.move_addresses == Switch::On || known.as_ref().is_some_and(|known| known.moved);
        let has_some = !fact.addresses.is_empty() || fact.routes > 0;
        if has_some && !moves {
            let (addresses, default_route) = (fact.addresses, fact.default_route);
            return Err(UplinkRefusal::HasAddresses { name: name.clone(), addresses, default_route }.into());
        }
        if has_some && fact.nexthop_objects {
            return Err(UplinkRefusal::NexthopObjects { name: name.clone() }.into());
        }
        if is_port && !has_some && known.is_some() {
            return Ok(());
        }
        let raised = !link.up || known.is_some_and(|known| known.raised);
        let alias = UplinkAlias { uplink: name.to_string(), moved: moves, raised };
        let (addresses, routes) = (fact.addresses, fact.routes);
        let (bridge, uplink) = (spec.bridge.clone(), name.clone());
        self.steps.push(Step::TakeUplink(TakeUplink { bridge, uplink, alias, addresses, routes }));
        Ok(())
    }

    /// Adds the step that makes the bridge's uplink a tagged member of a port's VLANs.
    pub(super) fn uplink_vlans(&mut self, bridge: &IfName, spec: &VlanSpec) {
        let planned = self.steps.iter().find_map(|step| match step {
            Step::TakeUplink(TakeUplink { bridge: other, uplink, .. }) if other == bridge => Some(uplink.clone()),
            _ => None,
        });
        let link = self.facts.link(bridge.as_str());
        let known = link.and_then(Link::uplink).and_then(|alias| alias.uplink.parse().ok());
        let Some(uplink) = planned.or(known) else { return };
        let default = link.map_or(super::DEFAULT_PVID, |link| link.bridge.default_pvid);
        // Untagged frames are in the default VLAN already.
        let tagged = spec.all_but(default);
        if !tagged.is_empty() {
            let vlans = PortVlans { untagged: None, tagged, leave: None };
            self.steps.push(Step::JoinVlans(JoinVlans { link: uplink, vlans }));
        }
    }

    fn uplink_link(&self, name: &IfName) -> Result<&Link, Refusal> {
        let link = self.facts.link(name.as_str()).ok_or_else(|| UplinkRefusal::Missing { name: name.clone() })?;
        let is_card = link.mac.is_some() && link.name != "lo" && !link.is_bridge();
        if is_card {
            Ok(link)
        } else {
            Err(UplinkRefusal::NotAnUplink { name: name.clone(), kind: link.kind_text() }.into())
        }
    }
}

/// The uplink recorded in a bridge's alias, which has to be `link`. A bridge that has the uplink's address and no alias
/// was made for it.
fn known_uplink(bridge: &Link, link: &Link, name: &IfName) -> Result<Option<UplinkAlias>, Refusal> {
    if !bridge.is_our_bridge() {
        return Err(UplinkRefusal::ForeignBridge { name: name.clone() }.into());
    }
    let other = |uplink: Option<String>| Err(UplinkRefusal::OtherUplink { name: name.clone(), uplink }.into());
    match bridge.uplink() {
        Some(known) if known.uplink == link.name => Ok(Some(known)),
        Some(known) => other(Some(known.uplink)),
        None if bridge.mac == link.mac && bridge.alias.as_deref().and_then(NetworkAlias::parse).is_none() => Ok(None),
        None => other(None),
    }
}
