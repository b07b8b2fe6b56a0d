//! Cards on networks of our own: the bridge with its gateway, the lease, the rules and the services.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Draft, ETHERNET_MTU, guest_mtu};
use crate::facts::{Link, Settings};
use crate::host::docker::{self, Admission};
use crate::host::forwarding;
use crate::identity::alias::{Mode, NetworkAlias, TapAlias};
use crate::identity::mac::MacAddr;
use crate::kernel::nft::Translation;
use crate::plan::lease;
use crate::plan::subnet::{self, Taken};
use crate::refusal::{ALIAS_BYTES_MAX, HostLimit, IPV6_MTU_MIN, Refusal};
use crate::rules::Member;
use crate::rules::guard::Guard;
use crate::services::{Ipv4Network, Ipv6Network, Reach, Search, ServiceSpec};
use crate::spec::{Forward, IfName, Mtu, Private, Queues, ReachList, SearchSpec, Subnet, Switch};
use crate::step::{
    AdmitInDocker, AttachTap, CreateBridge, CreateTables, CreateTap, EnableForwarding, EnableForwarding6, GiveGateway,
    GiveGateway6, OpenServices, ReservePorts, RouteLoopback, ShareBridge, Step,
};

/// The address of every gateway of ours on its link.
const LINK_LOCAL_GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// A network of ours that a card of this plan is on.
#[derive(Clone, Debug)]
pub(super) struct Network {
    subnet: Subnet,
    /// The bridge's own address.
    mac: MacAddr,
    /// Its MTU in bytes.
    mtu: u16,
    /// The addresses of guests.
    leases: BTreeSet<Ipv4Addr>,
}

/// The networks of a plan, and everything that they need.
#[derive(Debug, Default)]
pub(super) struct Networks {
    /// By bridge.
    networks: BTreeMap<IfName, Network>,
    /// The cards on them.
    members: Vec<Member>,
    /// The cards on bridges of the host.
    guards: Vec<Guard>,
    /// The services of the cards.
    services: Vec<(usize, ServiceSpec)>,
    /// Networks whose traffic Docker would drop.
    admissions: Vec<Admission>,
}

