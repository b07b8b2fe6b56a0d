//! SIGKILL at random moments: of the VMM, of its keeper, of both, in the middle of set-up and after it. Afterwards the host is as it was.
//!
//! What a keeper undoes is gone when it has ended; what is left without one is gone after `net::gc`.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::Case;
use crate::coexist::start_docker;
use crate::guest::Namespace;
use crate::lan::{bridge_with_uplink, link, sh, snapshot, until};
use crate::vlans;
use crate::vmm::{Vmm, itself};

pub(crate) const CASES: &[Case] = &[("end_by_sigkill_at_random_moments_leaves_nothing", at_random)];

/// Rounds of the case, unless `KILL_ROUNDS` says otherwise.
const ROUNDS: u64 = 20;

/// What a VM may have as its cards.
const MODES: &[(&str, &[&str])] = &[
    ("bridge", &["bridge=br0"]),
    ("bridge create", &["bridge=lan,create=on"]),
    ("bridge stp", &["bridge=lan,create=on,stp=on,forward-delay=2"]),
    ("bridge guarded", &["bridge=br0,antispoof=on,addresses=192.0.2.5+2001:db8::5,isolate=on"]),
    ("nat", &["nat"]),
    ("nat forward", &["nat,forward=tcp:8080:80+udp:5000-5010:5000-5010"]),
    ("nat ipv6", &["nat=six,ipv6=on"]),
    ("nat limits", &["nat,connections=10,new-connections=5/s,isolate=on"]),
    ("host", &["host"]),
    ("uplink", &["bridge=lan,create=on,uplink=nic0"]),
    ("macvtap", &["macvtap=nic0"]),
    ("mirror", &["bridge=br0,mirror=nic0"]),
    ("uplink moved", &["bridge=lan,create=on,uplink=wan0,move-addresses=on"]),
    ("macvtap", &["macvtap=peer0", "macvtap=peer0,mode=private,queues=2"]),
    ("macvtap alone", &["macvtap=peer0,mode=passthru"]),
    (
        "mixed",
        &["bridge=br0,queues=2", "nat,ipv6=on,forward=tcp:127.0.0.1:8080:80", "host=lab", "bridge=lan,create=on"],
    ),
];

/// The same where the kernel's bridges know VLANs.
const VLAN_MODES: &[(&str, &[&str])] = &[
    ("vlan", &["bridge=lan,create=on,vlan=100"]),
    ("trunk", &["bridge=lan,create=on,trunk=10+20+100-110,native=5", "bridge=lan,create=on,vlan=20"]),
];

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Vmm,
    Keeper,
    Both,
}

/// When.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    /// So long after exec.
    SetUp(Duration),
    /// So long after the cards are there.
    Ready(Duration),
}

/// Numbers that look random and follow from a seed: SplitMix64.
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

/// What has been done so far.
#[derive(Default)]
struct Tally {
    rounds: BTreeMap<(&'static str, String), u32>,
    collected: usize,
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
        write!(f, "{} rounds, {} links left to gc", self.rounds.values().sum::<u32>(), self.collected)
    }
}

fn at_random() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let rounds = number("KILL_ROUNDS").unwrap_or(ROUNDS);
    let seed = number("KILL_SEED").unwrap_or_else(|| std::process::id().into());
    let mut random = Random(seed);
    println!("seed {seed}");
    let _neighbours = prepare();
    let mut modes = modes();
    let wanted = std::env::var("KILL_MODES").unwrap_or_default();
    modes.retain(|(mode, _)| mode.contains(&wanted));
    let before = state();
    let mut typical = Duration::from_millis(8);
    let mut tally = Tally::default();
    for round in 0..rounds {
        let (mode, cards) = random.of(&modes);
        let victim = random.of(&[Victim::Vmm, Victim::Keeper, Victim::Both]);
        let moment = match random.below(3) {
            0 => Moment::Ready(random.up_to(Duration::from_millis(20))),
            _ => Moment::SetUp(random.up_to(typical * 5 / 4)),
        };
        let what = format!("round {round} of seed {seed}: {mode}, {victim:?} killed, {moment:?}");
        let took = kill(cards, victim, moment);
        typical = took.map_or(typical, |took| (typical * 3 + took) / 4);
        if victim != Victim::Vmm {
            let collected = net::gc::collect().expect("gc");
            assert_eq!(collected.failed, [], "{what}");
            tally.collected += collected.removed.len();
        }
        compare(&before, &what);
        let when = if matches!(moment, Moment::SetUp(_)) { "in set-up" } else { "running" };
        *tally.rounds.entry((mode, format!("{victim:?} {when}"))).or_default() += 1;
    }
    println!("{tally}, set-up in about {typical:.1?}, failures 0");
}

