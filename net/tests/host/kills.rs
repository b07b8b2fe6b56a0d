//! SIGKILL at random moments: of the VMM, of its keeper, of both, during set-up and after it. Afterwards the host is as
//! it was.
//!
//! A keeper undoes its steps before it ends; without one, `net::gc` or the next VM removes what is left.

mod program;
pub(crate) mod state;

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use net::gc::Removed;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::Case;
use crate::coexist::start_docker;
use crate::guest::Namespace;
use crate::lan::{bridge_with_uplink, link, sh, until};
use crate::ovs::Switch;
use crate::rates;
use crate::vlans;
use crate::vmm::children;
use program::{Guest, Program};
use state::State;

pub(crate) const CASES: &[Case] = &[("end_by_sigkill_at_random_moments_leaves_nothing", at_random)];

/// Rounds of the case, unless `KILL_ROUNDS` says otherwise.
const ROUNDS: u64 = 20;

/// The cards and policy of a VM.
#[derive(Clone, Copy, Debug)]
struct Mode {
    name: &'static str,
    cards: &'static [&'static str],
    policy: Option<&'static str>,
}

const MODES: &[Mode] = &[
    mode("bridge", &["bridge=br0"]),
    mode("bridge create", &["bridge=lan,create=on"]),
    mode("bridge stp", &["bridge=lan,create=on,stp=on,forward-delay=2"]),
    mode("bridge guarded", &["bridge=br0,antispoof=on,addresses=192.0.2.5+2001:db8::5,isolate=on"]),
    mode("nat", &["nat"]),
    mode("nat forward", &["nat,forward=tcp:8080:80+udp:5000-5010:5000-5010"]),
    mode("nat ipv6", &["nat=six,ipv6=on"]),
    mode("nat limits", &["nat,connections=10,new-connections=5/s,isolate=on"]),
    mode("host", &["host"]),
    mode("uplink", &["bridge=lan,create=on,uplink=nic0"]),
    mode("macvtap", &["macvtap=nic0"]),
    mode("mirror", &["bridge=br0,mirror=nic0"]),
    mode("uplink moved", &["bridge=lan,create=on,uplink=wan0,move-addresses=on"]),
    mode("macvtap pair", &["macvtap=nic0", "macvtap=nic0,mode=private,queues=2"]),
    mode("macvtap alone", &["macvtap=nic0,mode=passthru"]),
    mode(
        "mixed",
        &["bridge=br0,queues=2", "nat,ipv6=on,forward=tcp:127.0.0.1:8080:80", "host=lab", "bridge=lan,create=on"],
    ),
    with_policy("policy", &["nat,ipv6=on,forward=tcp:8080:80", "bridge=br0"]),
    with_policy("policy macvtap", &["macvtap=nic0"]),
    mode("ovs", &["ovs=b0"]),
    mode("ovs tagged", &["ovs=b0,vlan=7,iface-id=pod,queues=2", "nat", "ovs=b0"]),
];

/// Modes for kernels whose bridges have VLANs.
const VLAN_MODES: &[Mode] = &[
    mode("vlan", &["bridge=lan,create=on,vlan=100"]),
    mode("vlan trunk", &["bridge=lan,create=on,trunk=10+20+100-110,native=5", "bridge=lan,create=on,vlan=20"]),
    mode(
        "vlan guarded",
        &["bridge=lan,create=on,trunk=10+20,antispoof=on", "bridge=lan,create=on,vlan=20,antispoof=on,isolate=on"],
    ),
    mode("vlan uplink", &["bridge=lan,create=on,uplink=nic0,vlan=100", "bridge=lan,create=on,trunk=100+200"]),
];

/// A mode with the simulated vhost-net of `rates`, which minivmm itself cannot use.
const RATES: Mode = mode("rates", &["bridge=br0,vhost=on,rate=4M/4M", "nat"]);

/// The `--policy` of modes that have one.
pub(crate) const POLICY: &str = r#"{"ingress": [{"protocol": "tcp", "ports": [22, "8000-8010"], "source": "192.0.2.0/24"}],
                        "egress": [{"protocol": "udp", "ports": 53}, {"protocol": "tcp", "action": "drop"}]}"#;

const fn mode(name: &'static str, cards: &'static [&'static str]) -> Mode {
    Mode { name, cards, policy: None }
}

const fn with_policy(name: &'static str, cards: &'static [&'static str]) -> Mode {
    Mode { name, cards, policy: Some(POLICY) }
}

impl Mode {
    fn takes_ovs(&self) -> bool {
        self.cards.iter().any(|card| card.starts_with("ovs="))
    }
}

/// The process to kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Vmm,
    Keeper,
    Both,
}

/// The remover of what is left without a keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remover {
    /// `net gc`.
    Gc,
    /// The next VM of that mode, from its start to its end.
    Next,
}

/// The moment of the kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    /// This long after exec.
    SetUp(Duration),
    /// This long after the cards are ready.
    Ready(Duration),
}

