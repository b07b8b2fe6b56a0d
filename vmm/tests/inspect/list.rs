//! `minivmm net list` and `minivmm net gc`.

use crate::Case;
use crate::host::{bridge, minivmm, said, sh, snapshot, unprivileged};
use crate::vm::{Vm, guest_says_arp, tap};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const CASES: &[Case] = &[
    ("list_has_every_vm_with_its_cards", every_vm),
    ("list_for_a_stranger_has_what_taps_say", stranger),
    ("list_says_of_which_card_others_have_an_address", shared),
    ("list_without_vms_is_empty", empty),
    ("every_thread_of_a_running_vm_has_given_up_its_privileges", confined),
    ("name_is_not_blocked_or_answered_for_by_another_user", impostor),
    ("name_of_a_killed_vm_is_waited_for_until_its_network_has_gone", killed),
    ("gc_removes_bridges_of_ours_without_ports_and_nothing_else", gc),
    ("gc_puts_back_what_a_killed_vm_and_keeper_have_left", gc_after_sigkill),
    ("gc_leaves_a_running_vm_alone", gc_beside_a_vm),
    ("gc_that_may_not_says_so", gc_unprivileged),
];

fn vms() -> Value {
    let (code, text, errors) = said(&mut minivmm(&["net", "list", "--json"]));
    assert_eq!((code, errors.as_str()), (0, ""));
    serde_json::from_str(&text).unwrap()
}

fn started(args: &[&str]) -> Vm {
    let mut vm = Vm::start(&[args, &["--log", "debug"]].concat());
    while !vm.error_line().contains("vCPUs are running") {}
    vm
}

fn confined() {
    let web = started(&["--name", "web", "--net", "nat", "--cpus", "2"]);
    let begun = Instant::now();
    // A thread that has just begun has its parent's name.
    let threads = loop {
        let threads = privileges(web.vmm());
        if ["vcpu0", "vcpu1"].iter().all(|name| threads.contains_key(*name)) {
            break threads;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{threads:?}");
    };
    let none = "0".repeat(16);
    let expected = [&none, &none, &none, "1"].map(ToString::to_string);
    assert!(threads.values().all(|privileges| *privileges == expected), "{threads:?}");
}

/// Permitted, effective and inheritable capabilities of a process's threads, and whether they may gain others.
fn privileges(pid: u32) -> BTreeMap<String, [String; 4]> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |task: std::path::PathBuf| {
        let status = std::fs::read_to_string(task.join("status")).ok()?;
        let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        Some((field("Name:"), ["CapPrm:", "CapEff:", "CapInh:", "NoNewPrivs:"].map(field)))
    };
    tasks.filter_map(|task| of(task.unwrap().path())).collect()
}

fn every_vm() {
    bridge("br0");
    tap("tap0");
    let _db = started(&["--name", "db", "--net", "bridge=br0,mac=52:54:00:00:00:02"]);
    let mut web = started(&["--name", "web", "--net", "tap=tap0,queues=1,mac=52:54:00:00:00:01", "--ready-fd", "7"]);
    guest_says_arp("tap0", [10, 0, 0, 5]);
    web.ready_line();

    let vms = vms();
    let (_, table, _) = said(&mut minivmm(&["net", "list"]));

    assert_eq!(vms[0]["name"], "db");
    let db = json!({
        "card": "net0", "mode": "bridge", "bridge": "br0", "network": "br0", "tap": "vmtap0",
        "mac": "52:54:00:00:00:02", "address": "awaited", "addresses": [], "forwards": [], "foreign_rules": [],
        "link": "up", "received": vms[0]["cards"][0]["received"], "sent": { "frames": 0, "bytes": 0 },
    });
    assert_eq!(vms[0]["cards"], json!([db]));
    assert_eq!(vms[1]["name"], "web");
    assert_eq!(
        (&vms[1]["cards"][0]["address"], &vms[1]["cards"][0]["addresses"]),
        (&json!("known"), &json!(["10.0.0.5"]))
    );
    assert_eq!(vms[1]["cards"][0]["sent"], json!({ "frames": 1, "bytes": 42 }));
    assert!(vms[1]["cards"][0]["received"]["frames"].is_u64());
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines[0],
        ["VM", "CARD", "MODE", "NETWORK", "TAP", "MAC", "ADDRESSES", "FORWARDS", "LINK", "RECEIVED", "SENT"]
    );
    assert_eq!(lines[1][..9], ["db", "net0", "bridge", "br0", "vmtap0", "52:54:00:00:00:02", "-", "-", "up"]);
    assert_eq!(lines[2][..9], ["web", "net0", "tap", "-", "tap0", "52:54:00:00:00:01", "10.0.0.5", "-", "up"]);
    assert_eq!(lines[2][10], "42");
}

