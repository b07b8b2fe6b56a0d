//! A start that is cut short in the middle of a step and taken back, in the calling process. Knows plans and steps; no
//! keeper.
//!
//! It is for tests, which compare the host before and after: a step whose `apply` stops at any of the places where it
//! waits for the kernel has to be taken back by its own `undo`.

use std::pin::pin;
use std::task::Poll;

use crate::error::{Error, Report};
use crate::kernel::rtnl::Rtnl;
use crate::prepare;
use crate::request::Request;
use crate::step::Applied;
use crate::survey::inherited;

/// The outcome of a rehearsal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rehearsal {
    /// The steps that were done, in order: each with its kind, and the number of polls of its `apply`.
    pub done: Vec<(&'static str, usize)>,
    /// The kind of the step that was cut short.
    pub cut: Option<&'static str>,
    /// Everything that could not be undone.
    pub reports: Vec<Report>,
}

/// Where a start is cut short: in this step of its plan, after so many polls of its `apply`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The step, by its place in the plan.
    pub step: usize,
    /// The number of polls.
    pub polls: usize,
}

/// Plans `request`, applies its steps up to the cut, and undoes them, twice.
///
/// # Errors
/// The plan is refused, or a step fails.
pub fn rehearse(request: &Request, cut: Option<Cut>) -> Result<Rehearsal, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    runtime.map_err(Error::Runtime)?.block_on(async {
        let rtnl = Rtnl::connect().map_err(Error::Connect)?;
        let mut made = Applied::new(rtnl, &request.vm_name, inherited::duplicates(&request.inherited_fds()));
        let mut facts = prepare::facts(&made.rtnl, request, &made.inherited).await?;
        let plan = prepare::plan_on(&made.rtnl, request, &mut facts).await?;
        let mut outcome = Rehearsal { done: Vec::new(), cut: None, reports: Vec::new() };
        let (mut begun, mut failed) = (0, None);
        for (number, step) in plan.steps.iter().enumerate() {
            begun = number + 1;
            let most = cut.filter(|cut| cut.step == number).map_or(usize::MAX, |cut| cut.polls);
            match cut_short(step.apply(&mut made), most).await {
                Ok(Some(polls)) => outcome.done.push((step.kind(), polls)),
                Ok(None) => {
                    outcome.cut = Some(step.kind());
                    break;
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        made.look_again();
        let begun = &plan.steps[..begun];
        // The second undo has nothing to do.
        for step in begun.iter().rev().chain(begun.iter().rev()) {
            outcome.reports.extend(step.undo(&mut made).await.err().map(|error| error.report()));
        }
        failed.map_or(Ok(outcome), Err)
    })
}

/// Polls `apply` at most `most` times. Returns how often, if it was done by then.
async fn cut_short(apply: impl Future<Output = Result<(), Error>>, most: usize) -> Result<Option<usize>, Error> {
    let mut apply = pin!(apply);
    let mut polls = 0;
    std::future::poll_fn(|context| {
        if polls == most {
            return Poll::Ready(Ok(None));
        }
        polls += 1;
        apply.as_mut().poll(context).map(|result| result.map(|()| Some(polls)))
    })
    .await
}
