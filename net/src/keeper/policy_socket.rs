//! The socket on which the keeper reports the policy of its VM and takes a new one.
//!
//! The VMM takes no part: it has dropped its privileges, and a guest that takes it over must stay subject to the
//! policy. So a caller must be root or the keeper's user, and have CAP_NET_ADMIN, which changing rules takes. Callers
//! are served one at a time, under a timeout.

#![allow(unsafe_code)] // SO_PEERPIDFD has no safe wrapper in the crates used here.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use libc::c_int;
use nix::poll::PollTimeout;
use nix::unistd::geteuid;
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};

use crate::error::Error;
use crate::identity::runtime_dir::{RuntimeDir, VmSocket};
use crate::plan::Plan;
use crate::policy::rules::EnforcedCard;
use crate::policy::{LINE_MAX, NOT_PERMITTED, Policy, PolicyReply, PolicyRequest};
use crate::refusal::Refusal;
use crate::step::{Applied, OpenServices, Step};

/// Timeout for a caller's request, and again for the reply.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Bit of this capability in a set (linux/capability.h).
const CAP_NET_ADMIN: u64 = 1 << 12;

/// Asks a Unix socket for a descriptor of the peer's process (asm-generic/socket.h).
const SO_PEERPIDFD: c_int = 77;

/// The keeper's end of the socket.
pub(super) struct PolicySocket(Option<UnixListener>);

/// A caller and its request.
pub(super) struct Caller {
    stream: UnixStream,
    pub(super) request: PolicyRequest,
}

impl PolicySocket {
    /// Opens the policy socket of a VM. If that fails, the policy stays as it is.
    pub(super) fn open(vm: &str) -> Self {
        let listen = || {
            let folder = RuntimeDir::open().map_err(io::Error::other)?;
            UnixListener::from_std(folder.listen(vm, VmSocket::Keeper)?)
        };
        let listener: io::Result<UnixListener> = listen();
        Self(
            listener
                .inspect_err(|error| log::warn!("The policy of this VM cannot be changed while it runs: {error}"))
                .ok(),
        )
    }

    /// Waits for the next authorised caller and its request.
    pub(super) async fn next(&self) -> Caller {
        let Some(listener) = &self.0 else { return std::future::pending().await };
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    log::warn!("Cannot accept a connection to the policy socket: {error}");
                    tokio::time::sleep(TIMEOUT).await;
                    continue;
                }
            };
            match tokio::time::timeout(TIMEOUT, receive(&stream)).await {
                Ok(Ok(request)) => return Caller { stream, request },
                Ok(Err(sentence)) => send(&stream, &PolicyReply::Refused(sentence)).await,
                Err(_) => log::debug!("A client of the policy socket sent no request in time"),
            }
        }
    }
}

impl Caller {
    /// Sends the reply.
    pub(super) async fn reply(self, reply: &PolicyReply) {
        send(&self.stream, reply).await;
    }
}

async fn send(stream: &UnixStream, reply: &PolicyReply) {
    let Ok(mut line) = serde_json::to_vec(reply) else { return };
    line.push(b'\n');
    // A caller that does not wait for the reply goes without it.
    let _ = tokio::time::timeout(TIMEOUT, write(stream, &line)).await;
}

/// Reads a caller's request, or gives the reason for a refusal.
async fn receive(stream: &UnixStream) -> Result<PolicyRequest, String> {
    let peer = stream.peer_cred().map_err(|error| format!("Cannot read the credentials of the client: {error}"))?;
    if !is_authorised(stream, &peer) {
        return Err(NOT_PERMITTED.to_owned());
    }
    let line = read_line(stream).await.map_err(|error| format!("Cannot read the request: {error}"))?;
    serde_json::from_slice(&line).map_err(|error| format!("Cannot read the request: {error}"))
}

/// Returns true if a caller is root or the keeper's user, and has CAP_NET_ADMIN.
fn is_authorised(stream: &UnixStream, peer: &UCred) -> bool {
    let user = peer.uid() == 0 || peer.uid() == geteuid().as_raw();
    if !user || !peer.pid().is_some_and(has_privilege) {
        return false;
    }
    // A number may be that of another process by now. The VMM of root is no root, so without a descriptor of the caller
    // (before Linux 6.5) root is believed.
    match peer_process(stream.as_fd()) {
        Some(process) => jail::pidfd::has_ended(process.as_fd(), PollTimeout::ZERO) == Ok(false),
        None => peer.uid() == 0,
    }
}

/// A descriptor of the process at the other end (`SO_PEERPIDFD`, Linux 6.5).
fn peer_process(stream: BorrowedFd<'_>) -> Option<OwnedFd> {
    const LEN: libc::socklen_t = 4;
    const _: () = assert!(LEN as usize == size_of::<RawFd>());
    let (mut fd, mut len): (RawFd, _) = (-1, LEN);
    // SAFETY: the kernel writes at most `len` bytes, which `fd` has.
    let result = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, (&raw mut fd).cast(), &raw mut len)
    };
    // SAFETY: the kernel has just put this descriptor into our table, and no other code knows its number.
    (result == 0 && fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// True if a process has CAP_NET_ADMIN, so that it could change rules of its own.
fn has_privilege(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    bits.is_some_and(|bits| bits & CAP_NET_ADMIN != 0)
}

async fn read_line(stream: &UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut bytes = vec![0; 16 * 1024];
    loop {
        stream.readable().await?;
        match stream.try_read(&mut bytes) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => line.extend_from_slice(&bytes[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if line.last() == Some(&b'\n') {
            return Ok(line);
        }
        if line.len() > LINE_MAX {
            return Err(ErrorKind::InvalidData.into());
        }
    }
}

async fn write(stream: &UnixStream, mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        stream.writable().await?;
        match stream.try_write(line) {
            Ok(sent) => line = &line[sent..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Carries out a caller's request and replies with the active policy.
pub(super) fn execute(plan: &Plan, made: &mut Applied, vm: &str, request: &PolicyRequest) -> PolicyReply {
    if let PolicyRequest::Replace(policy) = request {
        if let Err(error) = replace(plan, made, vm, policy) {
            return PolicyReply::Refused(error.report().message);
        }
        log::debug!("The policy of this VM has {} rules now", policy.ingress.len() + policy.egress.len());
    }
    PolicyReply::Active(made.active_policy.as_ref().map(|active| active.policy().clone()))
}

fn replace(plan: &Plan, made: &mut Applied, vm: &str, policy: &Policy) -> Result<(), Error> {
    policy.check_cards(plan.cards.len())?;
    if made.active_policy.is_some() {
        return made.replace_policy(vm, policy.clone()).map_err(Error::Policy);
    }
    let served = |card| {
        plan.steps.iter().any(|step| matches!(step, Step::OpenServices(OpenServices { card: of, .. }) if *of == card))
    };
    let enforced = |card| {
        plan.check_policy(card)?;
        let (tap, kind) = made.enforceable_tap(card)?;
        Ok(EnforcedCard { card, tap, kind, served: served(card) })
    };
    let cards = (0..plan.cards.len()).map(enforced).collect::<Result<Vec<_>, Refusal>>()?;
    made.enforce(vm, policy, cards).map_err(Error::Policy)
}
