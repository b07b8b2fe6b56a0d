//! The command line: flags, their checked values, and how a wrong one is refused.

mod bounds;
mod command;
mod disk;
mod file;
mod foreign;
mod settings;
mod size;
mod smbios;

use crate::exit;
use crate::name::VmName;
use crate::request::Request;
use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};
use command::{Command, NetCommand};
pub(crate) use command::{Inspection, Question};
pub(crate) use disk::{DiskSpec, Format as DiskFormat};
use file::BadConfig;
use net::spec::keys;
use serde::Deserialize;
pub(crate) use settings::Settings;
pub(crate) use size::{MIB, MemSize};
pub(crate) use smbios::SmbiosSpec;
use std::env;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Boot a Linux kernel in a small virtual machine whose network cards are already on your bridge.
#[derive(Debug, Parser)]
#[command(
    name = "minivmm",
    version,
    after_help = exit::TABLE,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true
)]
struct Cli {
    /// The command; none runs a VM.
    #[command(subcommand)]
    command: Option<Command>,

    /// Settings that are not given here: a TOML file with the flags' names as keys, [[disk]] and [[net]] tables
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// List the modes and keys of --net, or explain one of them
    #[arg(long, value_name = "KEY", num_args = 0..=1, default_missing_value = "", exclusive = true)]
    help_net: Option<String>,

    #[command(flatten)]
    settings: Settings,
}

/// The effect of a guest's reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnReboot {
    /// The process ends with code 96.
    Exit,
    /// The process ends with code 0, as if the guest had powered off.
    PowerOff,
    /// The machine starts again, with the same disks and taps.
    Restart,
}

/// The effect of a failure of a disk's file or device on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnDiskError {
    /// The guest gets an I/O error.
    Report,
    /// The guest's request waits and is tried again every second.
    Pause,
    /// The process ends with code 71.
    Stop,
}

/// The least severe messages that are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogLevel {
    /// A request of the user failed.
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

/// The meaning of a command line.
pub(crate) enum Parsed {
    /// A machine to run.
    Run(Box<Settings>),
    /// A request for a machine that runs.
    Request(VmName, Request),
    /// A question about the host.
    Inspect(Question),
    /// A question that this text answers.
    Answer(String),
    /// Wrong: a sentence, and what to do.
    Refused {
        /// The mistake.
        sentence: String,
        /// Advice.
        hint: String,
    },
}

/// Parses the process's arguments.
pub(crate) fn parse() -> Parsed {
    match Cli::try_parse() {
        Ok(Cli { help_net: Some(topic), .. }) => help_net(&topic),
        Ok(Cli { command, config, settings, .. }) => match command {
            None => match config {
                None => run(settings),
                Some(path) => with_file(&path),
            },
            Some(Command::Counters { name }) => Parsed::Request(name, Request::Counters),
            Some(Command::Link { name, card, state }) => Parsed::Request(name, Request::Link { card, state }),
            Some(Command::Net(NetCommand::Plan(args))) => inspect(args.inspection().map(Question::Plan)),
            Some(Command::Net(NetCommand::List { json })) => Parsed::Inspect(Question::List { json }),
            Some(Command::Net(NetCommand::Policy { name, file })) => Parsed::Inspect(Question::Policy(name, file)),
            Some(Command::Net(NetCommand::Gc)) => Parsed::Inspect(Question::Gc),
            Some(Command::Doctor(args)) => inspect(args.inspection().map(Question::Doctor)),
        },
        Err(err) => match err.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Parsed::Answer(err.to_string()),
            _ => refusal(&err, &env::args().skip(1).collect::<Vec<_>>()),
        },
    }
}

/// The table of `--net`, or the text on one of its modes and keys.
fn help_net(topic: &str) -> Parsed {
    if topic.is_empty() {
        return Parsed::Answer(keys::help());
    }
    match keys::explain(topic) {
        Some(text) => Parsed::Answer(text),
        None => Parsed::Refused {
            sentence: format!("--net has no mode or key {topic:?}"),
            hint: capitalised(&net::spec::advice(topic, &keys::names())),
        },
    }
}

