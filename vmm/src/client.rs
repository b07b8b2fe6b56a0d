//! The caller's side of a request to a VM that runs: `minivmm counters`, `minivmm link` and
//! `minivmm net list`.

use crate::error::Error;
use crate::name::{VmName, is_gone};
use crate::request::{Reply, Request};
use net::runtime_dir::{self, VmSocket};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long a VM may take to answer. One that starts, or is being restarted, answers when it runs.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The answer to whoever may not ask.
pub(crate) const NOT_ALLOWED: &str = "Only root and the user who started this VM may ask it";

/// Longest reply in bytes: the counters of a few thousand queues.
const LONGEST_REPLY: u64 = 16 << 20;

/// Asks the VM called `name`. Returns what is to be printed.
///
/// # Errors
/// There is no such VM, it refuses, or does not answer.
pub(crate) fn ask(name: &VmName, request: &Request) -> Result<String, Error> {
    match query(name, request)? {
        Reply::Done => Ok(String::new()),
        Reply::Counters(value) | Reply::Network(value) => Ok(format!("{value:#}\n")),
        Reply::Refused(sentence) => {
            Err(Error::Usage { sentence, hint: "See minivmm --help for what a VM can be asked".to_owned() })
        }
    }
}

/// Asks the VM called `name`. Returns what it says.
///
/// # Errors
/// There is no such VM, or it does not answer.
pub(crate) fn query(name: &VmName, request: &Request) -> Result<Reply, Error> {
    exchange(&connect(name)?, request).map_err(Error::host("ask the VM"))
}

fn connect(name: &VmName) -> Result<UnixStream, Error> {
    runtime_dir::connect(name.as_str(), VmSocket::Control, TIMEOUT).map_err(|err| match err.kind() {
        _ if is_gone(&err) => Error::Usage {
            sentence: format!("No VM with the name {name} is running"),
            hint: "Give the name that the VM was started with: --name; a user's VMs are known to that user".to_owned(),
        },
        io::ErrorKind::PermissionDenied => {
            Error::Usage { sentence: NOT_ALLOWED.to_owned(), hint: format!("The VM {name} is root's") }
        }
        _ => Error::Host { operation: "connect to the VM", source: err },
    })
}

fn exchange(mut stream: &UnixStream, request: &Request) -> io::Result<Reply> {
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    match stream.write_all(line.as_bytes()) {
        // A VM that refuses the caller does so without listening.
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => {}
        result => result?,
    }
    let mut reply = String::new();
    BufReader::new(stream.take(LONGEST_REPLY)).read_line(&mut reply)?;
    if reply.is_empty() {
        return Err(io::Error::other("it has hung up without an answer"));
    }
    Ok(serde_json::from_str(&reply)?)
}
