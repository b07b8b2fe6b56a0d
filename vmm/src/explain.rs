//! What the host's networks look like to minivmm, for the user: `minivmm net`.

mod list;

use crate::cli::NetWord;
use crate::error::Error;
use net::{gc, preview};
use serde_json::Value;

/// Answers `word`. Returns what is to be printed.
///
/// # Errors
/// What a start would be refused for, or the host does not tell.
pub(crate) fn answer(word: &NetWord) -> Result<String, Error> {
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