impl Draft<'_> {
    pub(super) fn private(&mut self, card: usize, mac: MacAddr, spec: &Private<'_>) -> Result<(u16, Queues), Refusal> {
        let bridge = spec.bridge();
        let (network, address) = self.lease(card, &bridge, spec)?;
        let mtu = guest_mtu(spec.card.mtu, network.mtu, bridge.as_str())?;
        if spec.ipv6 == Switch::On {
            self.check_ipv6(&network, mtu, &bridge)?;
        }
        let ipv6 = (spec.ipv6 == Switch::On).then(|| self.give_gateway6(&bridge, spec.mode));
        let address6 = ipv6.map(|network| network.address_of(mac));
        let queues = spec.card.queues.unwrap_or(self.default_queues);
        if !spec.forward.is_empty() {
            self.check_ports(spec.forward)?;
            self.steps.push(Step::ReservePorts(ReservePorts { card, forward: spec.forward.to_vec(), ipv6: spec.ipv6 }));
            self.steps.push(Step::RouteLoopback(RouteLoopback { bridge: bridge.clone() }));
        }
        self.steps.push(Step::CreateTap(CreateTap { card, queues: queues.get() }));
        self.apply_policy(card, None, Switch::On);
        let (antispoof, isolate) = (spec.guard.antispoof_or(Switch::On), spec.guard.isolate);
        // If the guest connects to itself, a frame translated on the bridge returns to the port that it came from.
        let hairpin =
            if self.facts.ip.bridged_as_routed && !spec.forward.is_empty() { Switch::On } else { Switch::Off };
        let (vm, net) = (self.vm.to_owned(), spec.name.to_string());
        let alias = TapAlias { vm, card, mode: spec.mode, net, ip4: Some(address), ip6: address6 };
        self.steps.push(Step::AttachTap(AttachTap {
            card,
            bridge: bridge.clone(),
            mac: mac.host_side(),
            mtu: network.mtu,
            alias,
            pinned: (antispoof == Switch::On).then_some(mac),
            // A bridge never sends a frame back to an isolated port. The isolation rules accept this traffic.
            isolated: if hairpin == Switch::On { Switch::Off } else { isolate },
            hairpin,
            vlans: None,
        }));
        let Network { subnet, mac: gateway_mac, .. } = network;
        let forward = spec.forward.to_vec();
        let mode = spec.mode;
        let member = Member {
            card,
            mode,
            bridge,
            mac,
            address,
            address6,
            gateway_mac,
            subnet,
            ipv6,
            forward,
            reach: spec.reach,
            metadata: spec.metadata,
            antispoof,
            isolate,
            hairpin,
            limits: spec.limits.within(self.facts.ip.connections_max),
        };
        let admission = docker::admission(&member, self.facts.ip.docker, self.facts.ip.bridged_as_routed);
        self.networks.admissions.extend(admission);
        self.networks.members.push(member);
        let service = ServiceSpec {
            vm_name: self.vm.to_owned(),
            mac,
            gateway_mac,
            mtu,
            reach: if mode == Mode::Nat && spec.reach != ReachList::NONE { Reach::Outside } else { Reach::HostOnly },
            ipv4: Ipv4Network { address, gateway: subnet.gateway(), prefix_len: subnet.prefix_len() },
            ipv6,
            search: match spec.search {
                SearchSpec::Host => Search::Host(Vec::new()),
                SearchSpec::Only(names) => Search::Only(names.clone()),
            },
        };
        self.networks.services.push((card, service));
        Ok((mtu, queues))
    }

    /// Refuses IPv6 if the kernel has none, or if the MTU is below the IPv6 minimum.
    fn check_ipv6(&self, network: &Network, card_mtu: u16, bridge: &IfName) -> Result<(), HostLimit> {
        if self.facts.ip.lacks_ipv6 {
            return Err(HostLimit::NoIpv6);
        }
        let mtu = network.mtu.min(card_mtu);
        if mtu >= IPV6_MTU_MIN {
            return Ok(());
        }
        // A network that is to be made takes the MTU from the way out.
        let routes = self.facts.ip.routes.iter().filter(|route| route.unicast && route.prefix_len == 0);
        let narrow = |index| self.facts.link_at(index).filter(|link| link.mtu == u32::from(mtu));
        let uplink = routes.filter_map(|route| route.link).find_map(narrow).map(|link| link.name.clone());
        Err(HostLimit::MtuBelowIpv6 { link: uplink.unwrap_or_else(|| bridge.to_string()), mtu })
    }

    /// Adds the step that forwards packets between a network and these interfaces, which the bridge's alias lists.
    fn enable_forwarding(
        &mut self,
        bridge: &IfName,
        spec: &Private<'_>,
        uplinks: Vec<IfName>,
    ) -> Result<(), HostLimit> {
        let mut alias = NetworkAlias::new(spec.mode, spec.name.to_string());
        let indexes = self.facts.links.iter().filter(|link| uplinks.iter().any(|name| name.as_str() == link.name));
        alias.forward = indexes.map(|link| link.index).collect();
        if alias.to_string().len() > ALIAS_BYTES_MAX {
            return Err(HostLimit::TooManyUplinks { count: uplinks.len() });
        }
        self.steps.push(Step::EnableForwarding(EnableForwarding { bridge: bridge.clone(), uplinks }));
        Ok(())
    }

    /// Refuses host ports that rules of other programs redirect: the rule that comes first would take all packets.
    fn check_ports(&self, forwards: &[Forward]) -> Result<(), Refusal> {
        for by in &self.facts.translations {
            for forward in forwards.iter().filter(|forward| is_of_one_host(forward, by)) {
                let mut ports = forward.pairs().map(|(port, _)| port);
                if let Some(port) = ports.find(|port| by.ports.iter().any(|range| range.contains(port))) {
                    let (protocol, by) = (forward.protocol, Box::new(by.clone()));
                    return Err(Refusal::PortTranslated { protocol, port, by });
                }
            }
        }
        Ok(())
    }

    /// Records a card on a bridge of the host.
    pub(super) fn guard(&mut self, guard: Guard) {
        self.networks.guards.push(guard);
    }

    /// Adds the steps that all cards need together, after their taps.
    pub(super) fn guard_and_serve(&mut self) {
        let Networks { members, guards, services, admissions, .. } = std::mem::take(&mut self.networks);
        if members.is_empty() && guards.is_empty() {
            return;
        }
        self.steps.push(Step::CreateTables(CreateTables { vm: self.vm.to_owned(), members, guards }));
        if !admissions.is_empty() {
            let containers = docker::containers(&self.facts.links);
            self.steps.push(Step::AdmitInDocker(AdmitInDocker { vm: self.vm.to_owned(), admissions, containers }));
        }
        self.steps.extend(services.into_iter().map(|(card, spec)| Step::OpenServices(OpenServices { card, spec })));
    }

    /// The card's network and address, with the steps for the network at its first card.
    fn lease(&mut self, card: usize, bridge: &IfName, spec: &Private<'_>) -> Result<(Network, Ipv4Addr), Refusal> {
        let mut network = match self.networks.networks.get(bridge) {
            Some(network) => network.clone(),
            None => match self.facts.link(bridge.as_str()) {
                Some(link) => self.join_network(link, bridge, spec)?,
                None => self.create_network(bridge, spec)?,
            },
        };
        if let Some(wanted) = spec.subnet.filter(|wanted| *wanted != network.subnet) {
            let name = spec.name.clone();
            return Err(Refusal::OtherSubnet { name, subnet: network.subnet, wanted });
        }
        let address = lease::choose(self.vm, card, network.subnet, &network.leases);
        let full = || Refusal::NetworkFull { name: spec.name.clone(), subnet: network.subnet };
        let address = address.ok_or_else(full)?;
        network.leases.insert(address);
        self.networks.networks.insert(bridge.clone(), network.clone());
        Ok((network, address))
    }

    fn join_network(&mut self, link: &Link, bridge: &IfName, spec: &Private<'_>) -> Result<Network, Refusal> {
        let mac = link.mac.and_then(|mac| MacAddr::new(mac).ok()).filter(|_| link.is_our_bridge());
        let mac = mac.ok_or_else(|| Refusal::BridgeNameTaken { name: bridge.clone(), kind: link.kind_text() })?;
        self.steps.push(Step::ShareBridge(ShareBridge { bridge: bridge.clone() }));
        let addresses = self.facts.ip.addresses.iter().filter(|address| address.link == link.index);
        let mut subnets = addresses.filter_map(|address| Subnet::around(address.ip, address.prefix_len));
        let subnet = subnets.next();
        let known = link.alias.as_deref().and_then(NetworkAlias::parse).is_some();
        // The VM that made it may have been killed before it was done.
        let subnet = match subnet {
            Some(subnet) if known => subnet,
            subnet => self.give_gateway(bridge, spec, subnet)?,
        };
        let settings = self.facts.ip.settings;
        // It already has everything that a new one would need.
        self.check_settings(spec, Settings { without_ipv6: true, forwarding: true, ..settings })?;
        if spec.mode == Mode::Nat {
            let uplinks = self.silent_uplinks();
            if !uplinks.is_empty() || !self.facts.ip.forwarding.contains(&link.index) {
                self.enable_forwarding(bridge, spec, uplinks)?;
            }
        }
        let siblings = self.facts.ports_of(link).filter_map(|port| TapAlias::parse(port.alias.as_deref()?));
        // A tap of this VM belongs to its predecessor, which is about to end.
        let siblings = siblings.filter(|tap| tap.vm != self.vm);
        let leases = siblings.filter_map(|tap| tap.ip4).collect();
        Ok(Network { subnet, mac, mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX), leases })
    }

    fn create_network(&mut self, bridge: &IfName, spec: &Private<'_>) -> Result<Network, Refusal> {
        self.check_settings(spec, self.facts.ip.settings)?;
        let mtu = spec.card.mtu.map_or_else(|| self.network_mtu(spec.mode), Mtu::get);
        let created = self.steps.iter().filter(|step| matches!(step, Step::CreateBridge(_))).count();
        let mac = self.facts.spare_macs.get(created).copied().ok_or(Refusal::NoSpareMac)?;
        self.steps.push(Step::CreateBridge(CreateBridge { bridge: bridge.clone(), mac, mtu }));
        let subnet = self.give_gateway(bridge, spec, None)?;
        if spec.mode == Mode::Nat {
            let uplinks = self.silent_uplinks();
            self.enable_forwarding(bridge, spec, uplinks)?;
        }
        Ok(Network { subnet, mac, mtu, leases: BTreeSet::new() })
    }

    /// Refuses a network that needs a setting changed where sysctls are read-only. The kernel also takes the IPv4
    /// settings of the bridge itself by netlink.
    fn check_settings(&self, spec: &Private<'_>, settings: Settings) -> Result<(), Refusal> {
        let locked = |setting: String| Err(Refusal::LockedSetting { setting, value: 1 });
        if !settings.locked {
            return Ok(());
        }
        let silent = if spec.mode == Mode::Nat { self.silent_uplinks() } else { Vec::new() };
        match silent.first() {
            Some(uplink) => locked(format!("net.ipv4.conf.{uplink}.forwarding")),
            None if spec.mode == Mode::Nat && !settings.forwarding => {
                locked("net.ipv4.conf.default.forwarding".to_owned())
            }
            None if spec.ipv6 == Switch::On => locked(format!("net.ipv6.conf.{}.addr_gen_mode", spec.bridge())),
            None if !settings.without_ipv6 => locked("net.ipv6.conf.default.disable_ipv6".to_owned()),
            None => Ok(()),
        }
    }

    /// Adds the step that makes a bridge a network. `subnet` is its present one, if any.
    fn give_gateway(&mut self, bridge: &IfName, spec: &Private<'_>, subnet: Option<Subnet>) -> Result<Subnet, Refusal> {
        let mut taken = subnet::taken(self.facts);
        let planned = self.networks.networks.iter();
        taken.extend(planned.map(|(name, network)| Taken::by_network(network.subnet, name.as_str())));
        let free = || subnet::choose(bridge.as_str(), &taken);
        let subnet = match (subnet, spec.subnet) {
            (Some(subnet), _) => subnet,
            (None, Some(wanted)) => match subnet::overlap(wanted, &taken) {
                Some(by) => {
                    return Err(Refusal::SubnetTaken { subnet: wanted, by: by.to_owned(), free: free() });
                }
                None => wanted,
            },
            (None, None) => free().ok_or(Refusal::NoFreeSubnet)?,
        };
        let net = spec.name.to_string();
        let alias = NetworkAlias::new(spec.mode, net);
        self.steps.push(Step::GiveGateway(GiveGateway { bridge: bridge.clone(), subnet, alias }));
        Ok(subnet)
    }

    /// Adds the steps that give a network IPv6, at its first card with IPv6.
    fn give_gateway6(&mut self, bridge: &IfName, mode: Mode) -> Ipv6Network {
        let prefix = subnet::prefix6(bridge.as_str());
        let gateway = Ipv6Addr::from_bits(prefix.to_bits() | 1);
        let network = Ipv6Network { prefix, gateway, link_local: LINK_LOCAL_GATEWAY };
        let given =
            |step: &Step| matches!(step, Step::GiveGateway6(GiveGateway6 { bridge: other, .. }) if other == bridge);
        if !self.steps.iter().any(given) {
            self.steps.push(Step::GiveGateway6(GiveGateway6 { bridge: bridge.clone(), network }));
        }
        let enabled = |step: &Step| matches!(step, Step::EnableForwarding6(_));
        if mode == Mode::Nat && !self.facts.ip.forwards6 && !self.steps.iter().any(enabled) {
            let advertised = self.facts.links.iter().filter(|link| self.facts.ip.advertised6.contains(&link.index));
            let uplinks = advertised.filter_map(|link| link.name.parse().ok()).collect();
            self.steps.push(Step::EnableForwarding6(EnableForwarding6 { bridge: bridge.clone(), uplinks }));
        }
        network
    }

    /// The MTU of a new network: the smallest of all ways out.
    fn network_mtu(&self, mode: Mode) -> u16 {
        let routes = self.facts.ip.routes.iter().filter(|route| route.unicast && route.prefix_len == 0);
        let uplinks: BTreeSet<u32> = routes.filter_map(|route| route.link).collect();
        let mtus = self.facts.links.iter().filter(|link| uplinks.contains(&link.index)).map(|link| link.mtu);
        let least = mtus.min().filter(|_| mode == Mode::Nat);
        least.map_or(ETHERNET_MTU, |mtu| u16::try_from(mtu).unwrap_or(u16::MAX))
    }

    /// The interfaces that lead to other machines and do not forward their packets. A bridge of ours with an uplink is
    /// one of them.
    fn silent_uplinks(&self) -> Vec<IfName> {
        let routes = self.facts.ip.routes.iter().filter(|route| route.unicast);
        let leading: BTreeSet<u32> = routes.filter_map(|route| route.link).collect();
        let silent = |link: &&Link| leading.contains(&link.index) && !self.facts.ip.forwarding.contains(&link.index);
        let others = self.facts.links.iter().filter(|link| forwarding::may_lead(link));
        others.filter(silent).filter_map(|link| link.name.parse().ok()).collect()
    }
}

/// True if a rule of another program and a forwarded port can match the same packets, whatever the port.
fn is_of_one_host(forward: &Forward, by: &Translation) -> bool {
    let of_protocol = by.protocol.is_none_or(|number| number == forward.protocol.number());
    let meets = match (forward.address, by.address) {
        (Some(address), Some((of, bits))) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or_default();
            (address.to_bits() ^ of.to_bits()) & mask == 0
        }
        _ => true,
    };
    of_protocol && meets
}
