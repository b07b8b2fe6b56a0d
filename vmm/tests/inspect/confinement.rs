//! The privileges that each process of a VM has left, thread by thread, in each mode of the network.

use crate::host::{bridge, sh};
use crate::vm::Vm;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

pub(crate) const CASES: &[(&str, fn())] = &[
    ("every_thread_of_every_process_of_root_is_confined", of_root),
    ("every_thread_of_every_process_of_an_ordinary_user_is_confined", of_a_user),
    ("vm_of_a_user_without_namespaces_has_a_filter_and_landlock", without_namespaces),
    ("user_that_is_named_is_the_vmms", named),
    ("vm_that_is_not_confined_has_no_policy", unconfined),
];

/// A user that has nothing.
const USER: &str = "65534";

/// A thread, as the kernel describes it.
#[derive(Debug)]
struct Thread {
    process: String,
    process_number: u32,
    name: String,
    number: u32,
    uid: u32,
    capabilities: u64,
    gains_none: bool,
    filtered: bool,
    /// The namespaces that are not those of this test.
    namespaces: BTreeSet<&'static str>,
}

/// Namespaces that a VMM has for itself.
const OWN: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];

/// CAP_NET_ADMIN, CAP_NET_RAW and CAP_KILL.
const OF_A_KEEPER: u64 = 1 << 12 | 1 << 13 | 1 << 5;

fn started(args: &[&str], through: &[&str]) -> Vm {
    let mut vm = Vm::start_through(through, &[args, &["--log", "debug"]].concat());
    while !vm.error_line().contains("vCPUs are running") {}
    vm
}

/// Every thread of a VM, once each has its own name and filter: threads give themselves both. The threads of KVM are
/// the kernel's.
fn threads(vm: &Vm) -> Vec<Thread> {
    let start = Instant::now();
    loop {
        let threads = threads_now(vm);
        let has_begun = |thread: &Thread| thread.filtered && (thread.process != "vmm" || is_main(thread));
        let have_begun = threads.iter().filter(|thread| thread.name == thread.process).all(has_begun);
        if have_begun || start.elapsed() > Duration::from_secs(5) {
            return threads;
        }
    }
}

fn is_main(thread: &Thread) -> bool {
    thread.process_number == thread.number
}

fn threads_now(vm: &Vm) -> Vec<Thread> {
    let own = vm.pid();
    let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap();
    let processes = children.split_whitespace().map(|child| child.parse().unwrap()).chain([own]);
    let threads = processes.flat_map(|process: u32| {
        let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
        tasks.filter_map(move |task| thread(process, &task.ok()?.path())).collect::<Vec<_>>()
    });
    threads.filter(|thread| !thread.name.starts_with("kvm-")).collect()
}

fn thread(process: u32, task: &std::path::Path) -> Option<Thread> {
    let status = fs::read_to_string(task.join("status")).ok()?;
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    let differs = |name: &&str| {
        fs::read_link(task.join("ns").join(name)).ok() != fs::read_link(format!("/proc/self/ns/{name}")).ok()
    };
    Some(Thread {
        process: fs::read_to_string(format!("/proc/{process}/comm")).ok()?.trim().to_owned(),
        process_number: process,
        name: field("Name:"),
        number: field("Pid:").parse().ok()?,
        uid: field("Uid:").split_whitespace().next()?.parse().ok()?,
        capabilities: u64::from_str_radix(&field("CapPrm:"), 16).ok()?,
        gains_none: field("NoNewPrivs:") == "1",
        filtered: field("Seccomp:") == "2",
        namespaces: OWN.into_iter().chain(["user"]).filter(differs).collect(),
    })
}

fn print(mode: &str, threads: &[Thread]) {
    for Thread { process, name, uid, capabilities, gains_none, filtered, namespaces, .. } in threads {
        let own: Vec<&str> = namespaces.iter().copied().collect();
        println!(
            "{mode:24} {process:9} {name:15} uid {uid:10} caps {capabilities:#6x} no_new_privs {gains_none} seccomp \
             {filtered} own namespaces: {}",
            own.join(" ")
        );
    }
}

