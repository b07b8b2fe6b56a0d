//! The keeper's side: survey, plan, steps, hand-over, watch, undo.
//!
//! ```text
//!            survey, plan, apply            socket closed
//! [start] ------------------------> [watch] -------------> [undo] --> [end]
//!    |  stale plan: undo, again        |  tap detached: attach again; link changed: tell the VMM
//!    +--> refused or failed: undo, say why --> [end]
//! ```

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::pin::pin;
use std::time::Instant;

use tokio::net::UnixStream;

use super::NotKept;
use super::addresses::Addresses;
use super::conflict::Conflicts;
use super::firewall::Firewall;
use super::gateways::Gateways;
use super::links::Watch;
use super::messages::{PortHeader, Reply, ServiceHeader, Timing};
use super::mirrors::Mirrors;
use super::mtu::Mtus;
use super::policy_socket::Desk;
use super::process;
use super::rest::Rest;
use super::upkeep::Upkeep;
use super::uplinks::Uplinks;
use crate::address_listener::Lookout;
use crate::error::{Error, Report};
use crate::host::conntrack::{self, Moment};
use crate::host::docker;
use crate::host::lock::NamespaceLock;
use crate::identity::runtime_dir::clear_shared;
use crate::kernel::bpf::{Steering, SteeringProgram};
use crate::kernel::rtnl::concern::Concern;
use crate::kernel::rtnl::{Events, Rtnl};
use crate::kernel::tun::TapKind;
use crate::plan::Plan;
use crate::policy::rules::Judged;
use crate::policy::{Answer, Order, Policy};
use crate::refusal::Refusal;
use crate::request::Request;
use crate::spec::NetSpec;
use crate::step::{Host, Step};
use crate::survey::{plan_with_neighbours, survey};

/// How often a plan is made anew because the host changed between survey and step. Keepers keep out of each other's
/// way with a lock, so this takes somebody else who makes and removes bridges in the same millisecond.
const ATTEMPTS: usize = 4;

/// Runs the keeper to its end. Returns the exit code of its process, which holds `lock` until then.
pub(super) fn run(socket: OwnedFd, request: &Request, lock: Option<BorrowedFd>) -> i32 {
    let birth = Instant::now();
    let lock = lock.map(|lock| lock.as_raw_fd());
    let mut inherited = process::detach(&socket, &Vec::from_iter(request.inherited_fds().into_iter().chain(lock)));
    let lock = lock.and_then(|number| inherited.remove(&number));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(serve(&socket, request, inherited, birth, lock.as_ref())),
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
    request: &Request,
    inherited: BTreeMap<RawFd, OwnedFd>,
    birth: Instant,
    lock: Option<&OwnedFd>,
) -> Result<(), Error> {
    let rtnl = match Rtnl::connect() {
        Ok(rtnl) => rtnl,
        Err(source) => return fail(socket, &Error::Connect(source)),
    };
    let mut host = Host::new(rtnl, &request.vm_name, inherited);
    let mut clock = Clock { last: birth, timing: Timing::default() };
    clock.lap(|timing| &mut timing.connect_us);
    let plan = match set_up(socket, &mut host, request, &mut clock).await {
        Ok(plan) => plan,
        Err(Error::Unwanted) => {
            // A VMM that waits for the end reads it; one that died does not.
            let _ = fail(socket, &Error::Unwanted);
            return Ok(());
        }
        Err(error) => return fail(socket, &error),
    };
    let desk = Desk::open(&request.vm_name);
    let answer = hand_over(socket, &plan, &mut host, request.steering.as_ref(), clock.timing);
    if answer.is_ok() {
        conntrack::forget(&host.rtnl, &plan.steps, Moment::Start).await;
        watch(socket, &plan, &mut host, &desk, request).await;
    }
    let reports = tear_down(&plan.steps, &mut host).await;
    // Without the rules now.
    conntrack::forget(&host.rtnl, &plan.steps, Moment::End).await;
    for report in &reports {
        log::error!("{}", report.message);
    }
    if let Some(lock) = lock {
        clear_shared(&request.vm_name, lock.as_fd());
    }
    // A VMM that called stop() waits for this; one that died does not read it.
    let _ = Reply::Stopped(reports).send(socket.as_fd(), &[]);
    answer
}

