//! What the host and its networks look like to minivmm, for the user: `minivmm net` and `minivmm doctor`.

mod doctor;
mod list;

use crate::cli::{NetWord, Question};
use crate::error::Error;
use net::{gc, preview};
use serde_json::Value;

/// Answers. Returns what is to be printed, and the exit code.
///
/// # Errors
/// What a start would be refused for, or the host does not tell.
pub(crate) fn answer(question: &Question) -> Result<(String, u8), Error> {
    match question {
        Question::Net(word) => networks(word).map(|text| (text, 0)),
        Question::Doctor(args) => doctor::examined(args),
    }
}

fn networks(word: &NetWord) -> Result<String, Error> {
    match word {
        NetWord::Plan(args) => {
            let plan = preview::preview(&args.request())?;
            Ok(if args.json { pretty(&preview::json(&plan)) } else { plan.to_string() })
        }
        NetWord::List { json } => {
            let vms = list::list()?;
            Ok(if *json { pretty(&vms) } else { list::table(&vms) })
        }
        NetWord::Gc => {
            let gc::Collected { removed, failed } = gc::collect()?;
            if !failed.is_empty() {
                return Err(net::Error::Teardown(failed).into());
            }
            let lines = removed.iter().map(|bridge| format!("Removed bridge {bridge}, which had no ports left\n"));
            Ok(if removed.is_empty() { "Nothing is left behind\n".to_owned() } else { lines.collect() })
        }
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