/// A host with a bridge, a way out, another card, and Docker.
fn prepare() -> [Namespace; 2] {
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

fn modes() -> Vec<(&'static str, &'static [&'static str])> {
    if vlans::are_there() {
        return [MODES, VLAN_MODES].concat();
    }
    println!("skipped VLANs: this kernel's bridges do not know them");
    MODES.to_vec()
}

/// Everything that a start changes, by who says it.
fn state() -> Vec<(&'static str, String)> {
    let settings = "sysctl -a --pattern ^net\\.(ipv4\\.ip_forward|ipv[46]\\.conf|bridge)";
    let looks = ["nft -s list ruleset", "ip addr", "ip rule", "ip -6 rule", "bridge vlan"];
    let routes = ["ip -4 route show table all", "ip -6 route show table all", settings];
    let mut state = vec![("links", snapshot())];
    state.extend(looks.into_iter().chain(routes).map(|look| (look, sh(look))));
    // Addresses and routes that were somewhere else meanwhile need not come back in the order that they had.
    for (look, text) in &mut state {
        if look.contains("route") || look.contains("addr") {
            let mut lines: Vec<&str> = text.lines().collect();
            lines.sort_unstable();
            *text = lines.join("\n");
        }
    }
    state
}

fn compare(before: &[(&'static str, String)], what: &str) {
    for ((look, before), (_, after)) in before.iter().zip(state()) {
        let (new, gone) = (lines_beyond(&after, before), lines_beyond(before, &after));
        assert!(after == *before, "{look} after {what}\nnew:\n{new}\ngone:\n{gone}");
    }
}

/// The lines of a text that another one does not have.
fn lines_beyond(text: &str, other: &str) -> String {
    text.lines().filter(|line| !other.lines().any(|known| known == *line)).collect::<Vec<_>>().join("\n")
}

/// Starts a VM and kills. Returns how long it took until the cards were there, if that was waited for.
fn kill(cards: &[&str], victim: Victim, moment: Moment) -> Option<Duration> {
    let start = Instant::now();
    // What puts a guest there has children for moments, which have what is open as well.
    let mut command = itself(&[&["vmm", "web"], cards].concat());
    command.env("GUESTS", "none");
    let mut vmm = Vmm::from_command(command);
    let wait = |since: Instant, delay| while since.elapsed() < delay {};
    let took = match moment {
        Moment::SetUp(delay) => {
            wait(start, delay);
            None
        }
        Moment::Ready(delay) => {
            vmm.taps();
            let took = start.elapsed();
            wait(Instant::now(), delay);
            Some(took)
        }
    };
    if victim == Victim::Keeper {
        until(|| vmm.try_keeper().is_some());
    }
    let keeper = vmm.try_keeper().filter(|_| victim != Victim::Vmm);
    if let Some(pid) = keeper {
        nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL).expect("SIGKILL");
    }
    if victim == Victim::Keeper {
        notice(&vmm);
    }
    vmm.kill();
    vmm.end();
    // Its descriptors are closed when it has become a zombie.
    until(|| keeper.is_none_or(has_ended));
    took
}

/// The VMM learns that its keeper has been killed: it has no cards then, or keeps them.
fn notice(vmm: &Vmm) {
    loop {
        let line = vmm.line();
        match line.split(' ').next() {
            Some("ready") => {}
            Some("failed") => {
                assert!(line.starts_with("failed The network keeper "), "{line}");
                return;
            }
            _ => {
                assert_eq!(line, "keeper gone");
                return;
            }
        }
    }
}

fn has_ended(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.map_or(true, |stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
}
