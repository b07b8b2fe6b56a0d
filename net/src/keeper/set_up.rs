//! The start: survey, plan and steps, made anew if the host changes in between, and undone if one fails.

use std::time::Instant;

use super::messages::Timing;
use super::vmm::Vmm;
use crate::error::{Error, KeeperError, Report};
use crate::host::lock::NamespaceLock;
use crate::plan::Plan;
use crate::prepare;
use crate::request::Request;
use crate::spec::NetSpec;
use crate::step::{Applied, Step};

/// Number of plans that a start makes when the host changes between survey and step. A lock keeps keepers apart, so
/// this takes another program that makes and removes bridges in the same millisecond.
const ATTEMPTS: usize = 4;

/// Surveys, plans and applies, and leaves nothing behind if that fails.
pub(super) async fn set_up(
    vmm: &mut Vmm<'_>,
    made: &mut Applied,
    request: &Request,
    clock: &mut Clock,
) -> Result<Plan, Error> {
    let mut attempt = 1;
    loop {
        match try_set_up(vmm, made, request, clock).await {
            Err(error) if error.is_stale_plan() && attempt < ATTEMPTS => {
                log::info!("Planning again, as the host has changed meanwhile: {}", error.report().message);
                attempt += 1;
            }
            result => return result,
        }
    }
}

async fn try_set_up(
    vmm: &mut Vmm<'_>,
    made: &mut Applied,
    request: &Request,
    clock: &mut Clock,
) -> Result<Plan, Error> {
    let _lock = lock_if_shared(&request.cards, vmm).await?;
    let mut facts = prepare::facts(&made.rtnl, request, &made.inherited).await?;
    clock.lap(|timing| &mut timing.survey_us);
    let plan = prepare::plan_on(&made.rtnl, request, &mut facts).await?;
    clock.lap(|timing| &mut timing.plan_us);
    for (done, step) in plan.steps.iter().enumerate() {
        log::debug!("{step}");
        if let Err(error) = step.apply(made).await {
            // Includes the failed step, which may be half-done.
            for report in undo_all(&plan.steps[..=done], made).await {
                log::error!("{}", report.message);
            }
            return Err(error);
        }
    }
    clock.lap(|timing| &mut timing.apply_us);
    Ok(plan)
}

/// Undoes every step from the last to the first, even if some fail. A failure that several of them share is reported
/// once.
pub(super) async fn undo_all(steps: &[Step], made: &mut Applied) -> Vec<Report> {
    made.look_again();
    let mut reports: Vec<Report> = Vec::new();
    for step in steps.iter().rev() {
        if let Err(error) = step.undo(made).await {
            let report = error.report();
            if !reports.contains(&report) {
                reports.push(report);
            }
        }
    }
    reports
}

/// The lock, if the cards need it. A VMM that ends meanwhile does not have to wait for it.
async fn lock_if_shared(cards: &[NetSpec], vmm: &mut Vmm<'_>) -> Result<Option<NamespaceLock>, Error> {
    let shares = |card: &NetSpec| {
        matches!(card, NetSpec::Bridge(_)) || card.private().is_some() || card.shared_interface().is_some()
    };
    if !cards.iter().any(shares) {
        return Ok(None);
    }
    let lock = tokio::select! {
        biased;
        lock = NamespaceLock::take() => lock,
        _ = vmm.ended() => return Err(KeeperError::Unwanted.into()),
    };
    Ok(Some(lock))
}

/// Measures phases that follow each other.
pub(super) struct Clock {
    last: Instant,
    pub(super) timing: Timing,
}

impl Clock {
    /// A clock that counts from here.
    pub(super) fn new(last: Instant) -> Self {
        Self { last, timing: Timing::default() }
    }

    /// Adds the time since the previous lap to a phase.
    pub(super) fn lap(&mut self, phase: impl FnOnce(&mut Timing) -> &mut u64) {
        let now = Instant::now();
        *phase(&mut self.timing) += u64::try_from((now - self.last).as_micros()).unwrap_or(u64::MAX);
        self.last = now;
    }
}
