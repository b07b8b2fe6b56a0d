//! Cards that are ports of Open vSwitch. Its database and its switch run in the case's namespace, with the data path in
//! user space.

use std::cell::Cell;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use net::gc::{self, Removed};
use net::policy::ask;

use crate::Case;
use crate::guest::Namespace;
use crate::lan::{names, sh, until};
use crate::vmm::{Vmm, itself};

pub(crate) const CASES: &[Case] = &[
    ("ovs_ports_reach_each_other", talk),
    ("ovs_vlans_keep_apart", vlans),
    ("ovs_port_has_what_controllers_look_for", external_ids),
    ("ovs_port_is_gone_at_the_end", endings),
    ("ovs_port_left_behind_is_removed_by_gc_and_by_the_next_vm", left_behind),
    ("ovs_policy_is_refused_where_frames_pass_around_it", policy),
    ("ovs_trouble_is_refused_in_words", trouble),
];

/// Open vSwitch with a bridge `b0`. Ends with the case.
pub(crate) struct Switch {
    directory: tempfile::TempDir,
    daemons: Vec<Child>,
    settled: Cell<u32>,
}

impl Switch {
    pub(crate) fn start() -> Self {
        let mut switch = Self::without_daemons();
        switch.spawn(&["ovsdb-server", "--remote=punix:db.sock", "conf.db"]);
        until(|| switch.ctl("--no-wait init").is_some());
        switch.spawn(&["ovs-vswitchd", "unix:db.sock", "--disable-system", "--disable-system-route"]);
        switch.ctl("--timeout=20 add-br b0 -- set bridge b0 datapath_type=netdev").expect("a bridge");
        switch
    }

    /// A database without a server.
    fn without_daemons() -> Self {
        let switch =
            Self { directory: tempfile::tempdir().expect("a directory"), daemons: Vec::new(), settled: Cell::new(0) };
        let mut tool = Command::new("ovsdb-tool");
        tool.args(["create", "conf.db", "/usr/share/openvswitch/vswitch.ovsschema"]);
        assert!(switch.at_home(&mut tool).status().expect("ovsdb-tool").success());
        switch
    }

