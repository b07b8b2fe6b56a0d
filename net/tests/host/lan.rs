//! Links that a case starts from, and their state.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

use crate::vmm::DEADLINE;

/// Runs a command line of words and returns what it prints.
pub(crate) fn sh(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output().expect(line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Gives this process its own directory for VM names, since cases that run side by side use the same names.
pub(crate) fn own_names() {
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
    std::fs::create_dir_all("/run/minivmm").expect("a folder");
    mount(Some("names"), "/run/minivmm", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("a file system");
}

/// A bridge that is up, with an uplink that is up: `peer0 --- up0 = NAME`.
pub(crate) fn bridge_with_uplink(name: &str) {
    for line in [
        format!("ip link add {name} type bridge mcast_snooping 0"),
        format!("ip link set {name} up"),
        "ip link add up0 type veth peer name peer0".to_owned(),
        format!("ip link set up0 master {name} up"),
        "ip link set peer0 up".to_owned(),
    ] {
        sh(&line);
    }
    // The kernel reports a new carrier from a work queue.
    for link in [name, "up0", "peer0"] {
        until(|| self::link(link)["operstate"] == "UP");
    }
}

/// Polls for at most [`DEADLINE`].
pub(crate) fn until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "it did not happen in time");
        std::thread::yield_now();
    }
}

/// A bridge that is up and has no ports.
pub(crate) fn empty_bridge(name: &str) {
    sh(&format!("ip link add {name} type bridge"));
    sh(&format!("ip link set {name} up"));
}

/// A link as `ip` describes it.
pub(crate) fn link(name: &str) -> Value {
    let text = sh(&format!("ip -d -j link show dev {name}"));
    let links: Value = serde_json::from_str(&text).expect("JSON");
    links[0].clone()
}

/// True if a link of that name exists.
pub(crate) fn exists(name: &str) -> bool {
    names().iter().any(|link| link == name)
}

/// All links but loopback.
pub(crate) fn names() -> Vec<String> {
    let links: Value = serde_json::from_str(&sh("ip -j link")).expect("JSON");
    let links = links.as_array().expect("a list").iter();
    links.map(|link| link["ifname"].as_str().expect("a name").to_owned()).filter(|name| name != "lo").collect()
}

/// The full output of `ip` and `bridge` on links, without timers.
pub(crate) fn snapshot() -> String {
    // Learned entries come and go by themselves.
    let kept = |entry: &&str| ["permanent", "static", "self"].iter().any(|word| entry.contains(word));
    let entries: String = sh("bridge fdb").split_inclusive('\n').filter(kept).collect();
    let text = links_at_rest() + &sh("bridge link") + &entries;
    let mut words: Vec<&str> = text.split_inclusive([' ', '\n']).filter(|word| *word != " ").collect();
    for idx in 1..words.len() {
        if words[idx - 1].ends_with("_timer ") {
            words[idx] = "T ";
        }
    }
    words.concat()
}

/// Links as `ip` describes them, once they are at rest: the kernel reports a new carrier from a work queue.
fn links_at_rest() -> String {
    let start = Instant::now();
    loop {
        let text = sh("ip -d link");
        let news = |line: &str| line.contains("NO-CARRIER") && line.contains("LOWER_UP");
        if !text.lines().any(news) {
            return text;
        }
        assert!(start.elapsed() < DEADLINE, "links do not come to rest: {text}");
    }
}

/// `ip monitor`: changes of links as they happen.
pub(crate) struct Monitor {
    child: Child,
    lines: Receiver<String>,
}

impl Monitor {
    pub(crate) fn start() -> Self {
        let mut child = Command::new("ip").args(["-o", "monitor", "link"]).stdout(Stdio::piped()).spawn().expect("ip");
        let stdout = child.stdout.take().expect("stdout");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let monitor = Self { child, lines };
        // It listens once it reports a change of ours; earlier changes are lost.
        for attempt in 0.. {
            assert!(attempt < 1000, "ip monitor reports nothing");
            sh("ip link add probe0 type bridge");
            sh("ip link del probe0");
            if monitor.lines.recv_timeout(Duration::from_millis(20)).is_ok() {
                break;
            }
        }
        monitor
    }

    /// Waits for a line.
    pub(crate) fn wait_for(&self, wanted: impl Fn(&str) -> bool) {
        while !wanted(&self.lines.recv_timeout(DEADLINE).expect("a change of links in time")) {}
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
