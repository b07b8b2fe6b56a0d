//! From a request and the facts of a host to the steps of a start. Reads no kernel state and applies nothing.
//!
//! [`plan`] is a pure function: it touches nothing, the same input gives the same steps, and everything that can be
//! refused before the host is changed is refused here.

mod host_limits;
mod lease;
mod macvtap;
mod mirror;
mod ovs;
mod private;
mod rates;
pub(crate) mod subnet;
mod uplink;

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use crate::facts::{Facts, Link};
use crate::host::bridge::is_unused;
use crate::host::docker::Admission;
use crate::host::mirror::Mirror;
use crate::identity::alias::{Mode, TapAlias};
use crate::identity::mac::RawMac;
use crate::identity::mac::{HOST_SIDE_PREFIX, MacAddr};
use crate::kernel::tun::{FdKind, QueueMode};
use crate::kernel::vlan::PortVlans;
use crate::policy::Policy;
use crate::refusal::{Refusal, TapRefusal};
use crate::request::Request;
use crate::rules::guard::Guard;
use crate::spec::{
    BridgeSpec, FdSpec, ForwardDelay, IfName, MacvtapMode, Mtu, NetSpec, OffloadList, Queues, Switch, TapSpec, VlanSpec,
};
use crate::step::{
    AdmitInDocker, AdoptTap, ApplyPolicy, AttachTap, CreateBridge, CreateOvsPort, CreateTap, FilterVlans, MirrorFrames,
    OpenTap, OpenVhost, PinAddress, Raise, ShareBridge, StartStp, Step,
};
use private::Networks;

/// The MTU of a new tap and of a new bridge, in bytes (`ETH_DATA_LEN`).
pub const ETHERNET_MTU: u16 = 1500;

/// The largest MTU of a tap, in bytes: the kernel's largest frame, 65535 bytes, less the Ethernet header
/// (drivers/net/tun.c, `tun_net_initialize`).
const TAP_MTU_MAX: u16 = 65535 - 14;

/// The VLAN in which a new bridge puts every port (`br_vlan_init`, net/bridge/br_vlan.c).
const DEFAULT_PVID: u16 = 1;

/// The changes to the host for the cards of one VM, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The cards.
    pub cards: Vec<Card>,
    /// The steps that make them. Teardown undoes the steps from the last to the first.
    pub steps: Vec<Step>,
}

/// One card as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Card {
    /// The guest's address.
    pub mac: MacAddr,
    /// The MTU that the guest is told, in bytes.
    pub mtu: u16,
    /// Queue pairs.
    pub queues: u16,
    /// Offloads left to the tap, as far as it supports them.
    pub offload: OffloadList,
}

/// Plans the cards of a VM.
///
/// # Errors
/// The first reason to refuse a card.
pub fn plan(request: &Request, facts: &Facts) -> Result<Plan, Refusal> {
    let default_queues = Queues::for_vcpus(request.vcpus);
    if let Some(policy) = &request.policy {
        policy.check_cards(request.cards.len())?;
    }
    let mut draft = Draft {
        vm: &request.vm_name,
        policy: request.policy.as_ref(),
        facts,
        default_queues,
        cards: Vec::new(),
        steps: Vec::new(),
        networks: Networks::default(),
        mirrors: Vec::new(),
    };
    for (card_idx, spec) in request.cards.iter().enumerate() {
        let mac = spec.card().mac.unwrap_or_else(|| MacAddr::for_vm(&request.vm_name, card_idx));
        draft.check_mac(mac, spec)?;
        let (mtu, queues) = match spec {
            NetSpec::Bridge(spec) => draft.bridge(card_idx, mac, spec)?,
            NetSpec::Nat(spec) => draft.private(card_idx, mac, &spec.private())?,
            NetSpec::Host(spec) => draft.private(card_idx, mac, &spec.private())?,
            NetSpec::Macvtap(spec) => draft.macvtap(card_idx, mac, spec)?,
            NetSpec::Ovs(spec) => draft.ovs(card_idx, mac, spec)?,
            NetSpec::Tap(spec) => draft.tap(card_idx, spec)?,
            NetSpec::Fd(spec) => draft.fd(card_idx, spec)?,
        };
        draft.mirror(card_idx, spec)?;
        if spec.card().vhost == Switch::On {
            draft.steps.push(Step::OpenVhost(OpenVhost { card: card_idx, queues: queues.get() }));
        }
        let offload = draft.offload(card_idx, spec.card().offload);
        draft.cards.push(Card { mac, mtu, queues: queues.get(), offload });
    }
    draft.guard_and_serve();
    draft.limit_rates(&request.cards);
    if !draft.mirrors.is_empty() {
        let (vm, mirrors) = (request.vm_name.clone(), draft.mirrors);
        draft.steps.push(Step::MirrorFrames(MirrorFrames { vm, mirrors }));
    }
    host_limits::check(&draft.steps, facts)?;
    Ok(Plan { cards: draft.cards, steps: draft.steps })
}

