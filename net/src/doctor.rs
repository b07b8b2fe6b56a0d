//! Everything on a host that would keep cards from working, each with the one command that fixes it.
//!
//! Changes nothing. Looks at the facts that a plan is made from, and at rules and settings that may drop packets
//! afterwards. Reports what the user lacks the privilege to see. Not seen: single rules that drop some packets, eBPF
//! programs, policy routing, and firewalls of other machines.

mod firewall;
mod forwarding;
mod managers;
mod privileges;
mod traffic;
mod uplink;

use serde::Serialize;

use crate::error::Error;
use crate::facts::Facts;
use crate::facts::ovs::OvsFact;
use crate::kernel::rtnl::Rtnl;
use crate::prepare;
use crate::preview;
use crate::request::Request;
use crate::spec::{NetSpec, Switch};
use crate::survey::inherited;
use crate::survey::ip;

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Fine,
    /// Cards work, and something else may suffer.
    Warning,
    /// Cards would not work.
    Problem,
}

/// A finding about the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its severity.
    pub level: Level,
    /// The subject, in a word.
    pub about: &'static str,
    /// The finding.
    pub what: String,
    /// The effect; empty if there is none.
    pub why: String,
    /// The command, or the change, that fixes it.
    pub fix: Option<String>,
}

impl Finding {
    /// A finding that needs no action.
    pub fn fine(about: &'static str, what: impl Into<String>) -> Self {
        Self { level: Level::Fine, about, what: what.into(), why: String::new(), fix: None }
    }

    /// A problem that keeps cards from working.
    pub fn problem(about: &'static str, what: impl Into<String>, why: impl Into<String>, fix: Option<String>) -> Self {
        Self { level: Level::Problem, about, what: what.into(), why: why.into(), fix }
    }

    /// A problem that does not keep cards from working.
    fn warning(about: &'static str, what: impl Into<String>, why: &str, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..Self::trouble(about, what, why) }
    }

    /// A problem that no single command fixes.
    pub fn trouble(about: &'static str, what: impl Into<String>, why: &str) -> Self {
        Self { level: Level::Warning, about, what: what.into(), why: why.to_owned(), fix: None }
    }
}

/// The cards' needs of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Needs {
    /// The tap device.
    tap: bool,
    /// A link of our own of any kind.
    link: bool,
    /// A bridge between the guest and other machines.
    bridge: bool,
    /// Forwarding between a network of ours and the rest of the world.
    forwarding: bool,
    /// The kernel's vhost-net.
    vhost: bool,
}

impl Needs {
    /// The needs of these cards; without any, those of a card on a bridge and of one behind NAT.
    fn of(cards: &[NetSpec]) -> Self {
        if cards.is_empty() {
            return Self { tap: true, link: true, bridge: true, forwarding: true, vhost: false };
        }
        let any = |is: fn(&NetSpec) -> bool| cards.iter().any(is);
        Self {
            tap: any(|card| !matches!(card, NetSpec::Macvtap(_))),
            link: any(|card| !matches!(card, NetSpec::Tap(_) | NetSpec::Fd(_))),
            bridge: any(|card| matches!(card, NetSpec::Bridge(_))),
            forwarding: any(|card| matches!(card, NetSpec::Nat(_))),
            vhost: any(|card| card.card().vhost == Switch::On),
        }
    }
}

/// Examines this host as a start with `request`, whose cards may be empty, would.
///
/// # Errors
/// The kernel does not answer the survey.
pub fn examine(request: &Request) -> Result<Vec<Finding>, Error> {
    let needs = Needs::of(&request.cards);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let (facts, plan) = runtime.map_err(Error::Runtime)?.block_on(async {
        let rtnl = Rtnl::connect().map_err(Error::Connect)?;
        let inherited = inherited::duplicates(&request.inherited_fds());
        let mut facts = prepare::facts(&rtnl, request, &inherited).await?;
        facts.ip = ip::survey(&rtnl, &facts.links).await.map_err(Error::Survey)?;
        let plan = prepare::plan_on(&rtnl, request, &mut facts).await;
        let plan = plan.and_then(|plan| preview::check_rules(&plan).map(|()| plan));
        Ok::<_, Error>((facts, plan))
    })?;
    let mut findings = privileges::look(needs);
    if !request.cards.is_empty() {
        findings.push(match plan {
            Ok(plan) => Finding::fine("plan", format!("{} steps would make the cards", plan.steps.len())),
            Err(error) => {
                let report = error.report();
                Finding::problem("plan", report.message, "a start is refused", report.hint)
            }
        });
    }
    findings.extend(looks(needs, request, &facts));
    Ok(findings)
}

/// The finding about Open vSwitch's answer.
fn ovs(fact: &OvsFact) -> Option<Finding> {
    match fact {
        OvsFact::NotAsked => None,
        OvsFact::There { bridges, .. } => {
            Some(Finding::fine("ovs", format!("Open vSwitch answers; its bridges: {}", bridges.join(", "))))
        }
        OvsFact::Trouble(error) => {
            Some(Finding::problem("ovs", error.to_string(), "the card's port cannot be made", error.hint()))
        }
    }
}

fn looks(needs: Needs, request: &Request, facts: &Facts) -> Vec<Finding> {
    [
        forwarding::look(needs, facts),
        traffic::look(needs, &request.cards, facts),
        firewall::look(needs, &request.cards, facts),
        if needs.link { managers::look(std::path::Path::new("/")) } else { Vec::new() },
        uplink::look(std::path::Path::new("/"), &request.cards, facts),
        ovs(&facts.ovs).into_iter().collect(),
    ]
    .concat()
}
