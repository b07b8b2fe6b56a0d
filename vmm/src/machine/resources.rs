//! The host's resources that the machine uses, opened once and kept over reboots of the guest.

use super::control_socket::ControlSocket;
use super::ready::{Ready, ReadyOptions};
use super::spawner::Spawner;
use super::stop::Stop;
use crate::capture::Capture;
use crate::cli::{DiskSpec, MemSize, OnDiskError, OnReboot, Settings};
use crate::confine::landlock::{self, Reach};
use crate::confine::seccomp::{Filters, Thread};
use crate::confine::{self, Confinement, Report};
use crate::console::Console;
use crate::error::Error;
use crate::exit::Outcome;
use crate::request::{Reply, Request, WantedLink};
use crate::services::{Event, Services};
use crate::signals::{Signals, Woken};
use crate::{console, disk, kvm};
use boot::BootSpec;
use devices::virtio::blk::QueueCount;
use devices::virtio::net::{Budget, Carrier, Duplex, Link, LinkState};
use net::keeper::REPLY_TIMEOUT_S;
use net::{Keeper, NetSpec, News, NotKept, Port};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where the guest's random bytes come from.
const ENTROPY: &str = "/dev/urandom";

/// How long the keeper may take to say something.
const KEEPER_TIMEOUT: Duration = Duration::from_secs(REPLY_TIMEOUT_S.unsigned_abs());

/// A disk, open and locked.
pub(super) struct Disk {
    /// The user's specification.
    pub(super) spec: DiskSpec,
    /// The file.
    pub(super) file: File,
}

/// The files that a command line names, opened before anything of the host is changed.
pub(crate) struct Files {
    boot: BootSpec,
    disks: Vec<Disk>,
    entropy: File,
    captures: Vec<Option<Capture>>,
    budget: Budget,
    console: Option<File>,
}

impl Files {
    /// Opens all that `cli` names and that needs no more than a path.
    ///
    /// # Errors
    /// If one cannot be used.
    pub(crate) fn open(cli: &Settings, boot: BootSpec) -> Result<Self, Error> {
        let disks = cli.disk.iter().cloned().zip(disk::open_all(&cli.disk)?);
        let disks = disks.map(|(spec, file)| Disk { spec, file }).collect();
        let entropy = File::open(Path::new(ENTROPY)).map_err(Error::host("open /dev/urandom"))?;
        let budget = Budget::default();
        let open_capture = |(index, spec): (usize, &NetSpec)| {
            Ok(Capture::open(&format!("net{index}"), &spec.card().capture, &budget)?)
        };
        let captures = cli.net.iter().enumerate().map(open_capture).collect::<Result<_, Error>>()?;
        Ok(Self { boot, disks, entropy, captures, budget, console: console::open_file(&cli.console)? })
    }
}

/// A card as far as it outlives a reboot.
pub(super) struct Card {
    /// The user's specification.
    pub(super) spec: NetSpec,
    /// Its link, as the keeper reports it.
    pub(super) link: Link,
    /// The capture of its frames, if the user wants one.
    pub(super) capture: Option<Capture>,
}

/// The state of the process's privileges.
enum Progress {
    /// It has those of its caller, and is to be confined so far.
    Open(Confinement),
    Confined,
}

/// The network, which is made by another process while this one makes the machine.
enum Network {
    /// The keeper is at work.
    Pending,
    /// The cards' ways to the host's network, in the order of the flags.
    Ready(Vec<Port>),
}

/// Everything that outlives a reboot.
pub(crate) struct Resources {
    pub(super) kvm: kvm::KvmSystem,
    pub(super) cpus: u32,
    pub(super) mem: MemSize,
    pub(super) boot: BootSpec,
    pub(super) disks: Vec<Disk>,
    pub(super) on_disk_error: OnDiskError,
    pub(super) entropy: File,
    /// The memory that waiting frames may take.
    pub(super) budget: Budget,
    pub(super) console: Console,
    pub(super) signals: Signals,
    pub(super) stop_timeout: Duration,
    pub(super) stop: Stop,
    pub(super) control_socket: ControlSocket,
    pub(super) ready: Ready,
    cards: Vec<Card>,
    on_reboot: OnReboot,
    network: Network,
    services: Services,
    keeper: Keeper,
    watches_keeper: bool,
    /// By card, how often others had the MAC address of its guest, and an IP address of it.
    conflicts: BTreeMap<usize, (u64, u64)>,
    /// The promises of the network that are not kept at present.
    not_kept: Vec<NotKept>,
    progress: Progress,
    /// Where the devices' workers come from.
    pub(super) spawner: Arc<Spawner>,
    /// The filters of threads.
    pub(super) filters: Arc<Filters>,
}

