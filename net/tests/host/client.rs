//! A stand-in for a guest: a network namespace at the other end of a veth pair, for real clients.

use std::process::{Child, Command, Output, Stdio};

use crate::lan::{sh, until};

/// The host's end of the pair, and the guest's.
pub(crate) const PORT: &str = "port0";
pub(crate) const CARD: &str = "eth0";

/// The guest's Ethernet address, and its gateway's.
pub(crate) const MAC: &str = "02:00:00:00:00:09";
pub(crate) const GATEWAY_MAC: &str = "02:00:00:00:00:01";

/// A namespace that lives as long as the process in it.
pub(crate) struct Client {
    holder: Child,
}

impl Client {
    /// A namespace with the card in it, up. No interface has the gateway's address, so only the services answer for it;
    /// the client has a neighbour entry for it.
    pub(crate) fn new(gateways: &[&str]) -> Self {
        let holder = Command::new("unshare").args(["--net", "cat"]).stdin(Stdio::piped()).spawn().expect("unshare");
        let client = Self { holder };
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        until(|| std::fs::read_link(format!("/proc/{}/ns/net", client.holder.id())).is_ok_and(|other| other != own));
        sh(&format!("ip link add {PORT} address {GATEWAY_MAC} type veth peer name {CARD} address {MAC}"));
        sh(&format!("ip link set {CARD} netns {}", client.holder.id()));
        sh(&format!("ip link set {PORT} up"));
        client.run("ip link set lo up");
        client.run(&format!("ip link set {CARD} up"));
        for gateway in gateways {
            client.run(&format!("ip neigh add {gateway} lladdr {GATEWAY_MAC} dev {CARD} nud permanent"));
        }
        client
    }

    /// A command line of words to run in the namespace, for at most a minute.
    pub(crate) fn command(&self, line: &str) -> Command {
        let target = self.holder.id().to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &target, "--net", "--", "timeout", "60"]).args(line.split(' '));
        command
    }

    /// Runs a command line of words in the namespace.
    pub(crate) fn try_run(&self, line: &str) -> Output {
        self.command(line).output().expect("nsenter")
    }

    /// The same, which must succeed. Returns its output.
    pub(crate) fn run(&self, line: &str) -> String {
        let output = self.try_run(line);
        let [text, errors] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(output.status.success(), "{line}: {text}{errors}");
        text
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
