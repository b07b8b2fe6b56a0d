//! Everything on a host that would keep cards from working, each with the one command that changes it. Changes nothing itself.
//!
//! Only looks: at what a plan is made from, and at what may swallow packets afterwards. Whoever may not see something is told so.
//! Not seen: single rules that drop some packets, eBPF programs, policy routing, and what firewalls of
//! other machines do.

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

/// How bad it is.
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

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What it is about, in a word.
    pub about: &'static str,
    /// What was found.
    pub what: String,
    /// Why it hurts; empty where it does not.
    pub why: String,
    /// The command, or the change, that helps.
    pub fix: Option<String>,
}

impl Finding {
    /// Something that is as it should be.
    pub fn fine(about: &'static str, what: impl Into<String>) -> Self {
        Self { level: Level::Fine, about, what: what.into(), why: String::new(), fix: None }
    }

    /// Something that keeps cards from working.
    pub fn problem(about: &'static str, what: impl Into<String>, why: impl Into<String>, fix: Option<String>) -> Self {
        Self { level: Level::Problem, about, what: what.into(), why: why.into(), fix }
    }

    /// Something that hurts and does not keep cards from working.
    fn warning(about: &'static str, what: impl Into<String>, why: &str, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..Self::trouble(about, what, why) }
    }

    /// The same where no one command helps.
    pub fn trouble(about: &'static str, what: impl Into<String>, why: &str) -> Self {
        Self { level: Level::Warning, about, what: what.into(), why: why.to_owned(), fix: None }
    }
}

/// What the cards need of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Needs {
    /// The device of taps.
    tap: bool,
    /// A link of our own of any kind.
    link: bool,
    /// A bridge between the guest and others.
    bridge: bool,
    /// Ways for packets between a network of ours and the rest of the world.
    forwarding: bool,
    /// The kernel's vhost-net.
    vhost: bool,
}

impl Needs {
    /// Those of these cards; without any, those of a card on a bridge and of one behind NAT.
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

/// Looks at this host with the eyes of a start with `request`, whose cards may be none.
///
/// # Errors
/// The host does not say what there is.
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

/// What has become of the question to Open vSwitch.
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
