//! The keeper's side: survey, plan, steps, hand-over, watch, undo.
//!
//! ```text
//!            survey, plan, apply           VMM died or stops
//! [start] ------------------------> [watch] -------------> [undo] --> [end]
//!    |  stale plan: undo, again        |  tap detached: attach again; link changed: tell the VMM
//!    +--> refused or failed: undo, say why --> [end]
//! ```

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Instant;

use jail::capabilities::{self, Capability};

use super::addresses::Addresses;
use super::conflict::Conflicts;
use super::firewall::Firewall;
use super::gateways::{Gateways, members};
use super::hand_over::hand_over;
use super::links::Taps;
use super::messages::Reply;
use super::mirrors::Mirrors;
use super::mtu::Mtus;
use super::policy_socket::{PolicySocket, execute};
use super::process;
use super::rest::Rest;
use super::set_up::{Clock, set_up, undo_all};
use super::upkeep::Upkeep;
use super::uplinks::Uplinks;
use super::vmm::{Ending, Vmm};
use super::{Callbacks, NotKept};
use crate::error::{Error, KeeperError, Report};
use crate::host::conntrack::{self, Moment};
use crate::host::docker;
use crate::host::lock::NamespaceLock;
use crate::identity::runtime_dir::clear_shared;
use crate::kernel::rtnl::concern::Concern;
use crate::kernel::rtnl::{Events, Rtnl};
use crate::plan::Plan;
use crate::request::Request;
use crate::rules::Member;
use crate::step::{Applied, CreateTap, MirrorFrames, Step};

/// A keeper's work: the request of its VMM, and code of the VMM that it calls.
pub(super) struct Assignment<'a> {
    pub(super) request: &'a Request,
    pub(super) callbacks: &'a Callbacks<'a>,
}

/// Runs the keeper to its end. Returns the exit code of its process, which holds `lock` until then.
pub(super) fn run(socket: OwnedFd, vmm: OwnedFd, lock: Option<BorrowedFd>, assignment: &Assignment<'_>) -> i32 {
    let birth = Instant::now();
    let lock = lock.map(|lock| lock.as_raw_fd());
    let mut inherited =
        process::detach(&[&socket, &vmm], &Vec::from_iter(assignment.request.inherited_fds().into_iter().chain(lock)));
    let lock = lock.and_then(|number| inherited.remove(&number));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(serve(&socket, vmm, assignment, inherited, birth, lock.as_ref())),
        Err(source) => fail(&socket, &Error::Runtime(source)),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            // The VMM has gone, or the socket would have taken it.
            log::error!("{}", error.report().message);
            1
        }
    }
}

async fn serve(
    socket: &OwnedFd,
    vmm: OwnedFd,
    assignment: &Assignment<'_>,
    inherited: BTreeMap<RawFd, OwnedFd>,
    birth: Instant,
    lock: Option<&OwnedFd>,
) -> Result<(), Error> {
    let request = assignment.request;
    let mut vmm = match Vmm::new(socket, vmm) {
        Ok(vmm) => vmm,
        Err(source) => return fail(socket, &KeeperError::Socket(source).into()),
    };
    if request.cards.is_empty() {
        // The name is all that there is to look after.
        (assignment.callbacks.confine)();
        vmm.ended().await;
        leave(socket, &request.vm_name, lock, Vec::new());
        return Ok(());
    }
    let rtnl = match Rtnl::connect() {
        Ok(rtnl) => rtnl,
        Err(source) => return fail(socket, &Error::Connect(source)),
    };
    let mut made = Applied::new(rtnl, &request.vm_name, inherited);
    let mut clock = Clock::new(birth);
    clock.lap(|timing| &mut timing.connect_us);
    let plan = match set_up(&mut vmm, &mut made, request, &mut clock).await {
        Ok(plan) => plan,
        Err(error @ Error::Keeper(KeeperError::Unwanted)) => {
            // A VMM that waits for the end reads it; one that died does not.
            let _ = fail(socket, &error);
            return Ok(());
        }
        Err(error) => return fail(socket, &error),
    };
    let members: Vec<&Member> = members(&plan).collect();
    let policy_socket = PolicySocket::open(&request.vm_name);
    let answer = hand_over(socket, &plan, &mut made, request.steering.as_ref(), clock.timing);
    if answer.is_ok() {
        (assignment.callbacks.confine)();
        // Nothing of the set-up needs more: programs of the kernel are loaded, devices open.
        if let Err(errno) = capabilities::keep(&[Capability::NetAdmin, Capability::NetRaw, Capability::Kill]) {
            log::warn!("The network keeper keeps privileges that it does not need: {errno}");
        }
        conntrack::forget(&made.rtnl, &members, Moment::Start).await;
        if watch(socket, &mut vmm, &plan, &mut made, &policy_socket, assignment).await != Ending::Died {
            // It could go on without its rules.
            lower_taps(&plan, &made).await;
        }
    }
    let reports = tear_down(&plan.steps, &mut made).await;
    // The rules have gone now.
    conntrack::forget(&made.rtnl, &members, Moment::End).await;
    for report in &reports {
        log::error!("{}", report.message);
    }
    leave(socket, &request.vm_name, lock, reports);
    answer
}

