//! The flags of a VM, which are also the keys of a configuration file: one struct, read by clap and by serde.

use super::{ConsoleSpec, DiskSpec, LogLevel, MemSize, OnDiskError, OnReboot, SmbiosSpec};
use crate::confine::seccomp;
use crate::name::VmName;
use crate::policy::PolicyFile;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use jail::Identity;
use nix::unistd::{Gid, Uid};
use serde::Deserialize;
use serde::de::{self, Deserializer};
use std::fmt;
use std::fs;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

const DISK_HELP: &str = "\
Raw disk image or block device: path=FILE[,readonly=on|off][,serial=TEXT][,queues=N][,block-size=BYTES]\
[,format=raw]; can be repeated";
const SMBIOS_HELP: &str = "\
Text of the guest's SMBIOS tables: vendor, product, version, serial, uuid, sku, family, or one more OEM string (oem),
such as serial=ds=nocloud-net;s=URL or oem=io.systemd.credential:NAME=TEXT; can be repeated. The UUID follows from
--name unless given";
const NET_SUMMARY: &str = "\
Network card: a mode (bridge=NAME, nat, host, macvtap=IFACE, ovs=BRIDGE, tap=NAME or fd=N), then keys, such as \
bridge=br0,mtu=9000; can be repeated. --help-net lists the keys";

/// The groups of `--help`.
const BOOT: &str = "Kernel";
const MACHINE: &str = "Machine";
const NETWORK: &str = "Network";
const RUN: &str = "Console, ready line and ends";
const CONFINEMENT: &str = "Confinement";

/// The settings of a VM.
#[derive(Debug, Args, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Settings {
    /// Kernel: a bzImage, or an ELF vmlinux [default: the guest that `./run guest` has made]
    #[arg(long, help_heading = BOOT, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,

    /// Initial RAM disk
    #[arg(long, help_heading = BOOT, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,

    /// Text to append to the default kernel command line
    #[arg(long, help_heading = BOOT, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) cmdline: Vec<String>,

    /// Kernel command line instead of the default one
    #[arg(long, help_heading = BOOT, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) cmdline_replace: Option<String>,

    /// Number of vCPUs
    #[arg(long, help_heading = MACHINE, value_name = "N", default_value_t = 1, value_parser = vcpus)]
    #[serde(deserialize_with = "cpus")]
    pub(crate) cpus: u32,

    /// Memory of the guest: a number with K, M, G or T
    #[arg(long, help_heading = MACHINE, value_name = "SIZE", default_value = "512M")]
    #[serde(deserialize_with = "text")]
    pub(crate) mem: MemSize,

    /// Disks, by ascending slot.
    #[arg(long, help_heading = MACHINE, value_name = "SPEC", help = DISK_HELP)]
    pub(crate) disk: Vec<DiskSpec>,

    /// Effect of a failure of a disk on the host, such as a full file system
    #[arg(long, help_heading = MACHINE, value_name = "WHAT", default_value = "report")]
    pub(crate) on_disk_error: OnDiskError,

    /// Network cards, by ascending slot.
    #[arg(long, help_heading = NETWORK, value_name = "SPEC", help = NET_SUMMARY)]
    pub(crate) net: Vec<net::NetSpec>,

    /// Security groups: a TOML or JSON file that says what may reach the guest and what the guest may reach, on all
    /// cards, connection by connection. Unless it says otherwise, the guest reaches everything and nothing reaches the
    /// guest
    #[arg(long, help_heading = NETWORK, value_name = "FILE")]
    #[serde(deserialize_with = "some_text")]
    pub(crate) policy: Option<PolicyFile>,

    /// Name of the VM, unique on this host; the cards' addresses are derived from it [default: minivmm-PID]
    #[arg(long, help_heading = MACHINE, value_name = "NAME")]
    #[serde(deserialize_with = "some_text")]
    pub(crate) name: Option<VmName>,

    /// The user that the VMM becomes if it is started by root: a name or a number [default: one of its own, from
    /// 1900000000 on]
    #[arg(long, help_heading = CONFINEMENT, value_name = "USER", value_parser = user)]
    #[serde(deserialize_with = "some_user")]
    pub(crate) user: Option<Identity>,

    /// Leave the VM's processes all that their user has, for debugging. Not with --policy
    #[arg(long, help_heading = CONFINEMENT)]
    pub(crate) no_confine: bool,

    /// Texts of the guest's SMBIOS tables.
    #[arg(long, help_heading = MACHINE, value_name = "KEY=TEXT", help = SMBIOS_HELP)]
    pub(crate) smbios: Vec<SmbiosSpec>,

    /// Where the guest's serial port goes: stdio, pty, file=PATH (overwritten, and as large as the guest makes it) or
    /// none. On a terminal, Ctrl-A x quits and Ctrl-A Ctrl-A sends a Ctrl-A
    #[arg(long, help_heading = RUN, value_name = "WHERE", default_value = "stdio")]
    #[serde(deserialize_with = "text")]
    pub(crate) console: ConsoleSpec,

    /// Effect of a reset of the guest, such as a reboot
    #[arg(long, help_heading = RUN, value_name = "WHAT", default_value = "exit")]
    pub(crate) on_reboot: OnReboot,

    /// How long the guest may take to power off after SIGTERM, SIGINT or SIGHUP
    #[arg(long, help_heading = RUN, value_name = "SECONDS", default_value_t = 10, value_parser = seconds)]
    #[serde(deserialize_with = "stop_timeout")]
    pub(crate) stop_timeout: u32,

    /// Where the line goes that says that every card has an address: the number of an open descriptor. It is an object
    /// of JSON [default: stderr, where it is the only line that begins with {]
    #[arg(long, help_heading = RUN, value_name = "N", value_parser = descriptor)]
    #[serde(deserialize_with = "ready_fd")]
    pub(crate) ready_fd: Option<RawFd>,

    /// Stop the VM with code 97 if a card has no address so many seconds after the start
    #[arg(long, help_heading = RUN, value_name = "SECONDS", value_parser = seconds)]
    #[serde(deserialize_with = "wait_net")]
    pub(crate) wait_net: Option<u32>,

    /// Effect of a system call that minivmm does not need: a bug, or a guest that has taken it over. "log" and "off"
    /// are for development
    #[arg(long, help_heading = CONFINEMENT, value_name = "WHAT", default_value = "kill")]
    pub(crate) seccomp: seccomp::Mode,

    /// Log level on stderr
    #[arg(long, help_heading = RUN, value_name = "LEVEL", default_value = "warn")]
    pub(crate) log: LogLevel,
}