impl Plan {
    /// The bridge that a card's tap is attached to.
    pub(crate) fn bridge_of(&self, card_idx: usize) -> Option<&IfName> {
        self.steps.iter().find_map(|step| match step {
            Step::AttachTap(AttachTap { card, bridge, .. }) if *card == card_idx => Some(bridge),
            Step::CreateOvsPort(CreateOvsPort { card, port }) if *card == card_idx => Some(&port.bridge),
            _ => None,
        })
    }

    /// The chains of other programs that hold rules for a card.
    pub(crate) fn foreign_rules_of(&self, card_idx: usize) -> Vec<String> {
        let bridge = self.bridge_of(card_idx);
        let admissions = self.steps.iter().flat_map(|step| match step {
            Step::AdmitInDocker(AdmitInDocker { admissions, .. }) => admissions.as_slice(),
            _ => &[],
        });
        admissions.filter(|admission| Some(&admission.bridge) == bridge).flat_map(Admission::chains).collect()
    }

    /// The alias of a card's tap; empty if minivmm sets none.
    pub(crate) fn alias_of(&self, card_idx: usize) -> String {
        let alias = self.steps.iter().find_map(|step| match step {
            Step::AttachTap(AttachTap { card, alias, .. }) if *card == card_idx => Some(alias.to_string()),
            _ => None,
        });
        alias.unwrap_or_default()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (idx, card) in self.cards.iter().enumerate() {
            writeln!(f, "card {idx}: mac {}, mtu {}, {} queue pairs", card.mac, card.mtu, card.queues)?;
        }
        for (idx, step) in self.steps.iter().enumerate() {
            writeln!(f, "{}. {step}; at the end: {}", idx + 1, step.undo_text())?;
        }
        Ok(())
    }
}

/// A plan in the making.
struct Draft<'a> {
    vm: &'a str,
    policy: Option<&'a Policy>,
    facts: &'a Facts,
    /// Queues of a card whose spec sets none.
    default_queues: Queues,
    cards: Vec<Card>,
    steps: Vec<Step>,
    /// Networks of ours that its cards are on.
    networks: Networks,
    /// Its cards whose frames are copied.
    mirrors: Vec<Mirror>,
}

