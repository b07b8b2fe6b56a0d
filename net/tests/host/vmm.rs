//! A VMM without a VM, in a process of its own, and the handle by which a case drives it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use net::services::MtuSender;
use net::{Keeper, NetSpec, News, Policy, Request};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::MsgFlags;

use crate::guest::{self, Namespace};

/// Timeout for anything in a case: far longer than it takes on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// The start of a line that names a promise that the keeper cannot keep.
const NOT_KEPT: &str = "not kept: ";

/// This binary in another role.
pub(crate) fn itself(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the path of this test"));
    command.args(args);
    command
}

/// Writes the log of this crate, and warnings of others, to stderr.
struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().split("::").next() == Some("net") || metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!("{}: {}", record.level().as_str().to_lowercase(), record.args());
        }
    }

    fn flush(&self) {}
}

/// The role: NAME SPEC... Prints `ready TAP...` or `failed MESSAGE | HINT | usage or host`, and `guest NAMESPACE` for
/// each card on a network of ours. Then obeys `stop` (prints `stopped`) and `drop` (prints `dropped`). Prints `keeper
/// gone` when the keeper dies.
pub(crate) fn run(args: &[String]) -> ExitCode {
    log::set_logger(&Stderr).expect("the first logger");
    log::set_max_level(log::LevelFilter::Info);
    let cards: Vec<NetSpec> = args[1..].iter().map(|spec| spec.parse().expect("a spec")).collect();
    let policy = std::env::var("POLICY").ok().map(|text| serde_json::from_str(&text).expect("a policy"));
    let request = Request { vm_name: args[0].clone(), vcpus: 1, cards, policy, steering: None };
    let mut keeper = Keeper::start(&request).expect("a keeper");
    let mut ports = match keeper.ports() {
        Ok(ports) => ports,
        Err(error) => {
            let kind = if error.is_usage() { "usage" } else { "host" };
            println!("failed {error} | {} | {kind}", error.hint().unwrap_or_default());
            return ExitCode::from(3);
        }
    };
    let taps: Vec<&str> = ports.iter().map(|port| port.tap_name.as_str()).collect();
    println!("ready {}", taps.join(" "));
    let mtus = guest::put_behind(&mut ports);
    match next_order(&keeper, &mtus).trim() {
        "stop" => {
            drop(ports);
            keeper.stop().expect("a clean teardown");
            println!("stopped");
        }
        "stop with ports open" => {
            keeper.stop().expect("a clean teardown");
            drop(ports);
            println!("stopped");
        }
        "speak to the keeper" => {
            let socket = keeper.socket().expect("a keeper process");
            nix::sys::socket::send(std::os::fd::AsRawFd::as_raw_fd(&socket), b"x", MsgFlags::empty())
                .expect("a message");
            std::thread::sleep(DEADLINE);
            println!("alive");
        }
        "drop" => {
            drop((ports, keeper));
            println!("dropped");
        }
        other => println!("unknown order {other:?}"),
    }
    ExitCode::SUCCESS
}

fn next_order(keeper: &Keeper, mtus: &BTreeMap<usize, MtuSender>) -> String {
    let stdin = std::io::stdin();
    let mut order = String::new();
    let socket = keeper.socket().expect("a keeper process");
    loop {
        let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN), PollFd::new(socket, PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE).expect("poll");
        if fds[0].any() == Some(true) {
            break;
        }
        match keeper.news() {
            Some(News::Ended) => {
                println!("keeper gone");
                break;
            }
            Some(News::Conflicts { card, macs, addresses }) => {
                println!("conflicts of card {card}: {macs} macs, {addresses} addresses");
            }
            Some(News::Mtu { card, mtu }) => mtus[&card].send(mtu).expect("services that run"),
            Some(News::NotKept(promises)) => {
                let texts: Vec<String> = promises.into_iter().map(|promise| promise.text).collect();
                println!("{NOT_KEPT}{}", texts.join("; "));
            }
            Some(News::Link { .. }) | None => {}
        }
    }
    stdin.lock().read_line(&mut order).expect("an order");
    order
}

/// The unreaped children of a process's first thread, started or adopted. None if it has ended.
pub(crate) fn children(pid: u32) -> Vec<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().map(|pid| pid.parse().expect("a number")).collect()
}

/// A VMM process of a case. Killed if the case fails.
pub(crate) struct Vmm {
    child: Child,
    orders: ChildStdin,
    lines: Receiver<String>,
    /// All of stderr, sent when both VMM and keeper have ended: the keeper shares the VMM's stderr.
    errors: Receiver<String>,
}

impl Vmm {
    /// Starts a VMM called `name` without waiting for it.
    pub(crate) fn spawn(name: &str, specs: &[&str]) -> Self {
        Self::from_command(itself(&[&["vmm", name], specs].concat()))
    }

