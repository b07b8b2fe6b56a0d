//! The namespace of a case: its links, a look at all of it, and minivmm in it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// The binary.
pub(crate) const MINIVMM: &str = env!("CARGO_BIN_EXE_minivmm");

/// Solicitations and reports of the host's own would teach bridges addresses at any moment.
pub(crate) fn quiet() {
    for scope in ["all", "default"] {
        // A kernel without IPv6 sends none.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1");
    }
}

/// A folder for the names of VMs that is this case's own.
pub(crate) fn own_names() {
    fs::create_dir_all("/run/minivmm").unwrap();
    sh("mount -t tmpfs -o mode=755 names /run/minivmm");
}

/// Runs a command line of words and returns what it prints.
pub(crate) fn sh(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output().expect(line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// A bridge that is up and has no ports.
pub(crate) fn bridge(name: &str) {
    sh(&format!("ip link add {name} type bridge mcast_snooping 0"));
    sh(&format!("ip link set {name} up"));
}

/// minivmm with these arguments.
pub(crate) fn minivmm(args: &[&str]) -> Command {
    let mut command = Command::new(MINIVMM);
    command.args(args);
    command
}

/// The same for a user without any privilege.
pub(crate) fn unprivileged(args: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", MINIVMM]).args(args);
    command
}

/// Its exit code, what it printed and what it said on stderr.
pub(crate) fn said(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code().unwrap_or(-1), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// Everything that could be changed in the namespace: links, addresses, routes, rules, nftables and sysctls.
pub(crate) fn snapshot() -> String {
    let mut text = links_at_rest();
    for line in ["ip address", "ip route show table all", "ip rule", "bridge fdb"] {
        text += &sh(line);
    }
    if let Ok(ruleset) = Command::new("nft").args(["list", "ruleset"]).output() {
        text += &String::from_utf8_lossy(&ruleset.stdout);
    }
    read_all(Path::new("/proc/sys/net"), &mut text);
    without_timers(&text)
}

/// Links as `ip` describes them, once the kernel, which reports a new carrier from a work queue, has no news of them.
fn links_at_rest() -> String {
    let start = Instant::now();
    loop {
        let text = sh("ip -d link");
        let news = |line: &str| line.contains("NO-CARRIER") && line.contains("LOWER_UP");
        if !text.lines().any(news) {
            return text;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "links do not come to rest: {text}");
    }
}

fn read_all(directory: &Path, text: &mut String) {
    let mut entries: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            read_all(&path, text);
        } else if !path.ends_with("nf_conntrack_count") {
            // Some can only be written.
            let value = fs::read_to_string(&path).unwrap_or_default();
            text.push_str(&format!("{}={value}", path.display()));
        }
    }
}

/// Without the timers of bridges, which run by themselves.
fn without_timers(text: &str) -> String {
    let mut words: Vec<&str> = text.split_inclusive([' ', '\n']).filter(|word| *word != " ").collect();
    for idx in 1..words.len() {
        if words[idx - 1].ends_with("_timer ") {
            words[idx] = "T ";
        }
    }
    words.concat()
}