/// Pseudorandom numbers from a seed: SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len().try_into().unwrap())).unwrap()]
    }

    fn up_to(&mut self, longest: Duration) -> Duration {
        Duration::from_nanos(self.below(u64::try_from(longest.as_nanos()).unwrap().max(1)))
    }
}

/// Changes of the host's ways out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ways {
    /// They stay as they were.
    Same,
    /// Another one appears while the VM starts or runs, and goes when the state is as it was.
    Late,
}

/// The choices of a round.
#[derive(Debug)]
struct Round {
    ways: Ways,
    mode: Mode,
    victim: Victim,
    moment: Moment,
    guest: Guest,
    remover: Remover,
}

impl Round {
    fn draw(random: &mut Random, modes: &[Mode], tally: &Tally) -> Self {
        let mode = random.of(modes);
        let victim = random.of(&[Victim::Vmm, Victim::Keeper, Victim::Both]);
        let moment = match random.below(3) {
            0 => Moment::Ready(random.up_to(Duration::from_millis(20))),
            _ => Moment::SetUp(random.up_to(tally.usual_set_up(&mode) * 5 / 4)),
        };
        let (guest, remover) = (random.of(&[Guest::Idle, Guest::Busy]), random.of(&[Remover::Gc, Remover::Next]));
        let ways = random.of(&[Ways::Same, Ways::Same, Ways::Late]);
        Self { ways, mode, victim, moment, guest, remover }
    }

    /// Starts a VMM, and kills it, its keeper, or both.
    fn kill(&self, program: &Program, tally: &mut Tally, what: &str) {
        let start = Instant::now();
        let mut vmm = program.start(self.mode.cards, self.mode.policy, self.guest);
        let coming = (self.ways == Ways::Late).then(|| std::thread::spawn(come_late));
        let wait = |since: Instant, delay| while since.elapsed() < delay {};
        match self.moment {
            Moment::SetUp(delay) => wait(start, delay),
            Moment::Ready(delay) => {
                program.await_ready(&vmm);
                tally.note_set_up(&self.mode, start.elapsed());
                wait(Instant::now(), delay);
            }
        }
        if self.victim == Victim::Keeper {
            until(|| vmm.try_keeper().is_some());
        }
        if let Some(pid) = vmm.try_keeper().filter(|_| self.victim != Victim::Vmm) {
            nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL).expect("SIGKILL");
        }
        if self.victim == Victim::Keeper {
            program.await_notice(&vmm, self.moment);
        }
        vmm.kill();
        program.check_words(&vmm.end(), what);
        if let Some(coming) = coming {
            coming.join().expect("a way out");
        }
    }

    /// Has the leftovers removed.
    fn remove(&self, tally: &mut Tally, what: &str) {
        match self.remover {
            Remover::Gc => tally.collect(what),
            Remover::Next => {
                tally.left_to_next += 1;
                let mut next = Program::Fixture.start(self.mode.cards, self.mode.policy, self.guest);
                next.taps();
                assert_eq!(next.order("stop"), "stopped", "{what}");
                // If bridged frames pass the rules for packets, Docker's rules drop them.
                let words = next.end();
                assert!(words.lines().all(|line| line.contains(" drops traffic that bridge ")), "{what}: {words}");
            }
        }
    }
}

/// The results so far.
#[derive(Default)]
struct Tally {
    rounds: BTreeMap<(&'static str, String), u32>,
    left_to_gc: BTreeMap<&'static str, usize>,
    left_to_next: u32,
    /// The recent time until the cards were ready.
    usual: BTreeMap<&'static str, Duration>,
}

impl Tally {
    /// The usual time of a mode; of an unseen mode, the time of the others.
    fn usual_set_up(&self, mode: &Mode) -> Duration {
        let longest = || self.usual.values().max().copied();
        self.usual.get(mode.name).copied().or_else(longest).unwrap_or(Duration::from_millis(8))
    }

    fn note_set_up(&mut self, mode: &Mode, took: Duration) {
        self.usual.entry(mode.name).and_modify(|usual| *usual = (*usual * 3 + took) / 4).or_insert(took);
    }

    fn count(&mut self, round: &Round) {
        let when = if matches!(round.moment, Moment::SetUp(_)) { "in set-up" } else { "running" };
        *self.rounds.entry((round.mode.name, format!("{:?} {when}", round.victim))).or_default() += 1;
    }