fn killed() {
    bridge("br0");
    for net in ["nat,ipv6=on,forward=tcp:8080:80", "host", "bridge=br0,antispoof=on", "bridge=lan,create=on"] {
        // What the kernel makes of a second card takes longer to undo.
        let start = || started(&["--name", "web", "--net", net, "--net", "nat=other"]);
        let mut vm = start();
        for _ in 0..3 {
            vm.kill();
            vm = start();
        }
        let said = vm.quit().1;
        assert!(!said.contains(" error: "), "{net}: {said}");
    }
}

fn stranger() {
    bridge("br0");
    let _web = started(&["--name", "web", "--net", "bridge=br0"]);

    let (code, text, errors) = said(&mut unprivileged(&["net", "list", "--json"]));

    assert_eq!((code, errors.as_str()), (0, ""));
    let vms: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(vms[0]["note"], "Only root and the user who started this VM may ask it");
    assert_eq!((&vms[0]["cards"][0]["tap"], &vms[0]["cards"][0]["network"]), (&json!("vmtap0"), &json!("br0")));
}

fn shared() {
    bridge("br0");
    sh("ip link add port0 type veth peer name peer0");
    sh("ip link set peer0 up");
    sh("ip link set port0 master br0 up");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !sh("bridge link show dev port0").contains("state forwarding") {
        assert!(Instant::now() < deadline, "port0 learns nothing");
    }
    let _web = started(&["--name", "web", "--net", "bridge=br0,mac=52:54:00:00:00:02"]);
    assert_eq!(vms()[0]["cards"][0]["conflicts"], Value::Null);

    // What is learned before the keeper watches is not seen.
    while vms()[0]["cards"][0]["conflicts"].is_null() {
        assert!(Instant::now() < deadline, "no conflict is seen");
        sh("bridge fdb replace 52:54:00:00:00:02 dev port0 master dynamic");
        sh("bridge fdb del 52:54:00:00:00:02 dev port0 master");
    }

    let conflicts = &vms()[0]["cards"][0]["conflicts"];
    assert!(conflicts["mac"].as_u64().unwrap() > 0);
    assert_eq!(conflicts["address"], 0);
    let (_, table, _) = said(&mut minivmm(&["net", "list"]));
    let below = table.lines().last().unwrap();
    assert!(
        below.starts_with("web net0 has an address conflict: another host has been seen with its MAC address ("),
        "{table}"
    );
}

fn empty() {
    assert_eq!(vms(), json!([]));
}

fn gc() {
    bridge("br0");
    let before = snapshot();
    sh("ip link add mine0 group 28022 type bridge");
    sh("ip link add mine1 group 28022 type bridge");

    let (code, text, errors) = said(&mut minivmm(&["net", "gc"]));
    assert_eq!((code, errors.as_str()), (0, ""));
    assert_eq!(text, "Removed bridge mine0, which had no ports left\nRemoved bridge mine1, which had no ports left\n");
    assert_eq!(snapshot(), before);

    assert_eq!(said(&mut minivmm(&["net", "gc"])), (0, "Nothing is left behind\n".to_owned(), String::new()));
}

