//! The hand-over of ports: descriptors and the data that the VMM needs with them. The keeper keeps no descriptor of a
//! tap.

use std::os::fd::{AsFd, OwnedFd};

use super::messages::{PortHeader, Reply, ServiceHeader, Timing};
use crate::address_listener::AddressListener;
use crate::error::{Error, KeeperError};
use crate::kernel::bpf::{Steering, SteeringProgram};
use crate::kernel::tun::TapKind;
use crate::plan::Plan;
use crate::step::Applied;

/// Sends the ports and lets go of their descriptors, so that the taps live exactly as long as the VMM has them open.
pub(super) fn hand_over(
    socket: &OwnedFd,
    plan: &Plan,
    made: &mut Applied,
    steering: Option<&SteeringProgram>,
    timing: Timing,
) -> Result<(), Error> {
    for (card_idx, card) in plan.cards.iter().enumerate() {
        let tap = made.taps.get_mut(&card_idx).ok_or(Error::NoTap { card: card_idx })?;
        let mut vhosts = made.vhosts.remove(&card_idx).unwrap_or_default();
        // A card on vhost-net does not offer steering, and a macvtap takes no program.
        let takes_program = vhosts.is_empty() && tap.fds.len() > 1 && tap.kind == TapKind::Tap;
        let steering = steering.filter(|_| takes_program);
        let service = made.services.remove(&card_idx);
        // Services know the address that they have assigned.
        let address_listener = tap.index.filter(|_| service.is_none()).and_then(|index| listen(index, tap.kind));
        let claim = made.claims.get(&card_idx).map(OwnedFd::try_clone).transpose().map_err(KeeperError::Socket)?;
        let header = PortHeader {
            tap_name: tap.name.clone(),
            bridge: plan.bridge_of(card_idx).map(ToString::to_string),
            foreign_rules: plan.foreign_rules_of(card_idx),
            mac: card.mac,
            mtu: card.mtu,
            offload: card.offload,
            queues: tap.fds.len(),
            vhosts: vhosts.len(),
            address_listeners: address_listener.iter().len(),
            claims: claim.iter().len(),
            service: service
                .as_ref()
                .map(|(spec, _)| ServiceHeader { spec: spec.clone(), alias: plan.alias_of(card_idx) }),
        };
        let mut fds = std::mem::take(&mut tap.fds);
        fds.append(&mut vhosts);
        fds.extend(address_listener.map(AddressListener::into_socket));
        fds.extend(claim);
        fds.extend(service.map(|(_, socket)| socket));
        if let Some(Steering { program, map }) = steering.and_then(load) {
            fds.extend([program, map]);
        }
        Reply::Port(Box::new(header)).send(socket.as_fd(), &fds)?;
    }
    made.inherited.clear();
    // Also for tables that are made later, for a policy. A kernel without nf_tables has none of them.
    let tables = made.owner().ok().map(|tables| tables.share()).transpose().map_err(Error::ShareTables)?;
    Ok(Reply::Ready(timing).send(socket.as_fd(), &Vec::from_iter(tables))?)
}

/// Opens the address listener on the tap with this index; none if that fails.
fn listen(index: u32, kind: TapKind) -> Option<AddressListener> {
    let address_listener = AddressListener::open(index, kind);
    address_listener.inspect_err(|error| log::info!("Cannot listen for the address of a guest: {error}")).ok()
}

/// A card's steering program; none if the kernel refuses it, which costs the card speed when its guest asks for
/// steering.
fn load(steering: &SteeringProgram) -> Option<Steering> {
    let loaded = steering.load();
    loaded.inspect_err(|error| log::info!("Cannot load a steering program for a tap: {error}")).ok()
}