/// Removes the files of the VM's name, and tells the VMM what could not be undone.
fn leave(socket: &OwnedFd, vm: &str, lock: Option<&OwnedFd>, reports: Vec<Report>) {
    if let Some(lock) = lock {
        clear_shared(vm, lock.as_fd());
    }
    // A VMM that called stop() waits for this; one that died does not read it.
    let _ = Reply::Stopped(reports).send(socket.as_fd(), &[]);
}

/// Lowers the taps that were made for the VM, so that none is up without its rules.
async fn lower_taps(plan: &Plan, made: &Applied) {
    let own = plan.steps.iter().filter_map(|step| match step {
        Step::CreateTap(CreateTap { card, .. }) => made.taps.get(card),
        _ => None,
    });
    for tap in own {
        match made.rtnl.lower(&tap.name).await {
            Err(error) if error.raw_os_error() != Some(libc::ENODEV) => {
                log::error!("Cannot lower the tap {} before its rules go: {error}", tap.name);
            }
            _ => {}
        }
    }
}

/// Reports the failure to the VMM.
fn fail(socket: &OwnedFd, error: &Error) -> Result<(), Error> {
    Ok(Reply::Failed(error.report()).send(socket.as_fd(), &[])?)
}

/// Looks after the taps until the VMM ends, and returns how.
async fn watch(
    socket: &OwnedFd,
    vmm: &mut Vmm<'_>,
    plan: &Plan,
    made: &mut Applied,
    policy_socket: &PolicySocket,
    assignment: &Assignment<'_>,
) -> Ending {
    let request = assignment.request;
    let mut taps = Taps::new(plan, made, socket);
    let mut conflicts = Conflicts::new(plan, made);
    let mut addresses = Addresses::new(plan, made, &request.vm_name);
    let mut upkeep = Upkeep::new(plan);
    let (mut gateways, mut mtus) = (Gateways::new(plan), Mtus::new(plan, request));
    let (mut firewall, mut uplinks) = (Firewall::new(plan, &request.vm_name), Uplinks::new(plan));
    let mut mirrors = Mirrors::new(plan, &request.vm_name);
    let mut told = Vec::new();
    let ending = match Events::subscribe(&concern(plan, made)) {
        Ok(mut events) => {
            // Catches up with events from before the subscription.
            taps.look(made).await;
            let mut rest = Rest::new(assignment.callbacks.release_memory);
            // Created once, so that other events do not restart it.
            let mut calling = Box::pin(policy_socket.next());
            loop {
                rest.note();
                let not_kept = taps.not_kept().chain(gateways.not_kept()).chain(firewall.not_kept());
                let not_kept =
                    not_kept.chain(uplinks.not_kept()).chain(mirrors.not_kept()).chain(upkeep.not_kept()).collect();
                tell(socket, not_kept, &mut told);
                tokio::select! {
                    biased;
                    ending = vmm.ended() => break Some(ending),
                    message = events.next() => {
                        let Some(message) = message else {
                            log::error!("The kernel's link notifications have ended, so a detached tap stays detached");
                            break None;
                        };
                        taps.note(&message, made).await;
                        if taps.are_gone() {
                            forget_rules(made);
                        }
                        upkeep.note(&message);
                        gateways.note(&message);
                        uplinks.note(&message);
                        mirrors.note(&message);
                        mirrors.look(made);
                        mtus.note(&message);
                        conflicts.note(&message, &made.rtnl, socket).await;
                    }
                    () = taps.wait() => taps.catch_up(made).await,
                    () = gateways.wait() => gateways.look(&made.rtnl).await,
                    () = uplinks.wait() => uplinks.look(&made.rtnl).await,
                    () = firewall.wait() => firewall.look(made).await,
                    () = mtus.wait() => mtus.look(&made.rtnl, socket).await,
                    () = addresses.claimed() => addresses.read(made, &mut taps).await,
                    idx = conflicts.claimed() => conflicts.read(idx, socket),
                    () = upkeep.due() => {
                        if upkeep.look(made).await {
                            mtus.note_routes();
                        }
                    }
                    caller = calling.as_mut() => {
                        let reply = execute(plan, made, &request.vm_name, &caller.request);
                        caller.reply(&reply).await;
                        calling = Box::pin(policy_socket.next());
                    }
                    () = rest.due() => rest.take(),
                }
            }
        }
        Err(error) => {
            log::error!("Cannot subscribe to link notifications, so a detached tap stays detached: {error}");
            None
        }
    };
    let ending = match ending {
        Some(ending) => ending,
        None => vmm.ended().await,
    };
    if ending == Ending::Violated {
        log::error!("The VMM has sent something to its keeper, which it never does: it is ended");
        vmm.kill();
    }
    // The kernel takes 10 ms and more to close a packet socket. Without room for a thread it is done here.
    let listeners = (conflicts, addresses);
    let _ = std::thread::Builder::new().spawn(move || drop(listeners));
    ending
}