/// A machine with these settings, if there can be one.
fn run(settings: Settings) -> Parsed {
    match bounds::check(&settings) {
        Ok(()) => Parsed::Run(Box::new(settings)),
        Err(err) => Parsed::Refused { sentence: err.to_string(), hint: err.hint() },
    }
}

/// The settings of the file at `path`, and what this process's arguments say against them.
fn with_file(path: &Path) -> Parsed {
    let settings = match file::read(path) {
        Ok(settings) => settings,
        Err(err) => return bad_config(&err),
    };
    match explicit(Cli::command()).try_get_matches().and_then(|matches| settings.overridden(&matches)) {
        Ok(settings) => run(settings),
        Err(err) => refusal(&err, &[]),
    }
}

fn inspect(question: Result<Question, BadConfig>) -> Parsed {
    let question = match question {
        Ok(question) => question,
        Err(err) => return bad_config(&err),
    };
    if let Question::Plan(inspection) | Question::Doctor(inspection) = &question
        && let Err(err) = bounds::check_counts(inspection.request.cards.len(), 0)
    {
        return Parsed::Refused { sentence: err.to_string(), hint: err.hint() };
    }
    Parsed::Inspect(question)
}

fn bad_config(err: &BadConfig) -> Parsed {
    let hint = "The keys are the flags of minivmm --help; cards and disks are [[net]] and [[disk]] tables".to_owned();
    Parsed::Refused { sentence: err.to_string(), hint }
}

/// `command` without default values, so that it matches only what is given.
fn explicit(command: clap::Command) -> clap::Command {
    command.mut_args(|arg| arg.default_value(Resettable::Reset))
}

/// Makes one sentence and a hint of clap's paragraphs: `error: ...`, `tip: ...`, usage. `args` are those of the
/// process.
fn refusal(err: &clap::Error, args: &[String]) -> Parsed {
    let text = &err.to_string();
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
        None if text.contains("'--net <SPEC>'") => "See minivmm --help-net".to_owned(),
        None => "See minivmm --help".to_owned(),
    };
    Parsed::Refused { sentence, hint: foreign::hint(err, args).unwrap_or(hint) }
}

