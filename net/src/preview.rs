//! What a start would do, without doing it: survey and plan, in the calling process.
//!
//! It changes nothing and needs no privilege. What only an attempt can tell is left out: whether the user may make taps, and
//! whether somebody holds a tap that has a single queue.

use serde_json::{Value, json};

use crate::error::Error;
use crate::inherited;
use crate::plan::Plan;
use crate::request::Request;
use crate::rtnl::Rtnl;
use crate::survey::{plan_with_neighbours, survey};

/// Plans the cards of `request` on this host as it is.
///
/// Random addresses, such as those of bridges that would be made, differ at the start itself.
///
/// # Errors
/// What the plan refuses, or the host does not tell.
pub fn preview(request: &Request) -> Result<Plan, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    runtime.map_err(Error::Runtime)?.block_on(async {
        let rtnl = Rtnl::connect().map_err(Error::Connect)?;
        let inherited = inherited::duplicates(&request.inherited_fds());
        let mut facts = survey(&rtnl, &request.cards, &inherited).await.map_err(Error::Survey)?;
        plan_with_neighbours(&rtnl, request, &mut facts).await
    })
}

/// A plan as JSON: its cards, and its steps in order, each with what it does (`text`) and what takes it back (`undo`) in words.
pub fn json(plan: &Plan) -> Value {
    let step = |step: &crate::step::Step| {
        let mut value = json!(step);
        value["text"] = step.to_string().into();
        value["undo"] = step.undo_text().into();
        value
    };
    json!({ "cards": plan.cards, "steps": plan.steps.iter().map(step).collect::<Vec<_>>() })
}