/// Removes the rules of a VM whose taps have gone, which means that it is ending. So the kernel frees rules and taps at
/// the same time. Those that keep the host from becoming a router are left for later.
fn forget_rules(made: &mut Applied) {
    if let Err(error) = made.remove_rules() {
        log::debug!("Cannot remove the rules of this VM before its end: {}", Error::Nftables(error).report().message);
    }
}

/// The notifications that a VM needs.
fn concern(plan: &Plan, made: &Applied) -> Concern {
    let taps = made.taps.values().filter_map(|tap| tap.index).collect();
    let named = plan.steps.iter().flat_map(|step| match step {
        Step::MirrorFrames(MirrorFrames { mirrors, .. }) => mirrors.as_slice(),
        _ => &[],
    });
    let named = named.map(|mirror| mirror.to.clone()).collect();
    Concern { taps, macs: plan.cards.iter().map(|card| card.mac).collect(), named }
}

/// Tells the VMM which promises are not kept, if that has changed. If its socket has no room now, it is told at the
/// next change of anything.
fn tell(socket: &OwnedFd, not_kept: Vec<NotKept>, told: &mut Vec<NotKept>) {
    if not_kept == *told {
        return;
    }
    // One that has gone is noticed by its end of the socket.
    if !matches!(Reply::NotKept(not_kept.clone()).try_send(socket.as_fd()), Ok(false)) {
        *told = not_kept;
    }
}

async fn tear_down(steps: &[Step], made: &mut Applied) -> Vec<Report> {
    let shared = steps.iter().any(|step| step.bridge().is_some());
    let _lock = if shared { Some(NamespaceLock::take().await) } else { None };
    // Also those that came with a Docker that was started later, of which no step knows.
    let withdrawn = docker::withdraw(&std::mem::take(&mut made.admitted)).map_err(Error::Docker);
    let mut reports: Vec<Report> = withdrawn.err().iter().map(Error::report).collect();
    reports.extend(undo_all(steps, made).await);
    // Also tables that came later, for a policy or a new way out.
    reports.extend(made.remove_tables(|_| true).err().map(|error| Error::Nftables(error).report()));
    reports
}