fn of_root() {
    bridge("br0");
    sh("ip link add nic0 type veth peer name nic1");
    sh("ip link set nic0 up");
    sh("ip tuntap add tap0 mode tap vnet_hdr");
    sh("ip link set tap0 up");
    let mut users = BTreeSet::new();
    for net in ["bridge=br0,antispoof=on", "nat,ipv6=on", "host", "bridge=lan,create=on", "macvtap=nic0", "tap=tap0"] {
        let mut vm = started(&["--name", "web", "--net", net, "--cpus", "2"], &[]);
        let threads = threads(&vm);
        print(net, &threads);
        for thread in &threads {
            let is_keeper = thread.process == "keeper";
            assert_eq!(thread.uid == 0, is_keeper, "{thread:?}");
            assert_eq!(thread.capabilities, if is_keeper { OF_A_KEEPER } else { 0 }, "{thread:?}");
            assert!(thread.gains_none && thread.filtered, "{thread:?}");
            if ["vmm", "minivmm"].contains(&thread.process.as_str()) {
                // The supervisor has made the others, and is in no new PID namespace itself.
                let own = OWN.into_iter().filter(|name| *name != "pid" || thread.process == "vmm").collect();
                assert_eq!(thread.namespaces, own, "{thread:?}");
            }
        }
        let of = |name: &str| threads.iter().find(|thread| thread.process == name).unwrap().uid;
        assert_ne!(of("vmm"), of("services"));
        assert!(users.insert(of("vmm")) && users.insert(of("services")), "two VMs share a user");
        vm.quit();
    }
}

fn of_a_user() {
    let mut vm = of_user();
    let threads = threads(&vm);
    print("tap=tap0, of a user", &threads);
    for thread in &threads {
        assert!(thread.uid == 65534 && thread.capabilities == 0 && thread.gains_none && thread.filtered, "{thread:?}");
        if thread.process == "vmm" {
            assert_eq!(thread.namespaces, OWN.into_iter().chain(["user"]).collect(), "{thread:?}");
        }
    }
    vm.quit();
}

/// A VM of an ordinary user, on a tap that root has made for it.
fn of_user() -> Vm {
    sh(&format!("ip tuntap add tap0 mode tap user {USER} vnet_hdr"));
    sh("ip link set tap0 up");
    let group = fs::metadata("/dev/kvm").unwrap().gid();
    let user = [format!("--reuid={USER}"), format!("--regid={USER}"), format!("--groups={group}")];
    started(&["--net", "tap=tap0"], &["setpriv", &user[0], &user[1], &user[2], "--"])
}

fn without_namespaces() {
    let limit = "/proc/sys/user/max_user_namespaces";
    let before = fs::read_to_string(limit).unwrap();
    if fs::write(limit, "0").is_err() {
        println!("skipped: {limit} cannot be written");
        return;
    }
    let mut vm = of_user();
    let threads = threads(&vm);
    fs::write(limit, before).unwrap();
    print("tap=tap0, no namespaces", &threads);
    for thread in &threads {
        assert!(thread.uid == 65534 && thread.capabilities == 0 && thread.gains_none && thread.filtered, "{thread:?}");
        assert!(thread.namespaces.is_empty(), "{thread:?}");
    }
    vm.quit();
}

fn named() {
    let mut vm = started(&["--user", "65534"], &[]);
    let threads = threads(&vm);
    let users: BTreeSet<u32> =
        threads.iter().filter(|thread| thread.process == "vmm").map(|thread| thread.uid).collect();
    assert_eq!(users, BTreeSet::from([65534]));
    vm.quit();
    let (code, errors) = Vm::start(&["--user", "65534", "--no-confine"]).end();
    assert!(code == 64 && errors.contains("--user cannot be had"), "{code}: {errors}");
    let user = ["setpriv", "--reuid=65533", "--regid=65533", "--clear-groups", "--"];
    let (code, errors) = Vm::start_through(&user, &["--user", "65534"]).end();
    assert!(code == 64 && errors.contains("--user cannot be had"), "{code}: {errors}");
}

fn unconfined() {
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.json");
    fs::write(&policy, "{}").unwrap();
    for flag in [&["--no-confine"][..], &["--seccomp", "off"]] {
        let mut vm = Vm::start(&[&["--policy", policy.to_str().unwrap(), "--net", "host"][..], flag].concat());
        let (code, errors) = vm.end();
        assert_eq!(code, 64, "{errors}");
        assert!(errors.contains("cannot be had together with --policy"), "{errors}");
    }
    let mut vm = started(&["--no-confine"], &[]);
    let threads = threads(&vm);
    assert!(threads.iter().all(|thread| thread.uid == 0 && !thread.filtered), "{threads:?}");
    let others = threads.iter().filter(|thread| thread.process != "keeper");
    assert!(others.clone().count() > 2 && others.clone().all(|thread| thread.capabilities == 0), "{threads:?}");
    vm.quit();
}
