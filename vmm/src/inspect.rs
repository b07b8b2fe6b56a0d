//! Commands that inspect the host and its networks: `minivmm net` and `minivmm doctor`.

mod doctor;
mod list;

use crate::cli::Question;
use crate::error::Error;
use net::runtime_dir::RuntimeDir;
use net::{gc, policy, preview};
use serde_json::{Value, json};
use std::io;

/// Answers. Returns what is to be printed, and the exit code.
///
/// # Errors
/// A start would be refused, or the host does not tell what is needed.
pub(crate) fn answer(question: &Question) -> Result<(String, u8), Error> {
    let text = match question {
        Question::Doctor(inspection) => return doctor::report(inspection),
        Question::Plan(inspection) => {
            let plan = preview::preview(&inspection.request)?;
            if inspection.json { pretty(&preview::json(&plan)) } else { plan.to_string() }
        }
        Question::List { json } => {
            let vms = list::list()?;
            if *json { pretty(&vms) } else { list::table(&vms) }
        }
        Question::Policy(name, file) => {
            let replace = file.as_ref().map(|file| file.0.clone());
            let in_force = policy::ask(name.as_str(), replace)?;
            if file.is_some() { String::new() } else { pretty(&json!(in_force)) }
        }
        Question::Gc => {
            let gc::Collected { removed, rules, failed } = gc::collect()?;
            if !failed.is_empty() {
                return Err(net::Error::Teardown(failed).into());
            }
            let lines = removed.iter().map(|removed| format!("Removed {removed}\n"));
            let rules =
                (rules > 0).then(|| format!("Removed {rules} rules of VMs that have gone from chain DOCKER-USER\n"));
            let swept = RuntimeDir::open().map_err(io::Error::other).and_then(|folder| folder.sweep());
            let swept = swept.map_err(Error::host("remove the files of VMs that were killed"))?;
            let names = swept.iter().map(|name| format!("Removed the files of VM {name}, which was killed\n"));
            let text: String = lines.chain(rules).chain(names).collect();
            if text.is_empty() { "Nothing is left behind\n".to_owned() } else { text }
        }
    };
    Ok((text, 0))
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
