//! The programs to kill: a VMM without a VM, or minivmm itself with the probe guest of `tests/probe`.

use std::ffi::OsString;
use std::process::Command;

use tempfile::NamedTempFile;

use super::Moment;
use crate::vmm::{Vmm, itself};

/// The probe guest has started its first card when it prints this.
const GUEST_IS_UP: &str = "bench ready ";

/// The guest's activity from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guest {
    /// It sleeps.
    Idle,
    /// It sends as fast as it can.
    Busy,
}

/// A program that starts keepers.
pub(super) enum Program {
    /// This test.
    Fixture,
    /// minivmm.
    Minivmm(Minivmm),
}

/// A minivmm with its arguments.
pub(super) struct Minivmm {
    binary: OsString,
    probe: OsString,
    /// The file for its policy.
    policy: NamedTempFile,
}

impl Program {
    /// The minivmm that the environment names: `KILL_BINARY`, with `KILL_PROBE`, the probe guest.
    pub(super) fn from_env() -> Self {
        let Some(binary) = std::env::var_os("KILL_BINARY") else { return Self::Fixture };
        let probe = std::env::var_os("KILL_PROBE").expect("KILL_PROBE beside KILL_BINARY");
        let policy = NamedTempFile::with_suffix(".json").expect("a file");
        Self::Minivmm(Minivmm { binary, probe, policy })
    }

    /// Starts a VM without waiting.
    pub(super) fn start(&self, cards: &[&str], policy: Option<&str>, guest: Guest) -> Vmm {
        match self {
            Self::Fixture => {
                let mut command = itself(&[&["vmm", "web"], cards].concat());
                // Setting up a guest forks short-lived children, which inherit the open descriptors.
                command.env("GUESTS", "none").envs(policy.map(|policy| ("POLICY", policy)));
                Vmm::from_command(command)
            }
            Self::Minivmm(minivmm) => Vmm::from_command(minivmm.command(cards, policy, guest)),
        }
    }

    /// Waits until the cards are ready, and with minivmm until its guest has started the first one.
    pub(super) fn await_ready(&self, vmm: &Vmm) {
        match self {
            Self::Fixture => drop(vmm.taps()),
            Self::Minivmm(_) => while !vmm.line().starts_with(GUEST_IS_UP) {},
        }
    }

    /// Waits until a VMM has noticed that its keeper was killed: it ends if it has no cards yet, and else keeps them.
    pub(super) fn await_notice(&self, vmm: &Vmm, moment: Moment) {
        match (self, moment) {
            (Self::Fixture, _) => {
                let mut lines = std::iter::repeat_with(|| vmm.line());
                let line = lines.find(|line| !line.starts_with("ready ")).expect("a line");
                assert!(
                    line == "keeper gone" || line.starts_with("failed Cannot reach the network keeper: "),
                    "{line}"
                );
            }
            (Self::Minivmm(_), Moment::SetUp(_)) => {
                while vmm.try_line().is_some_and(|line| !line.starts_with(GUEST_IS_UP)) {}
            }
            (Self::Minivmm(_), Moment::Ready(_)) => {}
        }
    }

    /// Fails if minivmm or its keeper has complained of anything but the other's end.
    pub(super) fn check_words(&self, words: &str, what: &str) {
        let is_fine = |line: &str| {
            // The ready line: the guest has been heard.
            let is_ready = line.starts_with(r#"{"cards""#);
            is_ready || line.is_empty() || line.contains("network keeper") || line.starts_with("hint: ")
        };
        assert!(matches!(self, Self::Fixture) || words.lines().all(is_fine), "{what}: {words}");
    }
}

impl Minivmm {
    fn command(&self, cards: &[&str], policy: Option<&str>, guest: Guest) -> Command {
        let dir = if guest == Guest::Idle { "idle" } else { "tx" };
        let mut command = Command::new(&self.binary);
        command.arg("--kernel").arg(&self.probe).args(["--cmdline-replace", &format!("probe=bench dir={dir}")]);
        command.args(["--mem", "64M", "--console", "stdio", "--name", "web"]);
        command.args(cards.iter().flat_map(|card| ["--net", card]));
        if let Some(policy) = policy {
            std::fs::write(self.policy.path(), policy).expect("room for it");
            command.arg("--policy").arg(self.policy.path());
        }
        command
    }
}
