//! Cards on networks of minivmm's own: a lease, the world by the host's address, names, forwarded ports, and nothing
//! left behind.

use super::Scenario;
use crate::lan::sh;
use crate::stage::Stage;
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "nat::a_guest_gets_a_lease_and_moves_data_both_ways", run: world },
    Scenario { name: "nat::a_guest_is_found_by_name_and_by_a_port_of_the_host", run: near },
];

/// The amount that is moved, in MiB.
const AMOUNT_MIB: u32 = 64;

/// How long a guest may take to listen.
const PATIENCE: Duration = Duration::from_secs(60);

/// Prints the address of the guest's card.
const ADDRESS: &str = "address() { ip -4 -o addr show dev eth0 | sed 's/.*inet //; s,/.*,,'; }\n";

/// Another host behind this one's only uplink, without a route to networks of minivmm's.
struct World {
    namespace: Child,
}

impl World {
    const ADDRESS: &str = "198.51.100.1";
    const HOST: &str = "198.51.100.2";

    fn new() -> Self {
        let mut command = Command::new("unshare");
        let namespace = command.args(["--net", "sleep", "3600"]).spawn().expect("a namespace");
        let pid = namespace.id();
        sh(&format!(
            "timeout 20 sh -c 'until ip link add up0 type veth peer name eth0 netns {pid} 2>/dev/null; do sleep 0.02; done'
             ip link set lo up; ip addr add {}/24 dev up0; ip link set up0 up; ip route add default via {}",
            Self::HOST,
            Self::ADDRESS
        ));
        let world = Self { namespace };
        world.run(&format!("ip link set lo up; ip addr add {}/24 dev eth0; ip link set eth0 up", Self::ADDRESS));
        world
    }

    fn run(&self, line: &str) {
        let target = self.namespace.id().to_string();
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &target, "sh", "-c", line]);
        assert!(command.status().expect("nsenter").success(), "{line}");
    }

    /// A listener there.
    fn listen(&self) -> TcpListener {
        let namespace = File::open(format!("/proc/{}/ns/net", self.namespace.id())).expect("the namespace");
        let listen = move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("the way in");
            TcpListener::bind((Self::ADDRESS, 0)).expect("a port")
        };
        thread::spawn(listen).join().expect("a listener")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Nothing to do for one that has ended.
        let _ = self.namespace.kill();
        let _ = self.namespace.wait();
    }
}

/// All that a network of minivmm's changes on the host.
fn state() -> String {
    sh("ip link; ip -4 addr; ip -4 route show table all; nft list ruleset; cat /proc/sys/net/ipv4/conf/*/forwarding")
}

fn world(stage: &Stage) {
    let world = World::new();
    let before = state();
    let (sent, returned) = (stage.file("sent"), stage.file("returned"));
    sh(&format!("head -c {AMOUNT_MIB}M /dev/urandom > {}", sent.display()));
    let (downstream, upstream) = (world.listen(), world.listen());
    let host = World::ADDRESS;
    let [down, up] = [&downstream, &upstream].map(|listener| listener.local_addr().expect("its address").port());

    let vm = stage
        .vm()
        .name("web")
        .net("nat")
        .script(&format!(
            "{ADDRESS} echo address=$(address); echo router=$(ip route | awk '/default/ {{ print $3 }}')
             echo mtu=$(cat /sys/class/net/eth0/mtu)
             ping -c 3 {host} >/dev/null; echo ping=$?
             nc {host} {down} </dev/null >/tmp/data; echo sum=$(sha256sum </tmp/data); nc {host} {up} </tmp/data >/dev/null"
        ))
        .start();
    let (address, router) = (vm.value("address"), vm.value("router"));
    assert_eq!(vm.value("mtu"), "1500");
    assert_eq!(vm.value("ping"), "0", "exit code of the guest's ping");
    let tables = sh("nft list tables");
    let start = Instant::now();
    let (mut guest, seen) = downstream.accept().expect("the guest connects");
    io::copy(&mut File::open(&sent).expect("the file to send"), &mut guest).expect("sending to the guest");
    drop(guest);
    let guest_sum = vm.value("sum");
    let (mut guest, _) = upstream.accept().expect("the guest connects");
    io::copy(&mut guest, &mut File::create(&returned).expect("a file to fill")).expect("receiving from the guest");
    drop(guest);
    assert_eq!(vm.wait_exit(), 0, "exit code of minivmm");
    println!("lease {address} of {router}, {AMOUNT_MIB} MiB each way in {:.1?}", start.elapsed());
    assert_eq!(seen.ip().to_string(), World::HOST, "whom the world talks to");

    let sum = sha256(&sent);
    assert_eq!(guest_sum.split_whitespace().next(), Some(sum.as_str()), "SHA-256 in the guest");
    assert_eq!(sha256(&returned), sum, "SHA-256 of what came back");
    let mut tables: Vec<&str> = tables.lines().collect();
    tables.sort_unstable();
    // The world's interface forwards because of the network, so there is a fence.
    assert_eq!(tables, ["table inet minivmm-web", "table inet minivmm-web/fence", "table netdev minivmm-web"]);
    assert_eq!(state(), before, "the host after the guest");
}

fn near(stage: &Stage) {
    let _world = World::new();
    let before = state();
    let db = stage
        .vm()
        .name("db")
        .net("nat,forward=tcp:8080:80")
        .script(&format!("{ADDRESS} echo address=$(address); echo first=$(nc -l -p 4000); echo second=$(nc -l -p 80)"))
        .start();
    let address = db.value("address");
    let web = stage
        .vm()
        .name("web")
        .net("nat")
        .script(
            "echo name=$(nslookup db.minivmm 2>/dev/null | sed -n 's/^Address: *//p' | tail -n 1)
             echo good morning | nc db.minivmm 4000; echo nc=$?",
        )
        .start();

    assert_eq!(web.value("name"), address, "what the name of the sibling stands for");
    assert_eq!(db.value("first"), "good morning");
    assert_eq!(web.wait_exit(), 0, "exit code of minivmm");
    let start = Instant::now();
    let mut stream = loop {
        match TcpStream::connect("127.0.0.1:8080") {
            Ok(stream) => break stream,
            Err(error) => assert!(start.elapsed() < PATIENCE, "the forwarded port: {error}"),
        }
        sleep(Duration::from_millis(100));
    };
    stream.write_all(b"good evening\n").expect("to the guest");
    drop(stream);
    assert_eq!(db.value("second"), "good evening");
    assert_eq!(db.wait_exit(), 0, "exit code of minivmm");
    assert_eq!(state(), before, "the host after the guests");
}

fn sha256(file: &Path) -> String {
    let output = sh(&format!("sha256sum {}", file.display()));
    output.split_whitespace().next().unwrap_or_default().to_owned()
}
