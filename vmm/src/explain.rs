//! What the host's networks look like to minivmm, for the user: `minivmm net`.

use crate::cli::NetWord;
use crate::error::Error;
use net::preview;
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
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
