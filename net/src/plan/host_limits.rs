//! Limits of the host that apply to a whole plan: ports of a bridge, and descriptors of the keeper.

use std::collections::BTreeMap;

use crate::facts::Facts;
use crate::refusal::{BRIDGE_PORTS_MAX, HostLimit};
use crate::spec::{Forward, IfName, Switch};
use crate::step::{AttachTap, CreateMacvtap, CreateOvsPort, CreateTap, OpenTap, OpenVhost, ReservePorts, Step};

/// Descriptors of every keeper, whatever its cards: sockets to the kernel and to its VMM, event loop, locks.
const OWN_DESCRIPTORS: u64 = 32;

/// Refuses a plan that the host has no room for.
pub(super) fn check(steps: &[Step], facts: &Facts) -> Result<(), HostLimit> {
    let mut joining: BTreeMap<&IfName, usize> = BTreeMap::new();
    for step in steps {
        if let Step::AttachTap(AttachTap { bridge, .. }) = step {
            *joining.entry(bridge).or_default() += 1;
        }
    }
    for (bridge, count) in joining {
        let present = facts.link(bridge.as_str()).map_or(0, |link| facts.ports_of(link).count());
        let ports = present + count;
        if ports > BRIDGE_PORTS_MAX {
            return Err(HostLimit::BridgeFull { bridge: bridge.clone(), ports });
        }
    }
    let needed = OWN_DESCRIPTORS + steps.iter().map(descriptors).sum::<u64>();
    match facts.descriptors {
        Some(limit) if needed > limit => Err(HostLimit::Descriptors { needed, limit }),
        _ => Ok(()),
    }
}

/// Descriptors that a step leaves open.
fn descriptors(step: &Step) -> u64 {
    match step {
        Step::CreateTap(CreateTap { queues, .. })
        | Step::OpenTap(OpenTap { queues, .. })
        | Step::OpenVhost(OpenVhost { queues, .. }) => u64::from(*queues),
        Step::CreateMacvtap(CreateMacvtap { macvtap, .. }) => u64::from(macvtap.queues),
        Step::CreateOvsPort(CreateOvsPort { port, .. }) => u64::from(port.queues),
        Step::ReservePorts(ReservePorts { forward, ipv6, .. }) => {
            forward.iter().map(|forward| sockets(forward, *ipv6)).sum()
        }
        Step::OpenServices(_) => 1,
        _ => 0,
    }
}

/// Sockets that reserve the ports of a forward: one for each of its address families.
fn sockets(forward: &Forward, ipv6: Switch) -> u64 {
    let families = if forward.address.is_none() && ipv6 == Switch::On { 2 } else { 1 };
    u64::from(forward.count) * families
}
