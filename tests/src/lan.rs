//! A network for a scenario: a bridge with an address, an uplink that leads nowhere, and a DHCP server.
//!
//! A scenario runs in a network namespace of its own, so nothing here can meet an interface of the machine; the names
//! are fresh all the same. Panics where it cannot be set up, like every fixture of scenarios.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

static COUNT: AtomicU8 = AtomicU8::new(0);

/// The network; it goes when this is dropped.
pub struct Lan {
    bridge: String,
    uplink: String,
    network: String,
    dnsmasq: Child,
}

impl Lan {
    /// Makes the bridge, its address and the DHCP server.
    pub fn new() -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let tag = std::process::id() % 100_000;
        let bridge = format!("lan{tag}-{number}");
        let uplink = format!("up{tag}-{number}");
        // Documentation range of RFC 5737 would do for one; scenarios may want several.
        let network = format!("10.77.{number}");
        sh(&format!(
            "ip link add {bridge} type bridge stp_state 0 forward_delay 0 && ip link add {uplink} type dummy &&
             ip link set {uplink} master {bridge} up && ip addr add {network}.1/24 dev {bridge} && ip link set {bridge} up"
        ));
        // The kernel notes a bridge's carrier a moment later, and no command waits for that.
        sh(&format!("timeout 20 sh -c 'until ip link show {bridge} | grep -q \"state UP\"; do sleep 0.02; done'"));
        let dnsmasq = Command::new("dnsmasq")
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root", "--port=0"])
            .args([
                "--bind-interfaces",
                "--leasefile-ro",
                "--log-facility=/dev/null",
                "--dhcp-authoritative",
                "--no-ping",
            ])
            .arg(format!("--interface={bridge}"))
            .arg(format!("--dhcp-range={network}.10,{network}.200,1h"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("dnsmasq did not start: {error}"));
        Self { bridge, uplink, network, dnsmasq }
    }

    /// The bridge's name.
    pub fn bridge(&self) -> &str {
        &self.bridge
    }

    /// The value of `--net` that puts a card on it.
    pub fn net(&self) -> String {
        format!("bridge={}", self.bridge)
    }

    /// The host's own address on it.
    pub fn address(&self) -> String {
        format!("{}.1", self.network)
    }

    /// The host's interfaces and the bridge's ports, as the host prints them.
    pub fn links(&self) -> String {
        sh("ip link; bridge link; bridge vlan")
    }

    /// How many ports the bridge has besides its uplink.
    pub fn guest_ports(&self) -> usize {
        self.guest_taps().len()
    }

    /// The names of those ports.
    pub fn guest_taps(&self) -> Vec<String> {
        let ports = sh(&format!("ip -o link show master {}", self.bridge));
        let names = ports.lines().filter_map(|line| line.split(": ").nth(1));
        names.filter(|name| *name != self.uplink).map(str::to_owned).collect()
    }
}

impl Default for Lan {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        // A dnsmasq that ended by itself has said why on standard error.
        let _gone = self.dnsmasq.kill();
        let _status = self.dnsmasq.wait();
        sh(&format!("ip link del {}; ip link del {}", self.uplink, self.bridge));
    }
}

/// Runs a shell command on the host's side of a scenario and returns its output.
pub fn sh(script: &str) -> String {
    let output = Command::new("sh")
        .args(["-ec", script])
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("sh did not start: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "`{script}` failed with {}: {stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