impl Settings {
    /// The keys of a configuration file.
    pub(super) fn keys() -> Vec<String> {
        let command = Self::augment_args(Command::new(""));
        command.get_arguments().filter_map(|arg| arg.get_long()).map(str::to_owned).collect()
    }

    /// Overrides these settings by those that the command line gives. `matches` must not hold any defaults.
    pub(super) fn overridden(mut self, matches: &ArgMatches) -> Result<Self, clap::Error> {
        self.update_from_arg_matches(matches)?;
        Ok(self)
    }
}

impl Default for Settings {
    /// Those of an empty command line.
    #[expect(clippy::expect_used, reason = "a fact that the tests hold")]
    fn default() -> Self {
        let matches = Self::augment_args(Command::new("")).get_matches_from([""]);
        Self::from_arg_matches(&matches).expect("every flag has a default that it takes")
    }
}

pub(super) fn vcpus(text: &str) -> Result<u32, &'static str> {
    match text.parse() {
        Ok(0) => Err("A guest has at least 1 vCPU"),
        Ok(count) => Ok(count),
        Err(_) => Err("The number of vCPUs is a whole number, such as 2"),
    }
}

fn seconds(text: &str) -> Result<u32, &'static str> {
    text.parse().map_err(|_| "A time is a whole number of seconds, such as 10")
}

fn descriptor(text: &str) -> Result<RawFd, &'static str> {
    match text.parse() {
        Ok(number) if number > 2 => Ok(number),
        _ => Err("A descriptor is the number of one that is open beside the standard streams, such as 3"),
    }
}

/// A user of this host, by name or number, with its group.
fn user(text: &str) -> Result<Identity, String> {
    let fields = |line: &str| -> Option<(String, u32, u32)> {
        let mut fields = line.split(':');
        let (name, _) = (fields.next()?.to_owned(), fields.next()?);
        Some((name, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    let number = text.parse::<u32>().ok();
    let known = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let known = known.lines().filter_map(fields).find(|(name, uid, _)| name == text || Some(*uid) == number);
    let (uid, gid) = match (known, number) {
        (Some((_, uid, gid)), _) => (uid, gid),
        (None, Some(number)) => (number, number),
        (None, None) => return Err(format!("This host's /etc/passwd has no user {text}; a number works without")),
    };
    if uid == 0 {
        return Err("The VMM does not run as root: name another user".to_owned());
    }
    Ok(Identity { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid) })
}

/// A value as a file has it, which is read like the text of a flag.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Number(i64),
    Text(String),
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// Reads a value with the parser of its flag.
fn read<'de, D, T, E>(deserializer: D, parse: impl FnOnce(&str) -> Result<T, E>) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    E: fmt::Display,
{
    parse(&Scalar::deserialize(deserializer)?.to_string()).map_err(de::Error::custom)
}

fn text<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    read(deserializer, str::parse)
}

fn some_text<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    text(deserializer).map(Some)
}

fn cpus<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    read(deserializer, vcpus)
}

fn stop_timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    read(deserializer, seconds)
}

fn wait_net<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    read(deserializer, seconds).map(Some)
}

fn ready_fd<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<RawFd>, D::Error> {
    read(deserializer, descriptor).map(Some)
}

fn some_user<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Identity>, D::Error> {
    read(deserializer, user).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_is_a_name_or_a_number_and_never_root() {
        let id = |text: &str| user(text).map(|identity| (identity.uid.as_raw(), identity.gid.as_raw()));
        assert_eq!(id("1900000001"), Ok((1_900_000_001, 1_900_000_001)));
        assert_eq!(id("daemon"), Ok((1, 1)));
        assert_eq!(id("1"), Ok((1, 1)));
        assert!(id("root").is_err() && id("0").is_err() && id("no such user").is_err());
    }
}