/// Says why there are no cards.
fn fail(socket: &OwnedFd, error: &Error) -> Result<(), Error> {
    Reply::Failed(error.report()).send(socket.as_fd(), &[])
}

/// Surveys, plans and applies, and leaves nothing behind if that fails.
async fn set_up(socket: &OwnedFd, host: &mut Host, request: &Request, clock: &mut Clock) -> Result<Plan, Error> {
    let mut attempt = 1;
    loop {
        match try_set_up(socket, host, request, clock).await {
            Err(error) if error.is_stale_plan() && attempt < ATTEMPTS => {
                log::info!("Plan again, the host changed meanwhile: {}", error.report().message);
                attempt += 1;
            }
            result => return result,
        }
    }
}

async fn try_set_up(socket: &OwnedFd, host: &mut Host, request: &Request, clock: &mut Clock) -> Result<Plan, Error> {
    let _lock = lock_if_shared(&request.cards, socket).await?;
    let mut facts = survey(&host.rtnl, &request.cards, &host.inherited).await.map_err(Error::Survey)?;
    clock.lap(|timing| &mut timing.survey_us);
    let plan = plan_with_neighbours(&host.rtnl, request, &mut facts).await?;
    clock.lap(|timing| &mut timing.plan_us);
    for (done, step) in plan.steps.iter().enumerate() {
        log::debug!("{step}");
        if let Err(error) = step.apply(host).await {
            // The failed step as well: it may have got half-way.
            for report in undo_all(&plan.steps[..=done], host).await {
                log::error!("{}", report.message);
            }
            return Err(error);
        }
    }
    clock.lap(|timing| &mut timing.apply_us);
    Ok(plan)
}

/// Sends the ports and lets go of their descriptors, so that the taps live exactly as long as the VMM has them open.
fn hand_over(
    socket: &OwnedFd,
    plan: &Plan,
    host: &mut Host,
    steering: Option<&SteeringProgram>,
    timing: Timing,
) -> Result<(), Error> {
    for (card_idx, card) in plan.cards.iter().enumerate() {
        let Some(tap) = host.taps.get_mut(&card_idx) else { return Err(Error::Protocol) };
        let mut vhosts = host.vhosts.remove(&card_idx).unwrap_or_default();
        // A card on vhost-net does not offer what a program is for, and a macvtap takes none.
        let takes_program = vhosts.is_empty() && tap.fds.len() > 1 && tap.kind == TapKind::Tap;
        let steering = steering.filter(|_| takes_program);
        let service = host.services.remove(&card_idx);
        // Services know what address they have given.
        let lookout = tap.index.filter(|_| service.is_none()).and_then(|index| listen(index, tap.kind));
        let claim = host.claims.get(&card_idx).map(OwnedFd::try_clone).transpose().map_err(Error::Socket)?;
        let header = PortHeader {
            tap_name: tap.name.clone(),
            bridge: plan.bridge_of(card_idx).map(ToString::to_string),
            foreign_rules: plan.foreign_rules_of(card_idx),
            mac: card.mac,
            mtu: card.mtu,
            offload: card.offload,
            queues: tap.fds.len(),
            vhosts: vhosts.len(),
            lookouts: lookout.iter().len(),
            claims: claim.iter().len(),
            service: service
                .as_ref()
                .map(|(spec, _)| ServiceHeader { spec: spec.clone(), alias: plan.alias_of(card_idx) }),
        };
        let mut fds = std::mem::take(&mut tap.fds);
        fds.append(&mut vhosts);
        fds.extend(lookout.map(Lookout::into_socket));
        fds.extend(claim);
        fds.extend(service.map(|(_, socket)| socket));
        if let Some(Steering { program, map }) = steering.and_then(load) {
            fds.extend([program, map]);
        }
        Reply::Port(header).send(socket.as_fd(), &fds)?;
    }
    host.inherited.clear();
    // Also for tables that are made later, for a policy. A kernel without nf_tables has none of them.
    let tables = host.owner().ok().map(|tables| tables.share()).transpose().map_err(Error::ShareTables)?;
    Reply::Ready(timing).send(socket.as_fd(), &Vec::from_iter(tables))
}

/// What hears the guest behind the tap with this number.
fn listen(index: u32, kind: TapKind) -> Option<Lookout> {
    let lookout = Lookout::open(index, kind);
    lookout.inspect_err(|error| log::info!("The address of a guest cannot be heard: {error}")).ok()
}