impl Resources {
    /// Opens KVM and the console; the rest has been opened before.
    ///
    /// # Errors
    /// If one cannot be opened, or KVM cannot have that many vCPUs.
    pub(crate) fn open(
        cli: &Settings,
        (confinement, filters): (Confinement, Arc<Filters>),
        files: Files,
        (keeper, control_socket, services, signals): (Keeper, ControlSocket, Services, Signals),
        options: ReadyOptions,
    ) -> Result<Self, Error> {
        let kvm = kvm::KvmSystem::open()?;
        log::debug!("KVM is open");
        kvm.check_cpus(cli.cpus)?;
        kvm::kick::install_handler().map_err(Error::host("install a signal handler"))?;
        Ok(Self {
            kvm,
            cpus: cli.cpus,
            mem: cli.mem,
            boot: files.boot,
            disks: files.disks,
            on_disk_error: cli.on_disk_error,
            entropy: files.entropy,
            budget: files.budget,
            signals,
            console: Console::open(&cli.console, files.console)?,
            stop_timeout: Duration::from_secs(cli.stop_timeout.into()),
            stop: Stop::NotAsked,
            control_socket,
            ready: Ready::new(options),
            cards: cards(cli, files.captures),
            on_reboot: cli.on_reboot,
            network: Network::Pending,
            services,
            watches_keeper: true,
            conflicts: BTreeMap::new(),
            not_kept: Vec::new(),
            keeper,
            progress: Progress::Open(confinement),
            spawner: Arc::new(Spawner::new()),
            filters,
        })
    }

    /// The cards and their ports, in the order of the flags. The first call waits for the keeper.
    ///
    /// # Errors
    /// The keeper refuses or fails, or a signal arrives before the guest runs.
    pub(super) fn cards(&mut self) -> Result<Vec<(&Card, &Port)>, Error> {
        if matches!(self.network, Network::Pending) {
            // Beside the keeper: this takes 0.2 ms off the start.
            [Thread::Control, Thread::Vcpu].into_iter().for_each(|thread| self.filters.prepare(thread));
            self.await_keeper()?;
            let (ports, timing) = self.keeper.ports_timed()?;
            log::debug!("The network is ready: {timing:?}");
            self.ready.watch(self.cards.iter().map(|card| &card.spec), &ports, timing)?;
            self.network = Network::Ready(ports);
        }
        match &self.network {
            Network::Ready(ports) => Ok(self.cards.iter().zip(ports).collect()),
            Network::Pending => Ok(Vec::new()),
        }
    }

    /// Waits for the keeper's word. A signal ends the machine: there is no guest yet that could be asked to power off.
    fn await_keeper(&self) -> Result<(), Error> {
        let socket = self.keeper.socket();
        let timeout = if socket.is_some() { KEEPER_TIMEOUT } else { Duration::ZERO };
        match self.signals.wait(socket, timeout).map_err(Error::host("wait for signals"))? {
            Woken::Signal(signal) => Err(Error::Signal(signal)),
            Woken::Timeout if socket.is_some() => {
                Err(net::Error::from(net::KeeperError::Silent { seconds: REPLY_TIMEOUT_S }).into())
            }
            Woken::Other | Woken::Timeout => Ok(()),
        }
    }

