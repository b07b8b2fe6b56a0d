//! Cards on vhost-net whose rates the kernel holds.

use super::Draft;
use crate::host::rates::{Rate, Shape};
use crate::spec::{NetSpec, Switch};
use crate::step::Step;

/// Bytes of a frame beside its packet: an Ethernet header with a tag.
const FRAME_OVERHEAD: u64 = 18;

impl Draft<'_> {
    /// The step for the cards of the plan that have rates and are on vhost-net.
    pub(super) fn shape(&mut self, cards: &[NetSpec]) {
        let shape = |(card, spec): (usize, &NetSpec)| {
            let (spec, mtu) = (spec.card(), self.cards.get(card)?.mtu);
            let pair = spec.impair.rate.filter(|_| spec.vhost == Switch::On)?;
            // A frame that is larger than a burst would never pass.
            let least = u64::from(mtu) + FRAME_OVERHEAD;
            let rate = |bits| Rate { bits_per_s: bits, burst_bytes: spec.impair.burst_of(bits).max(least) };
            Some(Shape { card, to_guest: rate(pair.to_guest), from_guest: rate(pair.from_guest) })
        };
        let shapes: Vec<Shape> = cards.iter().enumerate().filter_map(shape).collect();
        if !shapes.is_empty() {
            self.steps.push(Step::HoldRates { vm: self.vm.to_owned(), shapes });
        }
    }
}