/// A card's steering program; none if the kernel refuses it, which costs the card speed when its guest asks for steering.
fn load(steering: &SteeringProgram) -> Option<Steering> {
    let loaded = steering.load();
    loaded.inspect_err(|error| log::info!("The kernel does not take a steering program for taps: {error}")).ok()
}

/// Looks after the taps until the VMM closes its end, or dies.
async fn watch(socket: &OwnedFd, plan: &Plan, host: &mut Host, desk: &Desk, request: &Request) {
    let end = match pollable(socket) {
        Ok(end) => end,
        Err(error) => {
            // Better to undo a running VM's network, which it survives, than to leave a dead one's.
            log::error!("The network keeper cannot wait for the end of the VM: {error}");
            return;
        }
    };
    // The VMM never sends anything, so readable means closed.
    let mut closed = pin!(end.readable());
    let mut watch = Watch::new(plan, host, socket);
    let mut conflicts = Conflicts::new(plan, host);
    let mut addresses = Addresses::new(plan, host, &request.vm_name);
    let mut upkeep = Upkeep::new(plan);
    let (mut gateways, mut mtus) = (Gateways::new(plan), Mtus::new(plan, request));
    let (mut firewall, mut uplinks) = (Firewall::new(plan, &request.vm_name), Uplinks::new(plan));
    let mut mirrors = Mirrors::new(plan, &request.vm_name);
    let mut told = Vec::new();
    match Events::subscribe(&concern(plan, host)) {
        Ok(mut events) => {
            // What happened before the subscription.
            watch.look(host).await;
            let mut rest = Rest::new();
            // Goes on where it was when something else happens.
            let mut calling = Box::pin(desk.next());
            loop {
                rest.note();
                let not_kept = watch.not_kept().chain(gateways.not_kept()).chain(firewall.not_kept());
                let not_kept =
                    not_kept.chain(uplinks.not_kept()).chain(mirrors.not_kept()).chain(upkeep.not_kept()).collect();
                tell(socket, not_kept, &mut told);
                tokio::select! {
                    biased;
                    _ = closed.as_mut() => break,
                    message = events.next() => {
                        let Some(message) = message else {
                            log::error!("The kernel's link notifications ended: a detached tap will stay detached");
                            break;
                        };
                        watch.note(&message, host).await;
                        if watch.are_gone() {
                            forget_rules(host);
                        }
                        upkeep.note(&message);
                        gateways.note(&message);
                        uplinks.note(&message);
                        mirrors.note(&message);
                        mirrors.look(host);
                        mtus.note(&message);
                        conflicts.note(&message, &host.rtnl, socket).await;
                    }
                    () = watch.wait() => watch.catch_up(host).await,
                    () = gateways.wait() => gateways.look(&host.rtnl).await,
                    () = uplinks.wait() => uplinks.look(&host.rtnl).await,
                    () = firewall.wait() => firewall.look(host).await,
                    () = mtus.wait() => mtus.look(&host.rtnl, socket).await,
                    () = addresses.heard() => addresses.hear(host, &mut watch).await,
                    idx = conflicts.claimed() => conflicts.hear(idx, socket),
                    () = upkeep.due() => {
                        if upkeep.look(host).await {
                            mtus.note_routes();
                        }
                    }
                    caller = calling.as_mut() => {
                        let answer = obey(plan, host, request, &caller.order);
                        caller.answer(&answer).await;
                        calling = Box::pin(desk.next());
                    }
                    () = rest.due() => rest.take(),
                }
            }
        }
        Err(error) => log::error!("No link notifications, a detached tap will stay detached: {error}"),
    }
    let _ = end.readable().await;
    // The kernel takes 10 ms and more to close a packet socket. Without room for a thread it is done here.
    let ears = (conflicts, addresses);
    let _ = std::thread::Builder::new().spawn(move || drop(ears));
}

/// Removes the rules of a VM whose taps have gone: it ends, and the kernel takes its time for them while it does for
/// the taps. Those that keep the host from becoming a router are left for later.
fn forget_rules(host: &mut Host) {
    if let Err(error) = host.remove_tables() {
        log::debug!("The rules of this VM are removed at its end: {}", Error::Nftables(error).report().message);
    }
}