fn gc_after_sigkill() {
    sh("ip link add up0 type veth peer name peer0");
    sh("ip link set peer0 up");
    sh("ip link set up0 up");
    sh("ip address add 192.0.2.2/24 dev up0");
    sh("ip route add default via 192.0.2.1");
    sh("sysctl -q -w net.ipv4.ip_forward=0");
    let before = snapshot();
    let mut web = started(&["--name", "web", "--net", "nat=lab"]);
    web.kill_with_keeper();
    assert_eq!(sh("sysctl -n net.ipv4.conf.up0.forwarding"), "1\n");

    let (code, text, errors) = said(&mut minivmm(&["net", "gc"]));

    let removed = "Removed bridge mvn-lab, which had no ports left\nRemoved the files of VM web, which was killed\n";
    assert_eq!((code, text.as_str()), (0, removed), "{errors}");
    assert_eq!(snapshot(), before);
}

fn gc_beside_a_vm() {
    let mut web = started(&["--name", "web", "--net", "bridge=new0,create=on"]);

    assert_eq!(said(&mut minivmm(&["net", "gc"])).1, "Nothing is left behind\n");

    assert_eq!(vms()[0]["cards"][0]["link"], "up");
    assert_eq!(web.quit().0, 131);
}

fn gc_unprivileged() {
    sh("ip link add mine0 group 28022 type bridge");

    let (code, _, errors) = said(&mut unprivileged(&["net", "gc"]));

    assert_eq!(code, 71);
    assert!(
        errors.starts_with("minivmm: Cannot remove mine0: Operation not permitted (os error 1)\nhint: "),
        "{errors}"
    );
}

/// A server that any user can run: a VM's abstract name, as older versions had it, and one in a folder of the user's
/// own.
const IMPOSTOR: &str = r#"
import os, socket, sys, threading
os.setresuid(65534, 65534, 65534)
os.environ.pop("XDG_RUNTIME_DIR", None)
folder = "/tmp/minivmm-0"
try:
    os.mkdir(folder, 0o755)
except OSError:
    pass
def listen(address):
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen(8)
    return server
def serve(server):
    while True:
        caller, _ = server.accept()
        caller.recv(4096)
        caller.sendall(b'{"network":[{"card":"net0","mode":"\\u001b[31mowned\\u001b[0m"}]}\n')
        caller.close()
abstract, named = listen("\0minivmm/web"), listen(folder + "/web.sock")
print("listening", flush=True)
threading.Thread(target=serve, args=(abstract,), daemon=True).start()
serve(named)
"#;

/// That server, ended with its case.
struct Impostor(Child);

impl Drop for Impostor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn impostor() {
    sh("mount -t tmpfs -o mode=1777 tmp /tmp");
    let mut server = Command::new("python3");
    let mut server = Impostor(server.args(["-c", IMPOSTOR]).stdout(Stdio::piped()).spawn().unwrap());
    let mut said_by_it = BufReader::new(server.0.stdout.take().unwrap());
    let mut line = String::new();
    said_by_it.read_line(&mut line).unwrap();
    assert_eq!(line, "listening\n");

    // Its bytes are not printed, whatever root asks,
    let (code, text, errors) = said(&mut minivmm(&["net", "list"]));
    assert_eq!((code, text.contains("owned")), (0, false), "{text}{errors}");
    let (code, text, errors) = said(&mut minivmm(&["counters", "web"]));
    assert!(code != 0 && !format!("{text}{errors}").contains("owned"), "{text}{errors}");
    // and the name is free.
    tap("tap0");
    let mut web = started(&["--name", "web", "--net", "tap=tap0,queues=1"]);
    assert_eq!(vms()[0]["cards"][0]["tap"], "tap0");
    assert_eq!(web.quit().0, 131);
    assert_eq!(std::fs::read_dir("/run/minivmm").unwrap().count(), 0);
}
