//! The cases of the matrix, as data: what is booted, how, and what has to come of it.

use super::debian::Debian;
use images::kernel::{Flavour, Series};

/// The initrd loaded beside the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Initrd {
    /// The small one with the agent, as the tests' guests have it.
    Agent,
    /// The same without the programs of the tests, as `./run guest` makes it.
    Small,
    /// Debian's, which finds disk and card by its own modules and leaves to the agent on the disk.
    Own,
    /// Debian's among other parts, more than 150 MiB together.
    Large,
}

impl Initrd {
    /// True where the agent is its `/init`.
    pub(super) fn has_agent(self) -> bool {
        matches!(self, Self::Agent | Self::Small)
    }
}

/// The condition on an answer of the guest.
#[derive(Debug, Clone, Copy)]
pub(super) enum Check {
    Is(&'static str),
    AtLeast(u64),
}

/// A case.
pub(super) struct Case {
    name: &'static str,
    kernels: &'static [Debian],
    pub(super) initrd: Initrd,
    pub(super) cpus: u32,
    pub(super) mem_mib: u64,
    /// Words for the kernel's command line.
    pub(super) words: &'static str,
    /// Keys of the card, each with a comma in front.
    pub(super) card: &'static str,
    /// Run by the guest after the usual questions, with `$host` as the host's address.
    pub(super) script: &'static str,
    /// Beside [`USUAL`].
    pub(super) answers: &'static [(&'static str, Check)],
    pub(super) end: End,
}

/// How a case is expected to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// With the agent's clean end, after its answers.
    Answers,
    /// With this exit code, which the script gives: its programs have no console.
    Code(i32),
}

/// The answers required of every guest.
pub(super) const USUAL: &[(&str, Check)] = &[("ping", Check::Is("0"))];
/// The answers also required of a guest with Debian's initrd: its root disk and its card were found by modules.
pub(super) const OWN: &[(&str, Check)] = &[("root", Check::Is("/dev/vda ext4")), ("modules", Check::AtLeast(2))];

const V6_12: Debian = Debian(Series::V6_12, Flavour::Cloud);
const V6_1: Debian = Debian(Series::V6_1, Flavour::Cloud);
const GENERIC: [Debian; 2] = [Debian(Series::V6_12, Flavour::Generic), Debian(Series::V6_1, Flavour::Generic)];
const RT: [Debian; 2] = [Debian(Series::V6_12, Flavour::Rt), Debian(Series::V6_1, Flavour::Rt)];
const NEWEST: &[Debian] = &[V6_12];
const CLOUD: &[Debian] = &[V6_12, V6_1];
const ALL: &[Debian] = &[V6_12, V6_1, GENERIC[0], GENERIC[1], RT[0], RT[1]];

const PLAIN: Case = Case {
    name: "",
    kernels: NEWEST,
    initrd: Initrd::Agent,
    cpus: 2,
    mem_mib: 512,
    words: "",
    card: "",
    script: "",
    answers: &[],
    end: End::Answers,
};

/// Takes all CPUs but the first off and puts them on again, under pings, and then pings from each.
const OFF_AND_ON: &str = "cd /sys/devices/system/cpu; ping -q -i 0.1 -c 200 $host >/tmp/pings &
for n in 1 2 3; do echo 0 >cpu$n/online || echo refused=$n; done; echo off=$(cat online)
ping -c 2 -w 20 $host >/dev/null; echo ping_off=$?
for n in 3 2 1; do echo 1 >cpu$n/online || echo refused=-$n; done; echo on=$(cat online)
wait; echo lost=$(sed -n 's/.* \\([0-9]*\\)% packet loss.*/\\1/p' /tmp/pings)
for n in 1 2 4 8; do taskset $n ping -c 2 -w 20 $host >/dev/null; echo ping_by_$n=$?; done";
const OFF_AND_ON_ANSWERS: &[(&str, Check)] = &[
    ("off", Check::Is("0")),
    ("ping_off", Check::Is("0")),
    ("on", Check::Is("0-3")),
    ("lost", Check::Is("0")),
    ("ping_by_1", Check::Is("0")),
    ("ping_by_2", Check::Is("0")),
    ("ping_by_4", Check::Is("0")),
    ("ping_by_8", Check::Is("0")),
];

/// For a guest without a console: leads to an exit code of 40 and its CPUs if its card works, else to 40.
const REACH: &str = "ping -c 2 -w 20 $host >/dev/null && exit $((40 + $(nproc))); exit 40";