/// The notifications that a VM needs.
fn concern(plan: &Plan, host: &Host) -> Concern {
    let taps = host.taps.values().filter_map(|tap| tap.index).collect();
    let named = plan.steps.iter().flat_map(|step| match step {
        Step::MirrorFrames { mirrors, .. } => mirrors.as_slice(),
        _ => &[],
    });
    let named = named.map(|mirror| mirror.to.clone()).collect();
    Concern { taps, macs: plan.cards.iter().map(|card| card.mac).collect(), named }
}

/// Does what a caller wants, and says what is in force.
fn obey(plan: &Plan, host: &mut Host, request: &Request, order: &Order) -> Answer {
    if let Order::Replace(policy) = order {
        if let Err(error) = replace(plan, host, request, policy) {
            return Answer::Refused(error.report().message);
        }
        log::debug!("The policy of this VM has {} rules now", policy.ingress.len() + policy.egress.len());
    }
    Answer::InForce(host.in_force.as_ref().map(|in_force| in_force.policy().clone()))
}

fn replace(plan: &Plan, host: &mut Host, request: &Request, policy: &Policy) -> Result<(), Error> {
    policy.check_cards(plan.cards.len())?;
    if host.in_force.is_some() {
        return host.replace_policy(&request.vm_name, policy.clone()).map_err(Error::Policy);
    }
    let served =
        |card| plan.steps.iter().any(|step| matches!(step, Step::OpenServices { card: other, .. } if *other == card));
    let judged = |card| {
        plan.check_policy(card)?;
        let (tap, kind) = host.judged_tap(card)?;
        Ok(Judged { card, tap, kind, served: served(card) })
    };
    let cards = (0..plan.cards.len()).map(judged).collect::<Result<Vec<_>, Refusal>>()?;
    host.judge(&request.vm_name, policy, cards).map_err(Error::Policy)
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

/// The socket as something tokio can wait for. It only asks for readiness, which does not differ by socket type.
pub(super) fn pollable(socket: &OwnedFd) -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(socket.try_clone()?);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

async fn tear_down(steps: &[Step], host: &mut Host) -> Vec<Report> {
    let shared = steps.iter().any(|step| step.bridge().is_some());
    let _lock = if shared { Some(NamespaceLock::take().await) } else { None };
    // Also those that came with a Docker that was started later, of which no step knows.
    let withdrawn = docker::withdraw(&std::mem::take(&mut host.admitted)).map_err(Error::Docker);
    let mut reports: Vec<Report> = withdrawn.err().iter().map(Error::report).collect();
    reports.extend(undo_all(steps, host).await);
    reports
}

/// Undoes every step from the last to the first, whatever the others say.
async fn undo_all(steps: &[Step], host: &mut Host) -> Vec<Report> {
    let mut reports = Vec::new();
    for step in steps.iter().rev() {
        if let Err(error) = step.undo(host).await {
            reports.push(error.report());
        }
    }
    reports.extend(host.finish_undo().await.iter().map(Error::report));
    reports
}

/// The lock, if the cards need it. A VMM that ends meanwhile does not have to wait for it.
async fn lock_if_shared(cards: &[NetSpec], socket: &OwnedFd) -> Result<Option<NamespaceLock>, Error> {
    let shares = |card: &NetSpec| {
        matches!(card, NetSpec::Bridge(_)) || card.private().is_some() || card.shared_interface().is_some()
    };
    if !cards.iter().any(shares) {
        return Ok(None);
    }
    let Ok(end) = pollable(socket) else { return Ok(Some(NamespaceLock::take().await)) };
    let lock = tokio::select! {
        biased;
        lock = NamespaceLock::take() => lock,
        _ = end.readable() => return Err(Error::Unwanted),
    };
    // What follows writes to the socket and waits for room.
    end.into_std().and_then(|end| end.set_nonblocking(false)).map_err(Error::Socket)?;
    Ok(Some(lock))
}

/// Measures phases that follow each other.
struct Clock {
    last: Instant,
    timing: Timing,
}

impl Clock {
    /// Adds the time since the previous lap to a phase.
    fn lap(&mut self, phase: impl FnOnce(&mut Timing) -> &mut u64) {
        let now = Instant::now();
        *phase(&mut self.timing) += u64::try_from((now - self.last).as_micros()).unwrap_or(u64::MAX);
        self.last = now;
    }
}