    /// Starts a VMM and waits until its ports are ready.
    pub(crate) fn start(name: &str, specs: &[&str]) -> Self {
        let vmm = Self::spawn(name, specs);
        vmm.taps();
        vmm
    }

    /// Starts a VMM whose only card is on a network of ours, and returns its guest.
    pub(crate) fn start_with_guest(name: &str, spec: &str) -> (Self, Namespace) {
        let vmm = Self::start(name, &[spec]);
        let guest = vmm.guest();
        (vmm, guest)
    }

    /// The same for a card on a bridge.
    pub(crate) fn start_bridged(name: &str, spec: &str) -> (Self, Namespace) {
        let mut command = itself(&["vmm", name, spec]);
        command.env("GUESTS", "all");
        let vmm = Self::from_command(command);
        vmm.taps();
        let guest = vmm.guest();
        (vmm, guest)
    }

    /// The same with a policy, for any card.
    pub(crate) fn start_with_policy(name: &str, spec: &str, policy: &Policy) -> (Self, Namespace) {
        let mut command = itself(&["vmm", name, spec]);
        command.env("GUESTS", "all").env("POLICY", serde_json::to_string(policy).expect("JSON"));
        let vmm = Self::from_command(command);
        vmm.taps();
        let guest = vmm.guest();
        (vmm, guest)
    }

    /// The next guest, after the ports are ready.
    pub(crate) fn guest(&self) -> Namespace {
        let line = self.line();
        Namespace::at(line.strip_prefix("guest ").unwrap_or_else(|| panic!("{line}")))
    }

    pub(crate) fn from_command(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a VMM");
        let orders = child.stdin.take().expect("stdin");
        let stdout = child.stdout.take().expect("stdout");
        let mut stderr = child.stderr.take().expect("stderr");
        let (line_sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = line_sender.send(line);
            }
        });
        let (error_sender, errors) = channel();
        std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            let _ = error_sender.send(text);
        });
        Self { child, orders, lines, errors }
    }

    /// The next line of stdout, skipping promises not kept.
    pub(crate) fn line(&self) -> String {
        loop {
            let line = self.raw_line();
            if !line.starts_with(NOT_KEPT) {
                return line;
            }
        }
    }

    /// The keeper's next report on promises that it cannot keep: empty if all is well again.
    pub(crate) fn not_kept(&self) -> String {
        loop {
            if let Some(text) = self.raw_line().strip_prefix(NOT_KEPT) {
                return text.to_owned();
            }
        }
    }

    fn raw_line(&self) -> String {
        self.try_line().unwrap_or_else(|| panic!("the VMM ended: {}", self.end()))
    }

    /// The next line; `None` when the VMM has ended.
    pub(crate) fn try_line(&self) -> Option<String> {
        match self.lines.recv_timeout(DEADLINE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Timeout) => panic!("the VMM said nothing in time"),
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    /// Waits for the ports and returns the names of their taps.
    pub(crate) fn taps(&self) -> Vec<String> {
        let line = self.line();
        let taps = line.strip_prefix("ready ").unwrap_or_else(|| panic!("{line}"));
        taps.split(' ').map(str::to_owned).collect()
    }

    /// Sends an order that has no answer.
    pub(crate) fn tell(&mut self, order: &str) {
        writeln!(self.orders, "{order}").expect("a VMM that reads");
    }

    /// Sends an order and waits for its answer.
    pub(crate) fn order(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").expect("a VMM that reads");
        self.line()
    }

    /// Has the VMM stop its keeper and end.
    pub(crate) fn stop(mut self) {
        assert_eq!(self.order("stop"), "stopped");
        assert_eq!(self.end(), "");
    }

    /// Waits for the end of the VMM.
    pub(crate) fn wait(&mut self) {
        self.child.wait().expect("the end of the VMM");
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("SIGKILL");
        self.child.wait().expect("the end of the VMM");
    }

    /// Kills the keeper only.
    pub(crate) fn kill_keeper(&self) {
        let keeper = nix::unistd::Pid::from_raw(self.keeper());
        nix::sys::signal::kill(keeper, nix::sys::signal::Signal::SIGKILL).expect("SIGKILL");
    }

    /// The process number of the keeper.
    pub(crate) fn keeper(&self) -> i32 {
        let number = self.try_keeper().expect("a keeper");
        let name = std::fs::read_to_string(format!("/proc/{number}/comm")).expect("its name");
        assert_eq!(name, "keeper\n");
        number
    }

    /// The process number of the keeper, if it has started.
    pub(crate) fn try_keeper(&self) -> Option<i32> {
        children(self.child.id()).first().copied()
    }

    /// Waits until VMM and keeper have ended, and returns what they wrote to stderr.
    pub(crate) fn end(&self) -> String {
        self.errors.recv_timeout(DEADLINE).expect("the end of VMM and keeper")
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