impl Draft<'_> {
    fn bridge(&mut self, card: usize, mac: MacAddr, spec: &BridgeSpec) -> Result<(u16, Queues), Refusal> {
        let name = &spec.bridge;
        let bridge_mtu = match self.facts.link(name.as_str()) {
            Some(link) if !link.is_bridge() => {
                return Err(Refusal::NotABridge { name: name.clone(), kind: link.kind_text() });
            }
            Some(link) => {
                let mtu = self.join(link, name);
                if link.is_our_bridge() && has_other_stp(link, spec) && is_unused(link, &self.facts.links) {
                    // A VM that did not ask for a spanning tree, or did not get that far, left the bridge behind.
                    self.spanning_tree(spec)?;
                } else {
                    check_stp(link, spec)?;
                }
                mtu
            }
            None => self.create(spec)?,
        };
        self.uplink(spec)?;
        let bridge_mtu = bridge_mtu.min(TAP_MTU_MAX);
        let vlans = self.vlans(name, &spec.vlans)?;
        let mtu = guest_mtu(spec.card.mtu, bridge_mtu, name.as_str())?;
        let queues = spec.card.queues.unwrap_or(self.default_queues);
        self.steps.push(Step::CreateTap(CreateTap { card, queues: queues.get() }));
        self.apply_policy(card, None, Switch::Off);
        let (vm, net) = (self.vm.to_owned(), name.to_string());
        let addresses = spec.addresses.as_slice().to_vec();
        let ip4 = addresses.iter().find_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None });
        let ip6 = addresses.iter().find_map(|ip| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None });
        let alias = TapAlias { vm, card, mode: Mode::Bridge, net, ip4, ip6 };
        let (antispoof, isolate) = (spec.guard.antispoof_or(Switch::Off), spec.guard.isolate);
        self.steps.push(Step::AttachTap(AttachTap {
            card,
            bridge: name.clone(),
            mac: mac.host_side(),
            mtu: bridge_mtu,
            alias,
            pinned: (antispoof == Switch::On).then_some(mac),
            isolated: isolate,
            hairpin: Switch::Off,
            vlans,
        }));
        let tagged = if spec.vlans.trunk.is_empty() { Switch::Off } else { Switch::On };
        let access = if spec.vlans.vlan.is_some() { Switch::On } else { Switch::Off };
        let router = self.address_of(&spec.bridge).map(|mac| (spec.bridge.clone(), mac));
        self.guard(Guard { card, mac, antispoof, addresses, isolate, tagged, access, router });
        Ok((mtu, queues))
    }

    /// The MAC address of a bridge that exists, or that a step makes.
    fn address_of(&self, bridge: &IfName) -> Option<MacAddr> {
        let link = self.facts.link(bridge.as_str()).and_then(|link| MacAddr::new(link.mac?).ok());
        let made = self.steps.iter().find_map(|step| match step {
            Step::CreateBridge(CreateBridge { bridge: name, mac, .. }) if name == bridge => Some(*mac),
            _ => None,
        });
        link.or(made)
    }

    /// The VLANs of a port, with the step that turns on the bridge's VLAN filter if it is off.
    fn vlans(&mut self, name: &IfName, spec: &VlanSpec) -> Result<Option<PortVlans>, Refusal> {
        let link = self.facts.link(name.as_str());
        if spec.is_empty() {
            let drops = |link: &Link| link.bridge.vlan_filtering == Some(true) && link.bridge.default_pvid == 0;
            return match link {
                Some(link) if drops(link) => Err(Refusal::NoDefaultVlan { name: name.clone() }),
                _ => Ok(None),
            };
        }
        let filters = link.is_some_and(|link| link.bridge.vlan_filtering == Some(true))
            || self
                .steps
                .iter()
                .any(|step| matches!(step, Step::FilterVlans(FilterVlans { bridge }) if bridge == name));
        match link {
            _ if filters => {}
            Some(link) if link.bridge.vlan_filtering.is_none() => return Err(Refusal::NoVlans),
            Some(link) if !link.is_our_bridge() => return Err(Refusal::NoVlanFiltering { name: name.clone() }),
            _ => self.steps.push(Step::FilterVlans(FilterVlans { bridge: name.clone() })),
        }
        let default = link.map_or(DEFAULT_PVID, |link| link.bridge.default_pvid);
        let untagged = spec.untagged();
        let stays = |id: u16| untagged.is_some_and(|own| own.get() == id) || spec.trunk.contains(id);
        let leave = Some(default).filter(|id| *id != 0 && !stays(*id));
        self.uplink_vlans(name, spec);
        Ok(Some(PortVlans { untagged, tagged: spec.trunk.clone(), leave }))
    }

    /// Adds the steps for an existing bridge, at its first card. Returns the bridge's MTU.
    fn join(&mut self, bridge: &Link, name: &IfName) -> u16 {
        let mtu = u16::try_from(bridge.mtu).unwrap_or(u16::MAX);
        if self.steps.iter().any(|step| step.bridge() == Some(name)) {
            return mtu;
        }
        if bridge.is_our_bridge() {
            self.steps.push(Step::ShareBridge(ShareBridge { bridge: name.clone() }));
        } else if let Some(mac) = self.address_at_risk(bridge) {
            self.steps.push(Step::PinAddress(PinAddress { bridge: name.clone(), mac }));
        }
        mtu
    }

    /// The address of a bridge that would change when a tap of ours joins.
    ///
    /// A bridge without a configured address takes the lowest among its ports (`br_stp_recalculate_bridge_id`). Our
    /// taps have nearly the highest, which is enough while there is a port below them. Any other bridge would take the
    /// tap's, and lose it with the tap: all machines that know the old address would lose the host.
    fn address_at_risk(&self, bridge: &Link) -> Option<MacAddr> {
        let below_taps = |port: &Link| port.mac.is_some_and(|mac| mac[0] < HOST_SIDE_PREFIX);
        if self.facts.ports_of(bridge).any(below_taps) {
            return None;
        }
        bridge.mac.and_then(|mac| MacAddr::new(mac).ok())
    }

    /// Adds the step for a missing bridge, at its first card. Returns the bridge's MTU.
    fn create(&mut self, spec: &BridgeSpec) -> Result<u16, Refusal> {
        let name = &spec.bridge;
        let planned = self.steps.iter().find_map(|step| match step {
            Step::CreateBridge(CreateBridge { bridge, mtu, .. }) if bridge == name => Some(*mtu),
            _ => None,
        });
        if let Some(mtu) = planned {
            self.spanning_tree(spec)?;
            return Ok(mtu);
        }
        if spec.create == Switch::Off {
            return Err(Refusal::NoBridge { name: name.clone(), bridges: self.bridges() });
        }
        if let Some((mac, mtu)) = self.uplink_card(spec)? {
            self.steps.push(Step::CreateBridge(CreateBridge { bridge: name.clone(), mac, mtu }));
            self.spanning_tree(spec)?;
            return Ok(mtu);
        }
        let mtu = spec.card.mtu.map_or(ETHERNET_MTU, Mtu::get);
        let created = self.steps.iter().filter(|step| matches!(step, Step::CreateBridge(_))).count();
        let mac = self.facts.spare_macs.get(created).copied().ok_or(Refusal::NoSpareMac)?;
        self.steps.push(Step::CreateBridge(CreateBridge { bridge: name.clone(), mac, mtu }));
        self.spanning_tree(spec)?;
        Ok(mtu)
    }

    /// Adds the step for the spanning tree of a new bridge, if this card is the first to ask for one.
    fn spanning_tree(&mut self, spec: &BridgeSpec) -> Result<(), Refusal> {
        let Some(delay) = spec.stp.delay() else { return Ok(()) };
        let planned = self.steps.iter().find_map(|step| match step {
            Step::StartStp(StartStp { bridge, delay }) if *bridge == spec.bridge => Some(*delay),
            _ => None,
        });
        match planned {
            None => self.steps.push(Step::StartStp(StartStp { bridge: spec.bridge.clone(), delay })),
            Some(planned) if planned == delay => {}
            Some(planned) => {
                let (delay_s, wanted_s) = (Some(planned.seconds()), delay.seconds());
                return Err(Refusal::OtherStp { name: spec.bridge.clone(), delay_s, wanted_s });
            }
        }
        Ok(())
    }

    fn tap(&mut self, card: usize, spec: &TapSpec) -> Result<(u16, Queues), Refusal> {
        let name = &spec.tap;
        let link = self.facts.link(name.as_str()).ok_or_else(|| TapRefusal::Missing { name: name.clone() })?;
        let Some(tun) = link.tun.filter(|tun| tun.tap) else {
            return Err(TapRefusal::NotATap { name: name.clone(), kind: link.kind_text() }.into());
        };
        let most = if tun.multi_queue { self.default_queues } else { Queues::ONE };
        let queues = spec.card.queues.unwrap_or(most);
        if queues > Queues::ONE && !tun.multi_queue {
            return Err(TapRefusal::SingleQueue { name: name.clone(), queues: queues.get() }.into());
        }
        let taken_here =
            self.steps.iter().any(|step| matches!(step, Step::OpenTap(OpenTap { tap, .. }) if tap == name));
        if taken_here || tun.queues_open > 0 {
            return Err(TapRefusal::Busy { name: name.clone() }.into());
        }
        let mtu = u16::try_from(link.mtu).unwrap_or(u16::MAX);
        let mtu = guest_mtu(spec.card.mtu, mtu, name.as_str())?;
        self.apply_policy(card, Some(name), Switch::Off);
        self.steps.push(Step::OpenTap(OpenTap {
            card,
            tap: name.clone(),
            queues: queues.get(),
            mode: if tun.multi_queue { QueueMode::Multi } else { QueueMode::Single },
        }));
        if !link.up {
            self.steps.push(Step::Raise(Raise { link: name.clone() }));
        }
        Ok((mtu, queues))
    }

    fn fd(&mut self, card: usize, spec: &FdSpec) -> Result<(u16, Queues), Refusal> {
        let mut tap: Option<&str> = None;
        for &fd in spec.fd.as_slice() {
            if self.steps.iter().any(|step| matches!(step, Step::AdoptTap(AdoptTap { fds, .. }) if fds.contains(&fd))) {
                return Err(TapRefusal::FdTaken { fd }.into());
            }
            let fact = self.facts.fds.iter().find(|fact| fact.fd == fd);
            let name = match fact.map_or(&FdKind::Closed, |fact| &fact.kind) {
                FdKind::Closed => return Err(TapRefusal::FdClosed { fd }.into()),
                FdKind::Other => return Err(TapRefusal::FdNotATap { fd }.into()),
                FdKind::Tun { frames: false, .. } => return Err(TapRefusal::FdNotFrames { fd }.into()),
                FdKind::Tun { vnet_header: false, .. } => return Err(TapRefusal::FdWithoutHeader { fd }.into()),
                FdKind::Tun { name, .. } => name.as_str(),
            };
            if let Some(first) = tap.filter(|first| *first != name) {
                return Err(TapRefusal::FdsOfTwoTaps { first: first.to_owned(), second: name.to_owned() }.into());
            }
            tap = Some(name);
        }
        let name = tap.unwrap_or_default().to_owned();
        // The tap may live in another namespace, where this survey cannot see its MTU.
        let mtu = self.facts.link(&name).and_then(|link| u16::try_from(link.mtu).ok()).unwrap_or(ETHERNET_MTU);
        let mtu = guest_mtu(spec.card.mtu, mtu, &name)?;
        self.steps.push(Step::AdoptTap(AdoptTap { card, tap: name, fds: spec.fd.as_slice().to_vec() }));
        self.apply_policy(card, None, Switch::Off);
        Ok((mtu, spec.fd.queues()))
    }

    /// Adds the step that puts the policy, if any, on a card before a frame can reach the guest. `tap` is an existing
    /// tap.
    fn apply_policy(&mut self, card: usize, tap: Option<&IfName>, served: Switch) {
        if let Some(policy) = self.policy {
            let (vm, tap, policy) = (self.vm.to_owned(), tap.cloned(), policy.clone());
            self.steps.push(Step::ApplyPolicy(ApplyPolicy { vm, card, tap, served, policy }));
        }
    }

    /// Refuses a MAC address that the host knows to be in use.
    fn check_mac(&self, mac: MacAddr, spec: &NetSpec) -> Result<(), Refusal> {
        let used = |by: String| Err(Refusal::MacUsed { mac, by });
        if let Some(card) = self.cards.iter().position(|card| card.mac.host_side() == mac.host_side()) {
            return used(format!("card {card} of this VM"));
        }
        // Interfaces that may have it: the leftovers of a VM, and an interface that the guest gets for itself.
        let own = |link: &Link| match spec {
            NetSpec::Macvtap(spec) => {
                self.facts.is_left_behind(link)
                    || spec.mode == MacvtapMode::Passthru && link.name == spec.macvtap.as_str()
            }
            _ => self.facts.is_left_behind(link),
        };
        if let Some(link) = self.facts.links.iter().find(|link| link.mac == Some(mac.octets()) && !own(link)) {
            return used(format!("interface {} of this host", link.name));
        }
        let bridge = match spec {
            NetSpec::Bridge(spec) => self.facts.link(spec.bridge.as_str()).map(|link| link.index),
            NetSpec::Tap(spec) => self.facts.link(spec.tap.as_str()).and_then(|link| link.master),
            // Addresses on networks of ours are those of their taps.
            NetSpec::Nat(_) | NetSpec::Host(_) | NetSpec::Macvtap(_) | NetSpec::Ovs(_) | NetSpec::Fd(_) => None,
        };
        let own_tap = match spec {
            NetSpec::Tap(spec) => self.facts.link(spec.tap.as_str()).map(|link| link.index),
            _ => None,
        };
        // A guest that has not sent a frame yet is in no table, but its tap's address tells.
        let host_side = Some(mac.host_side().octets());
        let tap = self.facts.links.iter().find(|link| link.tun.is_some() && link.mac == host_side);
        if let Some(tap) = tap.filter(|tap| Some(tap.index) != own_tap) {
            return used(format!("the guest behind tap {}", tap.name));
        }
        let entry = self
            .facts
            .fdb
            .iter()
            .find(|entry| entry.mac == mac.octets() && Some(entry.bridge) == bridge && Some(entry.port) != own_tap);
        match entry {
            Some(entry) => used(format!(
                "a machine{} behind port {} of bridge {}",
                self.neighbour_text(entry.mac, entry.bridge),
                self.facts.name_of(entry.port),
                self.facts.name_of(entry.bridge)
            )),
            None => Ok(()),
        }
    }

    fn neighbour_text(&self, mac: RawMac, bridge: u32) -> String {
        let mut ips: Vec<_> = (self.facts.neighbours.iter())
            .filter(|neighbour| neighbour.mac == mac && neighbour.link == bridge)
            .map(|neighbour| neighbour.ip)
            .collect();
        ips.sort();
        match ips.first() {
            Some(ip) => format!(" with address {ip}"),
            None => String::new(),
        }
    }

    fn bridges(&self) -> Vec<String> {
        self.facts.links.iter().filter(|link| link.is_bridge()).map(|link| link.name.clone()).collect()
    }
}

