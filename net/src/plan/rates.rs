//! Cards on vhost-net whose rates the kernel holds.

use super::Draft;
use crate::host::rates::{Rate, RateLimit};
use crate::spec::{NetSpec, Switch};
use crate::step::{LimitRates, Step};

/// Bytes of a frame beside its packet: an Ethernet header with a VLAN tag.
const FRAME_OVERHEAD: u64 = 18;

impl Draft<'_> {
    /// Adds the step that limits the rates of cards on vhost-net.
    pub(super) fn limit_rates(&mut self, cards: &[NetSpec]) {
        let limit = |(card, spec): (usize, &NetSpec)| {
            let (spec, mtu) = (spec.card(), self.cards.get(card)?.mtu);
            let pair = spec.impair.rate.filter(|_| spec.vhost == Switch::On)?;
            // A frame larger than a burst would never pass.
            let least = u64::from(mtu) + FRAME_OVERHEAD;
            let rate = |bits| Rate { bits_per_s: bits, burst_bytes: spec.impair.burst_of(bits).max(least) };
            Some(RateLimit { card, to_guest: rate(pair.to_guest), from_guest: rate(pair.from_guest) })
        };
        let limits: Vec<RateLimit> = cards.iter().enumerate().filter_map(limit).collect();
        if !limits.is_empty() {
            self.steps.push(Step::LimitRates(LimitRates { vm: self.vm.to_owned(), limits }));
        }
    }
}