    /// Removes the leftovers, as `net gc` does.
    fn collect(&mut self, what: &str) {
        let collected = net::gc::collect().expect("gc");
        assert_eq!(collected.failed, [], "{what}");
        for removed in collected.removed {
            let kind = match removed {
                Removed::Bridge(_) => "bridges",
                Removed::Macvtap(_) => "macvtaps",
                Removed::OvsPort(_) => "ports of Open vSwitch",
                Removed::Ifb(_) => "ifbs",
            };
            *self.left_to_gc.entry(kind).or_default() += 1;
        }
        if collected.rules > 0 {
            *self.left_to_gc.entry("rules for Docker").or_default() += collected.rules;
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut by_mode: BTreeMap<&str, BTreeMap<&str, u32>> = BTreeMap::new();
        for ((mode, how), count) in &self.rounds {
            *by_mode.entry(mode).or_default().entry(how).or_default() += count;
        }
        for (mode, ways) in &by_mode {
            let ways: Vec<String> = ways.iter().map(|(how, count)| format!("{how} {count}")).collect();
            writeln!(f, "{mode:15} {:4}: {}", by_mode[mode].values().sum::<u32>(), ways.join(", "))?;
        }
        let left: Vec<String> = self.left_to_gc.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let rounds = self.rounds.values().sum::<u32>();
        write!(f, "{rounds} rounds, {} of them left to the next VM, left to gc: {}", self.left_to_next, left.join(", "))
    }
}

fn at_random() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let rounds = number("KILL_ROUNDS").unwrap_or(ROUNDS);
    let seed = number("KILL_SEED").unwrap_or_else(|| std::process::id().into());
    println!("seed {seed}");
    let program = Program::from_env();
    let modes = modes(&program);
    // The children of an ended keeper then become ours, and can be waited for.
    set_child_subreaper(true).expect("prctl(2)");
    let switch = modes.iter().any(Mode::takes_ovs).then(Switch::start);
    if let Some(switch) = &switch {
        switch.be_the_only_one();
    }
    let _neighbours = prepare();
    let before = State::look(switch.as_ref());
    let known = children(std::process::id());
    let (start, mut random, mut tally) = (Instant::now(), Random(seed), Tally::default());
    for number in 0..rounds {
        let round = Round::draw(&mut random, &modes, &tally);
        let what = format!("round {number} of seed {seed}: {round:?}");
        round.kill(&program, &mut tally, &what);
        reap_all_but(&known);
        if round.victim != Victim::Vmm {
            round.remove(&mut tally, &what);
        }
        if round.ways == Ways::Late {
            assert_eq!(leave_late(), ["0", "0", "1"], "forwarding, and advertisements of later interfaces, {what}");
        }
        before.assert_still(switch.as_ref(), &what);
        tally.count(&round);
    }
    println!("{tally}, failures 0, in {:.0?}; set-up takes about {:.1?}", start.elapsed(), tally.usual);
}

/// A host with a bridge, a way out, another card, and Docker.
pub(crate) fn prepare() -> [Namespace; 2] {
    sh("ip link set lo up");
    let world = Namespace::behind("wan0", "198.51.100.1/24", "198.51.100.2/24");
    sh("ip route add default via 198.51.100.1");
    bridge_with_uplink("br0");
    sh("ip link add nic0 type veth peer name nic1");
    sh("ip link set nic0 up");
    sh("ip link set nic1 up");
    sh("sysctl -q net.ipv6.conf.wan0.disable_ipv6=0");
    sh("ip addr add 2001:db8:1::2/64 dev wan0 nodad");
    sh("ip route add 10.200.0.0/16 via 198.51.100.1 metric 7 table 77");
    sh("ip route add default via 2001:db8:1::1 dev wan0");
    let container = start_docker();
    for link in ["wan0", "nic0", "nic1", "docker0", "veth0"] {
        until(|| self::link(link)["operstate"] == "UP");
    }
    until(|| sh("ip -6 addr show dev wan0").contains("fe80::"));
    until(|| !sh("ip -6 addr").contains("tentative"));
    [world, container]
}

/// Another way out, with addresses and routes.
fn come_late() {
    for line in [
        "ip link add late0 type veth peer name late1",
        "ip link set late1 up",
        "ip addr add 203.0.113.2/24 dev late0",
        "ip link set late0 up",
        "ip route add 192.0.2.128/25 via 203.0.113.1 dev late0",
    ] {
        sh(line);
    }
}

/// Removes it, and returns its settings of forwarding and router advertisements.
fn leave_late() -> [String; 3] {
    let read = |path: &str| std::fs::read_to_string(format!("/proc/sys/net/{path}")).expect(path).trim().to_owned();
    let settings = ["ipv4/conf/late0/forwarding", "ipv6/conf/late0/forwarding", "ipv6/conf/late0/accept_ra"].map(read);
    sh("ip link del late0");
    settings
}

/// The requested modes that are possible here.
fn modes(program: &Program) -> Vec<Mode> {
    let mut modes = MODES.to_vec();
    if matches!(program, Program::Fixture) {
        rates::device();
        modes.push(RATES);
    }
    if vlans::are_there() {
        modes.extend(VLAN_MODES);
    } else {
        println!("skipped VLANs: this kernel's bridges do not know them");
    }
    let wanted = std::env::var("KILL_MODES").unwrap_or_default();
    modes.retain(|mode| mode.name.contains(&wanted));
    assert!(!modes.is_empty(), "no mode has {wanted} in its name");
    modes
}

/// Reaps all children but the known ones, and theirs: a child that ends leaves its own to us.
fn reap_all_but(known: &[i32]) {
    let next = || children(std::process::id()).into_iter().find(|pid| !known.contains(pid));
    while let Some(pid) = next() {
        until(|| waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) != Ok(WaitStatus::StillAlive));
    }
}