/// Refuses an existing bridge without the spanning tree that a card asks for.
fn check_stp(bridge: &Link, spec: &BridgeSpec) -> Result<(), Refusal> {
    match spec.stp.delay().map(ForwardDelay::seconds) {
        Some(wanted_s) if has_other_stp(bridge, spec) => {
            Err(Refusal::OtherStp { name: spec.bridge.clone(), delay_s: bridge.bridge.stp_delay_s, wanted_s })
        }
        _ => Ok(()),
    }
}

/// True if a card asks for a spanning tree that a bridge does not have.
fn has_other_stp(bridge: &Link, spec: &BridgeSpec) -> bool {
    let wanted = spec.stp.delay().map(ForwardDelay::seconds);
    wanted.is_some() && bridge.bridge.stp_delay_s != wanted
}

/// The MTU that the guest is told: the requested one, which the link has to carry, or the link's.
///
/// The tap itself always has the link's: a tap with less would pull an automatic bridge MTU down for every port.
fn guest_mtu(wanted: Option<Mtu>, link_mtu: u16, link: &str) -> Result<u16, Refusal> {
    match wanted.map(Mtu::get) {
        Some(mtu) if mtu > link_mtu => Err(Refusal::MtuAboveLink { mtu, link: link.to_owned(), link_mtu }),
        Some(mtu) => Ok(mtu),
        None => Ok(link_mtu),
    }
}

#[cfg(test)]
mod tests;
