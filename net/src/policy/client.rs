//! The client of `minivmm net policy`, and the messages of both sides.
//!
//! A client connects to the socket of a VM's keeper in the [folder](crate::identity::runtime_dir) of the VM's user,
//! sends one request and gets one reply; each is a line of JSON.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{POLICY_BYTES_MAX, Policy};
use crate::identity::runtime_dir::{self, VmSocket};

/// Timeout for the keeper's answer. The keeper may be busy with a link.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Most bytes of a line: a policy and its envelope.
pub(crate) const LINE_MAX: usize = POLICY_BYTES_MAX + 4096;

/// A request to a keeper, in JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum PolicyRequest {
    /// Shows the policy in force.
    Show,
    /// Replaces the policy in force by this one.
    Replace(Policy),
}

/// The keeper's reply, in JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PolicyReply {
    /// The policy in force now, if any.
    Active(Option<Policy>),
    /// The request is refused: the reason, a sentence.
    Refused(String),
}

/// A failed request to a keeper.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No keeper listens.
    #[error("No VM with the name {0} and a network card is running")]
    NoVm(String),
    /// The VM is another user's.
    #[error("{NOT_PERMITTED}")]
    NotPermitted,
    /// The line is longer than a keeper reads.
    #[error("The policy has more than {} KiB as text", POLICY_BYTES_MAX >> 10)]
    TooLong,
    /// The keeper refuses the request.
    #[error("{0}")]
    Refused(String),
    /// An I/O error on the socket.
    #[error("Cannot exchange messages with the keeper of the VM")]
    Exchange(#[source] io::Error),
}

/// The reply to a client without the permission to ask.
pub(crate) const NOT_PERMITTED: &str =
    "Only root and the user who started this VM may ask for its policy, with CAP_NET_ADMIN";

/// Asks the keeper of a VM for its policy, which is replaced first if `replace` is given. On success all of the new
/// policy is in force; on an error nothing has changed.
///
/// # Errors
/// No such VM runs, its keeper refuses, or the socket fails.
pub fn ask(vm: &str, replace: Option<Policy>) -> Result<Option<Policy>, AskError> {
    let stream = runtime_dir::connect(vm, VmSocket::Keeper, TIMEOUT).map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => AskError::NoVm(vm.to_owned()),
        io::ErrorKind::PermissionDenied => AskError::NotPermitted,
        _ => AskError::Exchange(error),
    })?;
    let request = replace.map_or(PolicyRequest::Show, PolicyRequest::Replace);
    match exchange(&stream, &request)? {
        PolicyReply::Active(policy) => Ok(policy),
        PolicyReply::Refused(sentence) => Err(AskError::Refused(sentence)),
    }
}

fn exchange(mut stream: &UnixStream, request: &PolicyRequest) -> Result<PolicyReply, AskError> {
    let mut line = serde_json::to_vec(request).map_err(|error| AskError::Exchange(error.into()))?;
    line.push(b'\n');
    if line.len() > LINE_MAX {
        return Err(AskError::TooLong);
    }
    let mut round_trip = || {
        match stream.write_all(&line) {
            // A keeper refuses a client without reading its request.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            result => result?,
        }
        let mut reply = String::new();
        let most = u64::try_from(LINE_MAX).unwrap_or(u64::MAX);
        BufReader::new(stream.take(most)).read_line(&mut reply)?;
        Ok(serde_json::from_str(&reply)?)
    };
    round_trip().map_err(AskError::Exchange)
}