    /// Gives up the process's privileges, and starts what must not have them. Once; a machine that is made anew finds
    /// it done.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) fn confine(&mut self) -> Result<(), Error> {
        if let Progress::Open(confinement) = self.progress {
            if let Network::Ready(ports) = &mut self.network {
                let begun = self.services.begin(ports, self.keeper.tables());
                begun.map_err(Error::host("reach the process of DHCP and DNS"))?;
            }
            let mut report = Report::default();
            confine::enter(confinement, &self.signals, self.threads_max(), &mut report)?;
            self.progress = Progress::Confined;
            if confinement != Confinement::None {
                let restricted = landlock::restrict(Reach::default()).map_err(io::Error::other);
                report.landlock(restricted.map_err(Error::host("restrict itself with Landlock"))?);
            }
            self.spawner.start(&self.filters).map_err(Error::host("start a thread"))?;
            let mut captures = self.cards.iter().filter_map(|card| card.capture.as_ref());
            captures.try_for_each(|capture| capture.start(&self.filters)).map_err(Error::host("start a capture"))?;
            #[cfg(feature = "attacks")]
            crate::attacks::provoke_capture(&self.filters);
            self.filters.install(Thread::Control)?;
            #[cfg(feature = "attacks")]
            crate::attacks::give_way(&self.filters);
            report.seccomp(self.filters.mode());
            log::debug!("Confined by: {report}");
        }
        Ok(())
    }

    /// Threads that the VMM has at most, with those that KVM and vhost-net count as its own, and as many again for
    /// those that end while others begin.
    fn threads_max(&self) -> u64 {
        let queues: usize = match &self.network {
            Network::Ready(ports) => ports.iter().map(|port| port.fds.len() + port.vhost.len() + 2).sum(),
            Network::Pending => 0,
        };
        let cpus = usize::try_from(self.cpus).unwrap_or(usize::MAX);
        let of_disks: usize = self.disks.len().saturating_mul(QueueCount::MAX.into());
        u64::try_from(2 * (16 + cpus + queues + of_disks)).unwrap_or(u64::MAX)
    }

    /// Readable when the services have something to say, or have ended.
    pub(super) fn services_socket(&self) -> Option<BorrowedFd<'_>> {
        self.services.source()
    }

    /// Hears what the services have to say.
    pub(super) fn hear_services(&mut self) {
        match self.services.event() {
            Some(Event::Address(card, ip)) => self.ready.learn(card, vec![ip]),
            Some(Event::Ended) => log::error!(
                "The process of DHCP and DNS has ended: guests get no more answers from it, and keep what they have"
            ),
            None => {}
        }
    }

    /// Readable when the keeper has something to say, or has died.
    pub(super) fn keeper_socket(&self) -> Option<BorrowedFd<'_>> {
        self.keeper.socket().filter(|_| self.watches_keeper)
    }

    /// Goes on with the caller on the control socket; `counters` reads those of the devices.
    pub(super) fn serve_control_socket(&mut self, counters: impl FnOnce() -> Value) {
        let Self { control_socket, cards, services, ready, conflicts, not_kept, .. } = self;
        control_socket.serve(|request| match request {
            Request::Counters => {
                let mut counters = counters();
                services.add_counters(&mut counters);
                add_conflicts(conflicts, &mut counters);
                Reply::Counters(counters)
            }
            Request::Network => Reply::Network(with_not_kept(with_conflicts(ready.cards(), conflicts), not_kept)),
            Request::Link { card: name, state } => match cards.get(name.0) {
                Some(card) => {
                    log::info!("The link of {name} is to be {state:?}");
                    card.link.switch(match state {
                        WantedLink::Up => Carrier::Up,
                        WantedLink::Down => Carrier::Down,
                    });
                    Reply::Done
                }
                None => Reply::Refused(format!("This VM has no card {name}: it has {}", cards.len())),
            },
        });
    }

    /// When a guest is to announce itself on a link that has come back, if ever.
    pub(super) fn next_announcement(&self) -> Option<Instant> {
        self.cards.iter().filter_map(|card| card.link.next_announcement()).min()
    }

    /// Asks the guest for the announcements that are due.
    pub(super) fn announce(&self, now: Instant) {
        self.cards.iter().for_each(|card| card.link.announce(now));
    }

    /// Returns whether a guest that resets itself runs again: not if it was asked to power off.
    pub(crate) fn restarts_after_reset(&self) -> bool {
        self.on_reboot == OnReboot::Restart && !self.stop.is_asked()
    }

    /// The outcome that a run with `outcome` counts as: a reset is as good as a power-off where it was asked for.
    pub(super) fn settle(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Reset(_) if self.stop.is_asked() || self.on_reboot == OnReboot::PowerOff => Outcome::PoweredOff,
            _ => outcome,
        }
    }

    /// Hears what the keeper has to say.
    pub(super) fn hear_keeper(&mut self) {
        match self.keeper.news() {
            Some(News::Link { card, state }) => {
                log::debug!("The link of net{card} is {state:?}");
                if let Some(card) = self.cards.get(card) {
                    card.link.follow(link_state(state));
                }
            }
            Some(News::Conflicts { card, macs, addresses }) => {
                self.conflicts.insert(card, (macs, addresses));
            }
            Some(News::Mtu { card, mtu }) => self.services.tell_mtu(card, mtu),
            Some(News::NotKept(promises)) => self.not_kept = promises,
            Some(News::Ended) => {
                log::warn!(
                    "The network keeper has ended: rules and taps stay until this VM ends, a tap that loses its bridge is \
                     not attached again, and links stay as they are. Afterwards 'minivmm net gc' removes what is left"
                );
                self.watches_keeper = false;
            }
            None => {}
        }
    }

    /// Closes everything and has the network undone.
    ///
    /// # Errors
    /// A part of the network could not be undone.
    pub(crate) fn close(self) -> Result<(), Error> {
        // They end by that, and close their packet sockets, for which the kernel needs some time, beside the taps.
        drop(self.services);
        // Taps first: the keeper removes only what is not in use.
        drop(self.network);
        self.cards.into_iter().filter_map(|card| card.capture).for_each(Capture::finish);
        let stopped = self.keeper.stop();
        Ok(stopped?)
    }
}