/// Touches all of the memory.
const TOUCH: &str = "tests touch-memory";
/// The queue pairs that the card has and those that are in use.
const PAIRS: &str = "echo pairs=$(ethtool -l eth0 | sed -n 's/Combined:[^0-9]*//p')";

const CASES: &[Case] = &[
    Case { name: "own-initrd", kernels: ALL, initrd: Initrd::Own, mem_mib: 1024, ..PLAIN },
    Case {
        name: "150m-initrd",
        kernels: &[V6_12, GENERIC[1]],
        initrd: Initrd::Large,
        mem_mib: 1024,
        answers: &[("pads", Check::Is("whole 4"))],
        ..PLAIN
    },
    // Below this the kernels run out of memory by themselves, on other machines as well: 6.1 needs more than 76 MiB.
    Case { name: "80m", kernels: CLOUD, initrd: Initrd::Small, mem_mib: 80, cpus: 1, ..PLAIN },
    Case {
        name: "3g",
        mem_mib: 3 << 10,
        script: TOUCH,
        answers: &[("wrong_pages", Check::Is("0")), ("touched_mib", Check::AtLeast(2700))],
        ..PLAIN
    },
    Case {
        name: "3.5g",
        mem_mib: 3584,
        script: TOUCH,
        answers: &[
            ("wrong_pages", Check::Is("0")),
            ("touched_mib", Check::AtLeast(3100)),
            ("above_4g_mib", Check::AtLeast(350)),
        ],
        ..PLAIN
    },
    Case {
        name: "5g",
        kernels: CLOUD,
        mem_mib: 5 << 10,
        script: TOUCH,
        answers: &[
            ("wrong_pages", Check::Is("0")),
            ("touched_mib", Check::AtLeast(4500)),
            ("above_4g_mib", Check::AtLeast(1800)),
        ],
        ..PLAIN
    },
    Case {
        name: "16-cpus",
        kernels: CLOUD,
        cpus: 16,
        script: PAIRS,
        answers: &[("online", Check::Is("0-15")), ("pairs", Check::Is("8 8"))],
        ..PLAIN
    },
    Case {
        name: "16-cpus-16-pairs",
        cpus: 16,
        card: ",queues=16",
        script: PAIRS,
        answers: &[("online", Check::Is("0-15")), ("pairs", Check::Is("16 16"))],
        ..PLAIN
    },
    Case {
        name: "16-cpus-own-initrd",
        kernels: &[RT[0]],
        initrd: Initrd::Own,
        cpus: 16,
        mem_mib: 1024,
        answers: &[("online", Check::Is("0-15"))],
        ..PLAIN
    },
    Case { name: "cpus-off-and-on", kernels: CLOUD, cpus: 4, script: OFF_AND_ON, answers: OFF_AND_ON_ANSWERS, ..PLAIN },
    Case {
        name: "cpus-off-and-on-own-initrd",
        kernels: &[GENERIC[0], RT[0]],
        initrd: Initrd::Own,
        cpus: 4,
        mem_mib: 1024,
        script: OFF_AND_ON,
        answers: OFF_AND_ON_ANSWERS,
        ..PLAIN
    },
    Case { name: "maxcpus=1", kernels: CLOUD, words: "maxcpus=1", answers: &[("online", Check::Is("0"))], ..PLAIN },
    Case {
        name: "nosmp",
        kernels: CLOUD,
        words: "nosmp minivmm.exit=port",
        script: REACH,
        end: End::Code(41),
        ..PLAIN
    },
    Case { name: "noapic", words: "noapic minivmm.exit=port", script: REACH, end: End::Code(42), ..PLAIN },
    Case { name: "nokaslr", words: "nokaslr", ..PLAIN },
    Case { name: "nolapic_timer", words: "nolapic_timer", ..PLAIN },
    Case { name: "pci=nomsi", words: "pci=nomsi", answers: &[("msi", Check::Is("0"))], ..PLAIN },
    Case { name: "mem=256M", words: "mem=256M", ..PLAIN },
    Case { name: "quiet", words: "quiet", ..PLAIN },
    Case { name: "hvc0", words: "console=hvc0 console=ttyS0", ..PLAIN },
];

/// All cases with all their kernels, each under its name.
pub(super) fn all() -> impl Iterator<Item = (String, Debian, &'static Case)> {
    CASES.iter().flat_map(|case| {
        case.kernels.iter().map(move |kernel| (format!("{}/{}", kernel.name(), case.name), *kernel, case))
    })
}
