//! Has the kernel limit the rates of cards, on their taps and on interfaces where frames wait.

use std::fmt;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::host::rates::{self, RateError, RateLimit};
use crate::refusal::Refusal;

/// Have the kernel limit the rates of cards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LimitRates {
    /// The VM.
    pub vm: String,
    /// The cards.
    pub limits: Vec<RateLimit>,
}

impl Kind for LimitRates {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        let held = rates::hold(&made.rtnl, &self.vm, &self.limits, &made.taps).await;
        made.rates = Some(held.map_err(|error| match error {
            RateError::Missing => Refusal::NoRates.into(),
            error => Error::LimitRates(error),
        })?);
        Ok(())
    }

    async fn undo(&self, made: &mut Applied) -> Result<(), Error> {
        // The taps are made by an earlier step, and so removed later than this.
        made.rates = None;
        let taps = self.limits.iter().filter_map(|limit| made.taps.get(&limit.card)?.index);
        rates::release(&made.rtnl, taps).await.map_err(|source| Error::LimitRates(source.into()))
    }

    fn undo_text(&self) -> String {
        "remove the interfaces where frames wait".to_owned()
    }
}

impl fmt::Display for LimitRates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = self.limits.iter().map(|RateLimit { card, to_guest, from_guest }| {
            format!("{}/{} bit/s of card {card}", to_guest.bits_per_s, from_guest.bits_per_s)
        });
        write!(f, "hold {}", texts.collect::<Vec<_>>().join(" and "))
    }
}
