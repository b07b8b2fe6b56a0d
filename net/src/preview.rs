//! The plan of a start as text and JSON, made in the calling process. Knows no keeper and applies nothing.
//!
//! It changes nothing and needs no privilege. Only an attempt can tell the rest, which is left out: whether the user
//! may make taps, and whether another process holds a tap that has a single queue.

use serde_json::{Value, json};

use crate::error::Error;
use crate::host::mirror;
use crate::kernel::nft::{Batch, Command, Family, NftSocket, Table};
use crate::kernel::rtnl::Rtnl;
use crate::kernel::tun::TapKind;
use crate::plan::Plan;
use crate::policy::rules::{EnforcedCard, Generation, table};
use crate::prepare;
use crate::request::Request;
use crate::rules;
use crate::spec::Switch;
use crate::step::{ApplyPolicy, CreateTables, MirrorFrames, Step};
use crate::survey::inherited;

/// Plans the cards of `request` on this host as it is.
///
/// Random addresses, such as those of bridges that would be made, differ at the start itself.
///
/// # Errors
/// The plan is refused, or the host's facts cannot be read.
pub fn preview(request: &Request) -> Result<Plan, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    runtime.map_err(Error::Runtime)?.block_on(async {
        let rtnl = Rtnl::connect().map_err(Error::Connect)?;
        let inherited = inherited::duplicates(&request.inherited_fds());
        let mut facts = prepare::facts(&rtnl, request, &inherited).await?;
        let plan = prepare::plan_on(&rtnl, request, &mut facts).await?;
        check_rules(&plan)?;
        Ok(plan)
    })
}

/// Has the kernel check the rules of a plan, which may need modules that it does not have. Rules that are bound to a
/// tap, which does not exist yet, are left to the start, and so are all rules of a user without the privilege.
///
/// # Errors
/// The error that the start would give.
pub(crate) fn check_rules(plan: &Plan) -> Result<(), Error> {
    let routed = plan.steps.iter().flat_map(tables).filter(|table| table.name.family == Family::Inet);
    let commands: Vec<Command> = routed
        .map(|mut table| {
            // The VM may be running.
            table.name.name = format!("minivmm-check-{}", std::process::id());
            Command::AddTable(table)
        })
        .collect();
    if commands.is_empty() {
        return Ok(());
    }
    match NftSocket::open().and_then(|mut socket| socket.check(&Batch { commands })) {
        Err(error) if !error.is_forbidden() => Err(Error::Nftables(error)),
        _ => Ok(()),
    }
}

/// A plan as JSON: its cards, and its steps in order, each with its action (`text`) and its undo (`undo`) in words, and
/// the nftables that it makes (`rules`), in which the tap of card 0 is called `tap0`.
pub fn json(plan: &Plan) -> Value {
    let step = |step: &Step| {
        let mut value = json!(step);
        value["text"] = step.to_string().into();
        value["undo"] = step.undo_text().into();
        let tables = tables(step);
        if !tables.is_empty() {
            value["rules"] = tables.iter().map(|table| format!("{table}\n")).collect::<String>().into();
        }
        value
    };
    json!({ "cards": plan.cards, "steps": plan.steps.iter().map(step).collect::<Vec<_>>() })
}

/// The nftables that a step makes. The kernel, which has not named the taps yet, may name them otherwise.
fn tables(step: &Step) -> Vec<Table> {
    let tap = |card: usize| format!("tap{card}").parse().ok();
    match step {
        Step::CreateTables(CreateTables { vm, members, guards }) => rules::tables(vm, members, guards, tap),
        Step::MirrorFrames(MirrorFrames { vm, mirrors }) => {
            vec![mirror::table(vm, mirrors, |card| Some((tap(card)?, TapKind::Tap)))]
        }
        Step::ApplyPolicy(ApplyPolicy { vm, card, tap: present, served, policy }) => {
            let Some(tap) = present.clone().or_else(|| tap(*card)) else { return Vec::new() };
            let enforced = EnforcedCard { card: *card, tap, kind: TapKind::Tap, served: *served == Switch::On };
            vec![table(Generation { vm, number: 0 }, &enforced, policy)]
        }
        _ => Vec::new(),
    }
}
