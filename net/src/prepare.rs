//! Makes the plan of a request on the host as it is: survey, then plan. Knows neither what applies a plan nor who asks
//! for it.

use std::collections::BTreeMap;
use std::os::fd::{OwnedFd, RawFd};

use crate::error::Error;
use crate::facts::Facts;
use crate::kernel::rtnl::Rtnl;
use crate::plan::{Plan, plan};
use crate::refusal::Refusal;
use crate::request::Request;
use crate::survey;

/// Reads the facts that the plan of a request depends on.
pub(crate) async fn facts(
    rtnl: &Rtnl,
    request: &Request,
    inherited: &BTreeMap<RawFd, OwnedFd>,
) -> Result<Facts, Error> {
    survey::survey(rtnl, &request.cards, inherited).await.map_err(Error::Survey)
}

/// Plans on `facts`. The neighbour table, which can have thousands of entries, is read only to explain a refusal.
pub(crate) async fn plan_on(rtnl: &Rtnl, request: &Request, facts: &mut Facts) -> Result<Plan, Error> {
    match plan(request, facts) {
        Err(Refusal::MacUsed { .. }) => {
            let neighbours = rtnl.neighbours().await.map_err(Error::Survey)?;
            facts.neighbours = neighbours.iter().filter_map(survey::neighbour).collect();
            Ok(plan(request, facts)?)
        }
        plan => Ok(plan?),
    }
}
