//! The command line: flags, their checked values, and how a wrong one is refused.

mod disk;
mod size;
mod word;

use crate::exit;
use crate::name::VmName;
use crate::request::Request;
use clap::error::ErrorKind;
use clap::{Parser, ValueEnum};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

pub(crate) use disk::DiskSpec;
pub(crate) use size::{MIB, MemSize};
pub(crate) use word::NetWord;
use word::Word;

const DISK_HELP: &str = "Raw disk image or block device: path=FILE[,readonly=on|off][,serial=TEXT]; can be repeated";
const NET_HELP: &str = "Network card: bridge=NAME[,create=on|off], tap=NAME or fd=N[:N...], then \
                        [,mac=MAC][,mtu=BYTES][,queues=N][,ring=N][,offload=on|off|LIST][,vhost=on|off]; can be repeated";

/// Boot a Linux kernel in a small virtual machine whose network cards are already on your bridge.
#[derive(Debug, Parser)]
#[command(
    name = "minivmm",
    version,
    after_help = exit::TABLE,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    /// What to do instead of running a VM.
    #[command(subcommand)]
    word: Option<Word>,

    /// Kernel: a bzImage, or an ELF vmlinux [default: the guest that `./run guest` has made]
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,

    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,

    /// Text to append to the default kernel command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) cmdline: Vec<String>,

    /// Kernel command line instead of the default one
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) cmdline_replace: Option<String>,

    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = vcpus)]
    pub(crate) cpus: u32,

    /// Memory of the guest: a number with K, M, G or T
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub(crate) mem: MemSize,

    /// Disks, by ascending slot.
    #[arg(long, value_name = "SPEC", help = DISK_HELP)]
    pub(crate) disk: Vec<DiskSpec>,

    /// Network cards, by ascending slot.
    #[arg(long, value_name = "SPEC", help = NET_HELP)]
    pub(crate) net: Vec<net::NetSpec>,

    /// Name of the VM, unique on this host; the cards' addresses are derived from it [default: minivmm-PID]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<VmName>,

    /// Where the guest's serial port goes: stdio, pty, file=PATH (overwritten, and as large as the guest makes it) or none. On a
    /// terminal, Ctrl-A x quits and Ctrl-A Ctrl-A sends a Ctrl-A
    #[arg(long, value_name = "WHERE", default_value = "stdio")]
    pub(crate) console: ConsoleSpec,

    /// What to do when the guest reboots
    #[arg(long, value_name = "WHAT", default_value = "exit")]
    pub(crate) on_reboot: OnReboot,

    /// How long the guest may take to power off after SIGTERM, SIGINT or SIGHUP
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = seconds)]
    pub(crate) stop_timeout: u32,

    /// Where the line goes that says that every card has an address: the number of an open descriptor. It is an object of JSON
    /// [default: stderr, where it is the only line that begins with {]
    #[arg(long, value_name = "N", value_parser = descriptor)]
    pub(crate) ready_fd: Option<RawFd>,

    /// Stop the VM with code 97 if a card has no address so many seconds after the start
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) wait_net: Option<u32>,

    /// Log level on stderr
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    pub(crate) log: LogLevel,
}

/// What a guest's reset does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnReboot {
    /// The process ends with code 0.
    Exit,
    /// The machine starts again, with the same disks and taps.
    Restart,
}

/// What is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    /// What the user wished for failed.
    Error,
    /// Odd, but served.
    Warn,
    /// Rare changes.
    Info,
    /// For developers: every step of the start with its time.
    Debug,
}

/// Where the serial port goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ConsoleSpec {
    /// stdin and stdout.
    Stdio,
    /// A new pseudoterminal.
    Pty,
    /// A file, output only. It grows without limit.
    File(PathBuf),
    /// Nowhere.
    None,
}

/// Text that is no console.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("A console is stdio, pty, file=PATH or none")]
pub(crate) struct BadConsole;

impl FromStr for ConsoleSpec {
    type Err = BadConsole;

    fn from_str(text: &str) -> Result<Self, BadConsole> {
        match (text, text.strip_prefix("file=")) {
            ("stdio", _) => Ok(Self::Stdio),
            ("pty", _) => Ok(Self::Pty),
            ("none", _) => Ok(Self::None),
            (_, Some(path)) if !path.is_empty() => Ok(Self::File(PathBuf::from(path))),
            _ => Err(BadConsole),
        }
    }
}