pub(crate) fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["minivmm"], args].concat())
    }

    fn refused(args: &[&str]) -> (String, String) {
        let words: Vec<String> = args.iter().map(ToString::to_string).collect();
        match refusal(&parse(args).unwrap_err(), &words) {
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
        let cli = parse(&[]).unwrap().settings;
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
            (&["--on-disk-error", "ignore"], "--on-disk-error"),
            (&["--frobnicate"], "--frobnicate"),
            (&["frobnicate"], "frobnicate"),
            (&["counters"], "required"),
            (&["counters", "A B"], "A B"),
            (&["link", "web", "eth0", "down"], "net0, net1"),
            (&["link", "web", "net0", "sideways"], "sideways"),
            (&["net"], "subcommand"),
            (&["net", "plan"], "not provided: <--net <SPEC>|--config <FILE>>"),
            (&["net", "plan", "--net", "brige=x"], "bridge=NAME"),
        ] {
            let (sentence, hint) = refused(args);
            assert!(sentence.contains(part), "{args:?}: {sentence}");
            assert!(!sentence.contains('\n') && !hint.is_empty(), "{args:?}: {hint}");
        }
    }

    #[test]
    fn flags_override_a_file_and_defaults_do_not() {
        let file = || Settings { cpus: 4, net: vec!["tap=tap0".parse().unwrap()], ..Settings::default() };
        let with = |args: &[&str]| {
            let matches = explicit(Cli::command()).try_get_matches_from([&["minivmm"], args].concat()).unwrap();
            file().overridden(&matches).unwrap()
        };

        let same = with(&["--config", "x"]);
        let other = with(&["--cpus", "2", "--net", "bridge=br0"]);

        assert_eq!((same.cpus, same.net), (4, file().net));
        assert_eq!((other.cpus, other.net), (2, vec!["bridge=br0".parse().unwrap()]));
    }

    #[test]
    fn help_of_cards_lists_all_keys_and_explains_each() {
        let answer = |topic: &str| match help_net(topic) {
            Parsed::Answer(text) => text,
            _ => panic!("{topic} is refused"),
        };
        assert_eq!(parse(&["--help-net"]).unwrap().help_net.as_deref(), Some(""));
        assert_eq!(parse(&["--help-net", "vlan"]).unwrap().help_net.as_deref(), Some("vlan"));
        for name in keys::names() {
            assert!(answer("").contains(name) && answer(name).contains(name), "{name}");
        }
        let Parsed::Refused { sentence, hint } = help_net("vlna") else { panic!("accepted") };
        assert_eq!((sentence.as_str(), hint.as_str()), ("--net has no mode or key \"vlna\"", "Did you mean vlan=?"));
        assert!(parse(&["--help-net", "vlan", "--cpus", "2"]).is_err());
    }

    #[test]
    fn help_has_a_heading_for_each_group_and_no_flag_without_one() {
        let help = Cli::command().render_long_help().to_string();
        for heading in ["Kernel:", "Machine:", "Network:", "Console, ready line and ends:", "Options:"] {
            assert!(help.lines().any(|line| line == heading), "{heading}");
        }
        let without: Vec<_> = Cli::command()
            .get_arguments()
            .filter(|arg| arg.get_help_heading().is_none())
            .map(|arg| arg.get_id().to_string())
            .collect();
        assert_eq!(without, ["config", "help_net"]);
        assert!(help.contains("--help-net"));
    }

    #[test]
    fn words_of_other_programs_have_ours_in_the_hint() {
        for (args, part) in [
            (&["--memory", "1G"][..], "--mem SIZE"),
            (&["--memory=1G"], "--mem SIZE"),
            (&["-m", "512"], "--mem SIZE"),
            (&["-smp", "2"], "--cpus N"),
            (&["--append", "x"], "--cmdline"),
            (&["-append", "x"], "--cmdline"),
            (&["-kernel", "x"], "two dashes: --kernel"),
            (&["-net", "nic"], "two dashes: --net"),
            (&["--drive", "file=x"], "--disk path=FILE"),
            (&["--hda", "x"], "--disk path=FILE"),
            (&["-nic", "user"], "--net"),
            (&["-netdev", "x"], "--net"),
            (&["--serial", "tty"], "--console"),
            (&["-nographic"], "Leave it out"),
            (&["--rng", "src=x"], "Leave it out"),
            (&["--api-socket", "x"], "minivmm counters"),
            (&["--initramfs", "x"], "--initrd"),
            (&["-enable-kvm"], "Leave it out"),
            (&["--frobnicate"], "minivmm --help"),
        ] {
            let (_, hint) = refused(args);
            assert!(hint.contains(part), "{args:?}: {hint}");
        }
    }

    #[test]
    fn every_word_of_other_programs_gives_its_hint() {
        for (words, text) in foreign::FLAGS {
            for word in *words {
                let flag = format!("{}{word}", if word.len() == 1 { "-" } else { "--" });
                assert_eq!(refused(&[&flag]).1, *text, "{flag}");
            }
        }
    }

    #[test]
    fn value_that_the_shell_has_split_is_quoted_in_the_hint() {
        for (args, quoted) in [
            (&["--cmdline", "root=/dev/vda", "ro"][..], "--cmdline 'root=/dev/vda ro'"),
            (&["--cmdline=root=/dev/vda", "ro", "--mem", "1G"], "--cmdline 'root=/dev/vda ro'"),
            (&["--mem", "1G", "--cmdline", "quiet", "it's", "ro"], r"--cmdline 'quiet it'\''s ro'"),
            (&["--name", "my", "vm"], "--name 'my vm'"),
        ] {
            let (_, hint) = refused(args);
            assert_eq!(hint, format!("Quote a value that has spaces: {quoted}"), "{args:?}");
        }
        for args in [&["frobnicate"][..], &["--kernel", "x", "doctor"]] {
            assert!(!refused(args).1.contains("Quote"), "{args:?}");
        }
    }

    #[test]
    fn possible_values_become_the_hint() {
        let (_, hint) = refused(&["--on-reboot", "halt"]);
        assert_eq!(hint, "It can be exit, power-off, restart");
    }
}