    /// Points a command at this Open vSwitch only.
    pub(crate) fn at_home<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("OVS_RUNDIR", self.directory.path()).env("OVS_LOGDIR", self.directory.path());
        command.current_dir(self.directory.path())
    }

    fn spawn(&mut self, words: &[&str]) {
        // It ends with the case, however the case ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=KILL", "--"]).args(words).args(["--no-chdir", "--pidfile"]);
        self.at_home(&mut command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.daemons.push(command.spawn().expect("a daemon"));
    }

    /// The output of `ovs-vsctl`, if it succeeds.
    pub(crate) fn ctl(&self, words: &str) -> Option<String> {
        let output = self.at_home(Command::new("ovs-vsctl").args(words.split(' '))).output().expect("ovs-vsctl");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Waits until the switch has applied its database.
    pub(crate) fn settle(&self) {
        self.settled.update(|count| count + 1);
        let count = self.settled.get();
        self.ctl(&format!("--timeout=20 set Open_vSwitch . external_ids:settled={count}"))
            .expect("a switch that works");
    }

    /// Makes this Open vSwitch the only one for this process and those that it starts.
    pub(crate) fn be_the_only_one(&self) {
        // SAFETY: as far as a case has threads, they wait for lines of processes and read no environment.
        #[expect(unsafe_code, reason = "the environment is shared by threads")]
        unsafe {
            std::env::set_var("OVS_RUNDIR", self.directory.path());
        }
    }

    pub(crate) fn ports(&self) -> String {
        self.ctl("list-ports b0").expect("a list of ports")
    }

    fn spawn_vm(&self, name: &str, specs: &[&str]) -> Vmm {
        let mut command = itself(&[&["vmm", name], specs].concat());
        self.at_home(&mut command);
        Vmm::from_command(command)
    }

    /// A VM with one card and its tap.
    fn vm(&self, name: &str, spec: &str) -> (Vmm, String) {
        let vm = self.spawn_vm(name, &[spec]);
        let tap = vm.taps().remove(0);
        (vm, tap)
    }

    /// A VM with a guest that has an address.
    fn guest(&self, name: &str, spec: &str, address: &str) -> (Vmm, Namespace) {
        let mut command = itself(&["vmm", name, spec]);
        self.at_home(&mut command).env("GUESTS", "all");
        let vm = Vmm::from_command(command);
        vm.taps();
        let guest = vm.guest();
        guest.sh(&format!("ip addr add {address}/24 dev eth0"));
        (vm, guest)
    }

    fn refusal(&self, spec: &str) -> String {
        let vm = self.spawn_vm("web", &[spec]);
        let line = vm.line();
        assert_eq!(vm.end(), "");
        line
    }

    /// `net::gc` as a process of this Open vSwitch.
    fn gc(&self) -> Vec<Removed> {
        self.be_the_only_one();
        let collected = gc::collect().expect("gc");
        assert_eq!(collected.failed, []);
        collected.removed
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        for daemon in self.daemons.iter_mut().rev() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

fn reaches(from: &Namespace, address: &str) {
    until(|| from.attempt(&format!("ping -n -c 1 -W 1 {address}")).0);
}

fn talk() {
    let switch = Switch::start();
    let (first, guest) = switch.guest("first", "ovs=b0", "192.0.2.2");
    let (second, other) = switch.guest("second", "ovs=b0", "192.0.2.3");
    reaches(&guest, "192.0.2.3");
    reaches(&other, "192.0.2.2");
    first.stop();
    second.stop();
    assert_eq!(switch.ports(), "");
}

fn vlans() {
    let switch = Switch::start();
    let (first, guest) = switch.guest("first", "ovs=b0,vlan=7", "192.0.2.2");
    let (second, _) = switch.guest("second", "ovs=b0,vlan=7", "192.0.2.3");
    let (third, _) = switch.guest("third", "ovs=b0,vlan=8", "192.0.2.4");
    reaches(&guest, "192.0.2.3");
    let (ok, text) = guest.attempt("ping -n -c 2 -i 0.2 -W 1 192.0.2.4");
    assert!(!ok, "{text}");
    for vm in [first, second, third] {
        vm.stop();
    }
}

fn external_ids() {
    let switch = Switch::start();
    let (vm, tap) = switch.vm("web", "ovs=b0,vlan=7,iface-id=ns_pod-1,mac=02:00:00:00:00:07,mtu=1400,queues=2");
    let id = |key: &str| switch.ctl(&format!("get Interface {tap} external_ids:{key}")).expect(key);
    assert_eq!(id("iface-id"), "ns_pod-1");
    assert_eq!(id("attached-mac"), "\"02:00:00:00:00:07\"");
    assert_eq!(id("vm-id"), "web");
    assert_eq!(id("iface-status"), "active");
    assert_eq!(switch.ctl(&format!("get Port {tap} tag")).unwrap(), "7");
    let link = crate::lan::link(&tap);
    assert_eq!((&link["mtu"], &link["address"]), (&1400.into(), &"fe:00:00:00:00:07".into()));
    assert_eq!(link["ifalias"], "minivmm vm=web card=0 mode=ovs net=b0");
    vm.stop();
}

fn endings() {
    let switch = Switch::start();
    let before = names();
    let specs = &["ovs=b0", "ovs=b0,vlan=7"];
    let with_ports = || {
        let vm = switch.spawn_vm("web", specs);
        let taps = vm.taps();
        assert_eq!(switch.ports().lines().count(), taps.len());
        vm
    };
    with_ports().stop();
    assert_eq!((switch.ports(), names()), (String::new(), before.clone()));

    let mut vm = with_ports();
    vm.kill();
    assert_eq!(vm.end(), "");
    assert_eq!((switch.ports(), names()), (String::new(), before.clone()));

    let mut vm = with_ports();
    vm.kill_keeper();
    // Collection leaves the ports of a running VM.
    assert_eq!(switch.gc(), []);
    vm.kill();
    assert_eq!(vm.end(), "");
    assert_eq!(names(), before);
    assert_eq!(switch.gc().len(), 2);
    assert_eq!((switch.ports(), switch.gc()), (String::new(), vec![]));
}

fn left_behind() {
    let switch = Switch::start();
    let kill = || {
        let (mut vm, tap) = switch.vm("web", "ovs=b0");
        vm.kill_keeper();
        vm.kill();
        assert_eq!(vm.end(), "");
        assert_eq!(switch.ports(), tap);
        tap
    };
    let tap = kill();
    assert_eq!(switch.gc(), [Removed::OvsPort(tap.parse().unwrap())]);
    assert_eq!(switch.ports(), "");

    kill();
    // Foreign ports stay: of another namespace in this boot, and unmarked ones.
    sh("ip link add other type veth peer name peer");
    switch.ctl("--no-wait add-port b0 other").unwrap();
    let (vm, tap) = switch.vm("web", "ovs=b0");
    let mark = switch.ctl(&format!("get Interface {tap} external_ids:minivmm")).unwrap();
    let boot = mark.trim_matches('"').split('/').next().unwrap();
    switch.ctl(&format!("set Interface other external_ids:minivmm=\"{boot}/1\"")).unwrap();
    assert_eq!(switch.ports().lines().collect::<Vec<_>>(), ["other", &tap]);
    assert_eq!(switch.gc(), []);
    // A port left by an earlier boot is removed.
    switch.ctl("set Interface other external_ids:minivmm=\"earlier/1\"").unwrap();
    assert_eq!(switch.gc().len(), 1);
    vm.stop();
    assert_eq!(switch.ports(), "");
}

fn policy() {
    let switch = Switch::start();
    let reason = "A policy cannot work on Open vSwitch bridge b0: a process (datapath_type=netdev) moves its frames, around \
                  the rules on a tap";
    let mut command = itself(&["vmm", "web", "ovs=b0"]);
    switch.at_home(&mut command).env("POLICY", "{}");
    let refused = Vmm::from_command(command).line();
    assert!(refused.starts_with(&format!("failed {reason} | leave it out")), "{refused}");
    assert_eq!(switch.ports(), "");
    // Refused for a running VM as well.
    let (vm, _) = switch.vm("web", "ovs=b0");
    assert_eq!(ask("web", None).unwrap(), None);
    assert_eq!(ask("web", Some(serde_json::from_str("{}").unwrap())).unwrap_err().to_string(), reason);
    assert_eq!(ask("web", None).unwrap(), None);
    vm.stop();
}

fn trouble() {
    let mut switch = Switch::without_daemons();
    let unreachable = switch.refusal("ovs=b0");
    assert!(unreachable.starts_with("failed Cannot reach the database of Open vSwitch: unix:"), "{unreachable}");
    assert!(unreachable.contains(" | start it (systemctl start openvswitch-switch)"), "{unreachable}");

    switch.spawn(&["ovsdb-server", "--remote=punix:db.sock", "conf.db"]);
    until(|| switch.ctl("--no-wait init").is_some());
    assert_eq!(
        switch.refusal("ovs=b0"),
        "failed Open vSwitch has no bridge b0 | make it first: ovs-vsctl add-br b0 | usage"
    );
    switch.ctl("--no-wait add-br b1").unwrap();
    assert_eq!(
        switch.refusal("ovs=b0"),
        "failed Open vSwitch has no bridge b0 | use one that exists (b1), or make it first: ovs-vsctl add-br b0 | usage"
    );

    let nowhere = PathBuf::from("/nonexistent");
    let mut command = itself(&["vmm", "web", "ovs=b0"]);
    command.env("PATH", nowhere);
    let vm = Vmm::from_command(command);
    let missing = vm.line();
    assert!(
        missing.starts_with("failed Open vSwitch is not installed: there is no ovs-vsctl in PATH | install it"),
        "{missing}"
    );
    assert_eq!(names(), Vec::<String>::new());
}
