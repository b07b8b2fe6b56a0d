//! NAT beside a bridge without a VM: what a round trip costs more, and how many connections one network holds; and the
//! network's DNS beside dnsmasq.
//!
//! The measuring is done by `host measure` of `net/tests/host`, which has guests that are namespaces.

use serde_json::{Value, json};
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// The measurements.
const WHAT: [&str; 3] = ["trips", "connections", "names"];

/// Runs all and returns what they say.
///
/// # Errors
/// If one fails.
pub fn run(program: &Path) -> io::Result<Value> {
    let [trips, connections, names] = WHAT.map(|what| measure(program, what));
    Ok(json!({ "trips": trips?, "connections": connections?, "names": names? }))
}

fn measure(program: &Path, what: &str) -> io::Result<Value> {
    let output =
        Command::new(program).args(["measure", what]).stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("{what}: {}", output.status)));
    }
    serde_json::from_slice(&output.stdout).map_err(io::Error::other)
}