impl From<LogLevel> for log::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
        }
    }
}

fn vcpus(text: &str) -> Result<u32, &'static str> {
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

/// What a command line turned out to be.
pub(crate) enum Parsed {
    /// A machine to run.
    Run(Box<Cli>),
    /// A request for a machine that runs.
    Ask(VmName, Request),
    /// A question about the host.
    Explain(NetWord),
    /// A question that this text answers.
    Answer(String),
    /// Wrong: a sentence, and what to do.
    Refused {
        /// What is wrong.
        sentence: String,
        /// What to do.
        hint: String,
    },
}

/// Parses the process's arguments.
pub(crate) fn parse() -> Parsed {
    match Cli::try_parse() {
        Ok(mut cli) => match cli.word.take() {
            None => Parsed::Run(Box::new(cli)),
            Some(Word::Counters { name }) => Parsed::Ask(name, Request::Counters),
            Some(Word::Link { name, card, state }) => Parsed::Ask(name, Request::Link { card, state }),
            Some(Word::Net(word)) => Parsed::Explain(word),
        },
        Err(err) => match err.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Parsed::Answer(err.to_string()),
            _ => refusal(&err.to_string()),
        },
    }
}

/// Makes one sentence and a hint of clap's paragraphs: `error: ...`, `tip: ...`, usage.
fn refusal(text: &str) -> Parsed {
    let mut lines = text.lines().map(str::trim);
    let mut sentence = capitalised(lines.next().unwrap_or_default().trim_start_matches("error: "));
    if sentence.ends_with(':') {
        // What is listed comes on lines of its own.
        let listed: Vec<&str> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        sentence = format!("{sentence} {}", listed.join(", "));
    }
    let hint = lines
        .find_map(|line| line.strip_prefix("tip: ").or_else(|| line.strip_prefix("[possible values: ")))
        .map(|line| line.trim_end_matches(']'));
    let hint = match hint {
        Some(hint) if text.contains("[possible values: ") => format!("It can be {hint}"),
        Some(hint) => capitalised(hint),
        None => "See minivmm --help".to_owned(),
    };
    Parsed::Refused { sentence, hint }
}

pub(crate) fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["minivmm"], args].concat())
    }

    fn refused(args: &[&str]) -> (String, String) {
        match refusal(&parse(args).unwrap_err().to_string()) {
            Parsed::Refused { sentence, hint } => (sentence, hint),
            _ => panic!("accepted"),
        }
    }

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_need_no_flag() {
        let cli = parse(&[]).unwrap();
        assert_eq!((cli.cpus, cli.mem.bytes()), (1, 512 * MIB));
        assert_eq!(cli.console, ConsoleSpec::Stdio);
    }

    #[test]
    fn wrong_values_are_refused_in_one_line_that_names_them() {
        for (args, part) in [
            (&["--cpus", "0"][..], "at least 1 vCPU"),
            (&["--cpus", "two"], "whole number"),
            (&["--stop-timeout", "soon"], "whole number of seconds"),
            (&["--ready-fd", "1"], "beside the standard streams"),
            (&["--wait-net", "soon"], "whole number of seconds"),
            (&["--mem", "12"], "--mem"),
            (&["--mem", "1M"], "64 MiB"),
            (&["--console", "tty"], "stdio, pty"),
            (&["--name", "A B"], "--name"),
            (&["--net", "brige=x"], "bridge=NAME"),
            (&["--disk", "path=a,path=b"], "path"),
            (&["--on-reboot", "halt"], "--on-reboot"),
            (&["--frobnicate"], "--frobnicate"),
            (&["frobnicate"], "frobnicate"),
            (&["counters"], "required"),
            (&["counters", "A B"], "A B"),
            (&["link", "web", "eth0", "down"], "net0, net1"),
            (&["link", "web", "net0", "sideways"], "sideways"),
            (&["net"], "subcommand"),
            (&["net", "plan"], "not provided: --net <SPEC>"),
            (&["net", "plan", "--net", "brige=x"], "bridge=NAME"),
        ] {
            let (sentence, hint) = refused(args);
            assert!(sentence.contains(part), "{args:?}: {sentence}");
            assert!(!sentence.contains('\n') && !hint.is_empty(), "{args:?}: {hint}");
        }
    }

    #[test]
    fn possible_values_become_the_hint() {
        let (_, hint) = refused(&["--on-reboot", "halt"]);
        assert_eq!(hint, "It can be exit, restart");
    }
}