/// Adds how often others had addresses of guests, to the counters of the cards for which there were some.
fn add_conflicts(conflicts: &BTreeMap<usize, (u64, u64)>, devices: &mut Value) {
    for (card, (macs, addresses)) in conflicts {
        let Some(card) = devices.get_mut(format!("net{card}")).and_then(Value::as_object_mut) else { continue };
        card.insert("conflicts.mac".to_owned(), (*macs).into());
        card.insert("conflicts.address".to_owned(), (*addresses).into());
    }
}

/// Adds the numbers of address conflicts to the cards that have had some.
fn with_conflicts(mut cards: Value, conflicts: &BTreeMap<usize, (u64, u64)>) -> Value {
    for (card, (macs, addresses)) in conflicts {
        if let Some(card) = cards.get_mut(*card).and_then(Value::as_object_mut) {
            card.insert("conflicts".to_owned(), json!({ "mac": macs, "address": addresses }));
        }
    }
    cards
}

/// The cards, each with the promises that the keeper cannot keep for it.
fn with_not_kept(mut cards: Value, promises: &[NotKept]) -> Value {
    for (index, card) in cards.as_array_mut().into_iter().flatten().enumerate() {
        let own = promises.iter().filter(|promise| promise.card == index);
        let texts: Vec<&str> = own.map(|promise| promise.text.as_str()).collect();
        if let Some(card) = card.as_object_mut().filter(|_| !texts.is_empty()) {
            card.insert("not_kept".to_owned(), json!(texts));
        }
    }
    cards
}

/// The cards of `cli`, with the capture of each.
fn cards(cli: &Settings, captures: Vec<Option<Capture>>) -> Vec<Card> {
    let card = |(spec, capture): (&NetSpec, _)| Card { spec: spec.clone(), link: Link::default(), capture };
    cli.net.iter().zip(captures).map(card).collect()
}

/// The keeper's words as the card has them.
fn link_state(state: net::LinkState) -> LinkState {
    LinkState {
        carrier: if state.up { Carrier::Up } else { Carrier::Down },
        speed: state.speed,
        duplex: state.duplex.map(|duplex| match duplex {
            net::link::Duplex::Half => Duplex::Half,
            net::link::Duplex::Full => Duplex::Full,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflicts_are_counters_of_their_card() {
        let mut counters = json!({ "net0": { "rx.0.frames": 1 }, "net1": {} });
        add_conflicts(&BTreeMap::from([(0, (2, 3)), (7, (1, 1))]), &mut counters);
        let card = json!({ "rx.0.frames": 1, "conflicts.mac": 2, "conflicts.address": 3 });
        assert_eq!(counters, json!({ "net0": card, "net1": {} }));
    }

    #[test]
    fn promises_that_are_not_kept_are_said_of_their_card() {
        let promise = |card, text: &str| NotKept { card, text: text.to_owned() };
        let cards = with_not_kept(json!([{}, { "tap": "vmtap1" }]), &[promise(1, "It is off"), promise(7, "x")]);
        assert_eq!(cards, json!([{}, { "tap": "vmtap1", "not_kept": ["It is off"] }]));
    }

    #[test]
    fn conflicts_are_said_of_their_card() {
        let cards = with_conflicts(json!([{}, { "tap": "vmtap1" }]), &BTreeMap::from([(1, (0, 3)), (7, (1, 1))]));
        assert_eq!(cards, json!([{}, { "tap": "vmtap1", "conflicts": { "mac": 0, "address": 3 } }]));
    }
}
