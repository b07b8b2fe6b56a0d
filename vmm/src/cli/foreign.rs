//! Words of other programs' command lines, and values that the shell has split: what the user most likely meant.

use super::command::Command;
use clap::Subcommand;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Flags of QEMU, Cloud Hypervisor, Firecracker, crosvm, lkvm and virt-install without their dashes, and what minivmm
/// has instead.
pub(super) const FLAGS: &[(&[&str], &str)] = &[
    (&["m", "memory", "ram", "memory-size"], "The guest's memory is --mem SIZE, such as --mem 512M"),
    (&["smp", "vcpus", "vcpu", "cpu-count"], "The number of vCPUs is --cpus N"),
    (&["k", "bzimage", "vmlinux"], "The kernel is --kernel FILE"),
    (&["initramfs", "ramdisk", "i"], "The initrd is --initrd FILE"),
    (&["append", "params", "kernel-cmdline", "boot-args", "p"], "Kernel parameters are --cmdline 'TEXT'"),
    (
        &[
            "drive", "hda", "hdb", "hdc", "hdd", "block", "blockdev", "rwdisk", "root", "rootfs", "pmem", "cdrom",
            "volume",
        ],
        "A disk is --disk path=FILE, and a raw image",
    ),
    (
        &["nic", "netdev", "network", "tap", "bridge", "device", "net-backend", "b"],
        "A network card is --net bridge=NAME, --net nat or --net tap=NAME; minivmm --help lists its keys",
    ),
    (&["mac", "mtu", "queues", "vhost"], "It is a key of a card: --net nat,KEY=VALUE"),
    (&["serial", "chardev", "monitor", "tty"], "The serial port is --console stdio, pty, file=PATH or none"),
    (
        &["nographic", "display", "vga", "curses"],
        "Leave it out: there is no display, and the console is stdin and stdout",
    ),
    (&["no-reboot", "action"], "A reboot ends the run unless --on-reboot restart is given"),
    (&["id", "vm-id", "n"], "The VM's name is --name NAME"),
    (&["config-file", "readconfig", "c"], "The settings of a VM can be in a TOML file: --config FILE"),
    (&["log-file", "d", "v", "log-level", "verbose"], "The log goes to stderr; its level is --log LEVEL"),
    (
        &["api-socket", "api-sock", "no-api", "qmp", "event-monitor", "socket"],
        "Leave it out: a VM that runs is asked by its name, with minivmm counters NAME and minivmm link NAME",
    ),
    (&["rng", "object", "entropy"], "Leave it out: every guest has a virtio random number generator"),
    (
        &["M", "machine", "accel", "enable-kvm", "cpu", "platform", "sandbox", "watchdog", "balloon", "daemonize"],
        "Leave it out: there is one kind of machine, on KVM, and nothing to choose about it",
    ),
    (&["bios", "firmware", "pflash"], "There is no firmware: give the kernel with --kernel FILE"),
    (&["fs", "virtfs", "shared-dir", "vsock", "vfio"], "minivmm has no such device"),
];

/// The hint for an argument that minivmm does not know, or for a word that belongs to no flag.
pub(super) fn hint(err: &clap::Error, args: &[String]) -> Option<String> {
    let word = |kind| match err.get(kind) {
        Some(ContextValue::String(word)) => Some(word.as_str()),
        _ => None,
    };
    match err.kind() {
        ErrorKind::UnknownArgument => {
            let unknown = word(ContextKind::InvalidArg)?;
            if unknown.starts_with('-') { of_flag(unknown, args) } else { split_value(unknown, args) }
        }
        ErrorKind::InvalidSubcommand => split_value(word(ContextKind::InvalidSubcommand)?, args),
        // A word after a flag's value is taken for a subcommand, which a flag excludes.
        ErrorKind::ArgumentConflict => {
            let conflict = word(ContextKind::InvalidSubcommand)?;
            let is_ours = Command::augment_subcommands(clap::Command::new("")).find_subcommand(conflict).is_some();
            if is_ours { None } else { split_value(conflict, args) }
        }
        _ => None,
    }
}

/// The place of another program's flag. clap takes the first letter of `-smp` for a flag.
fn of_flag(unknown: &str, args: &[String]) -> Option<String> {
    let is_it = |arg: &&String| arg.starts_with(unknown) && !(unknown.starts_with("--") && arg.len() != unknown.len());
    let given = args.iter().map(|arg| arg.split_once('=').map_or(arg.as_str(), |(flag, _)| flag).to_owned());
    let given: Vec<String> = given.collect();
    let word = given.iter().find(is_it)?.trim_start_matches('-');
    if OURS.contains(&word) {
        return Some(format!("Flags have two dashes: --{word}"));
    }
    let (_, text) = FLAGS.iter().find(|(words, _)| words.contains(&word))?;
    Some((*text).to_owned())
}

/// Our flags that others write with one dash.
const OURS: [&str; 10] = ["kernel", "initrd", "cmdline", "mem", "cpus", "disk", "net", "name", "console", "config"];

/// A flag whose value was meant to go on with `word`.
fn split_value(word: &str, args: &[String]) -> Option<String> {
    let at = args.iter().position(|arg| arg == word)?;
    let flag_at = args[..at].iter().rposition(|arg| arg.starts_with("--"))?;
    let (flag, first) = match args[flag_at].split_once('=') {
        Some((flag, value)) => (flag, Some(value)),
        None => (args[flag_at].as_str(), None),
    };
    let rest = args[flag_at + 1..].iter().take_while(|arg| !arg.starts_with("--")).map(String::as_str);
    let value: Vec<&str> = first.into_iter().chain(rest).collect();
    // Without a value before it, the word is not what is left of one.
    let is_split = flag_at + usize::from(first.is_none()) < at;
    is_split.then(|| format!("Quote a value that has spaces: {flag} {}", quoted(&value.join(" "))))
}

/// A text as one word of the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
