//! The services of a card, queried by the clients that guests use.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

use net::services::{
    Counters, Event, Ipv4Network, Ipv6Network, Names, Reach, Search, ServiceSpec, Setup, mtu_channel, open_socket, run,
};
use net::{Keeper, MacAddr, Request};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::TempDir;

use crate::Case;
use crate::client::{CARD, Client, GATEWAY_MAC, MAC, PORT};
use crate::lan::{link, sh, until};
use crate::vmm::DEADLINE;

pub(crate) const CASES: &[Case] = &[
    ("services_lease_an_address_to_udhcpc", udhcpc),
    ("services_lease_an_address_to_dhclient", dhclient),
    ("services_refuse_the_address_of_another_network", init_reboot),
    ("services_of_a_host_only_network_have_no_router", host_only),
    ("services_resolve_names_of_the_network", names),
    ("services_relay_questions_to_the_hosts_resolver", relay),
    ("services_follow_resolv_conf", follow),
    ("services_survive_a_flood_and_resolvers_that_are_not_there", no_resolver),
    ("services_give_slaac_a_prefix_a_router_and_an_mtu", slaac),
    ("services_advertise_what_rdisc6_reads", rdisc6),
    ("services_of_a_host_only_network_advertise_no_router", host_only_advertises),
    ("services_inform_a_dhcpv6_client", dhcpv6),
    ("services_resolve_names_over_ipv6", names_over_ipv6),
    ("services_answer_a_card_with_checksum_offload_on_a_bridge", on_a_bridge),
    ("services_go_on_after_their_port_was_down", port_down),
    ("services_wake_up_for_nothing_else", filtered),
];

const GATEWAY: &str = "10.9.8.1";
const GATEWAY6: &str = "fd00:9:8::1";
const LINK_LOCAL: &str = "fe80::1";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 7);

pub(crate) fn spec(reach: Reach) -> ServiceSpec {
    ServiceSpec {
        vm_name: "web".to_owned(),
        mac: MAC.parse().unwrap(),
        gateway_mac: GATEWAY_MAC.parse().unwrap(),
        mtu: 1400,
        reach,
        ipv4: Ipv4Network { address: ADDRESS, gateway: GATEWAY.parse().unwrap(), prefix_len: 24 },
        ipv6: Some(Ipv6Network {
            prefix: "fd00:9:8::".parse().unwrap(),
            gateway: GATEWAY6.parse().unwrap(),
            link_local: LINK_LOCAL.parse().unwrap(),
        }),
        search: Search::Only(Vec::new()),
    }
}

/// One VM, `db`.
struct Neighbours;

impl Names for Neighbours {
    fn lookup(&mut self, name: &str) -> Vec<IpAddr> {
        if name == "db" { vec!["10.9.8.8".parse().unwrap(), "fd00::8".parse().unwrap()] } else { Vec::new() }
    }

    fn reverse(&mut self, address: IpAddr) -> Option<String> {
        (address == IpAddr::from([10, 9, 8, 8])).then(|| "db".to_owned())
    }
}

/// Running services.
struct Services {
    counters: &'static Counters,
    events: Receiver<Event>,
    folder: TempDir,
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Services {
    fn start(port: &str, spec: ServiceSpec) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let index = link(port)["ifindex"].as_u64().unwrap();
        let socket = open_socket(index.try_into().unwrap(), &spec).unwrap();
        let counters: &'static Counters = Box::leak(Box::default());
        let resolv_conf = folder.path().join("resolv.conf");
        std::fs::write(&resolv_conf, "nameserver 127.0.0.1\n").unwrap();
        let (_, mtu) = mtu_channel().unwrap();
        let setup = Setup { spec, socket, names: Box::new(Neighbours), resolv_conf, counters, mtu };
        let (sender, events) = channel();
        let (end, stop) = nix::unistd::pipe().unwrap();
        let thread = std::thread::spawn(move || {
            run(setup, end.as_fd(), &mut |event| sender.send(event).unwrap()).unwrap();
        });
        Self { counters, events, folder, stop: Some(stop), thread: Some(thread) }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn count(&self, name: &str) -> u64 {
        self.counters.iter().find(|(found, _)| *found == name).unwrap().1
    }

    fn event(&self) -> Event {
        self.events.recv_timeout(DEADLINE).expect("an event in time")
    }
}

impl Services {
    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.end();
    }
}

/// Services, and a client to query them.
pub(crate) struct Stage {
    services: Services,
    pub(crate) client: Client,
}

impl Stage {
    pub(crate) fn new(spec: ServiceSpec) -> Self {
        let client = Client::new(&[GATEWAY, GATEWAY6, LINK_LOCAL]);
        Self { services: Services::start(PORT, spec), client }
    }

    /// Waits until the client has an address with this text in it, past duplicate address detection.
    fn await_address(&self, part: &str) {
        until(|| {
            let text = self.client.run(&format!("ip -o -6 addr show dev {CARD} -tentative"));
            text.contains(part)
        });
    }

    /// Gives the client its address by hand.
    fn configure(&self) {
        self.client.run(&format!("ip addr add {ADDRESS}/24 dev {CARD}"));
    }

    fn dig(&self, words: &str) -> String {
        self.client.run(&format!("dig @{GATEWAY} +tries=1 +time=8 {words}"))
    }

    /// Stops the services.
    pub(crate) fn end_services(&mut self) {
        self.services.end();
    }

    /// The path of a file beside the services' resolv.conf.
    pub(crate) fn path(&self, name: &str) -> String {
        self.services.path(name)
    }

    fn count(&self, name: &str) -> u64 {
        self.services.count(name)
    }

    fn event(&self) -> Event {
        self.services.event()
    }
}

/// A resolver on this machine that knows `example.org`, and a name with a long answer.
pub(crate) struct Resolver(Child);

impl Resolver {
    /// One that listens at `address` and answers with `answer`.
    pub(crate) fn start(address: &str, answer: &str) -> Self {
        sh("ip link set lo up");
        let texts: Vec<String> =
            (0..12).map(|idx| format!("--txt-record=long.example.org,{}", idx.to_string().repeat(99))).collect();
        let child = Command::new("dnsmasq")
            .args([
                "--conf-file=/dev/null",
                "--keep-in-foreground",
                "--user=root",
                "--no-resolv",
                "--no-hosts",
                "--pid-file",
            ])
            .args([
                "--bind-interfaces",
                "--edns-packet-max=4096",
                "--log-facility=-",
                &format!("--listen-address={address}"),
            ])
            .arg(format!("--address=/example.org/{answer}"))
            .args(texts)
            .stdout(Stdio::null())
            .spawn()
            .expect("dnsmasq");
        let resolver = Self(child);
        until(|| {
            Command::new("dig")
                .args([&format!("@{address}"), "+tries=1", "+time=1", "+short", "example.org"])
                .output()
                .is_ok_and(|output| output.stdout.trim_ascii() == answer.as_bytes())
        });
        resolver
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn script(path: &str, text: &str) {
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// True if a shell's `set` has printed this line.
fn says(text: &str, line: &str) -> bool {
    text.lines().any(|found| found.replace('\'', "") == line)
}

fn udhcpc() {
    let stage = Stage::new(spec(Reach::Outside));
    let (hook, told) = (stage.path("hook"), stage.path("told"));
    script(&hook, &format!("#!/bin/sh\n[ \"$1\" != bound ] || set > {told}\n"));
    let options = "-O mtu -O hostname -O domain -O broadcast -O dns -O router -O subnet";
    let client = format!("busybox udhcpc -i {CARD} -f -n -q -t 20 -T 1 -s {hook} {options}");

    stage.client.run(&client);

    let told = std::fs::read_to_string(told).unwrap();
    for line in [
        "ip=10.9.8.7",
        "subnet=255.255.255.0",
        "router=10.9.8.1",
        "dns=10.9.8.1",
        "serverid=10.9.8.1",
        "domain=minivmm",
        "hostname=web",
        "mtu=1400",
        "broadcast=10.9.8.255",
        "lease=3600",
    ] {
        assert!(says(&told, line), "{line} is missing in\n{told}");
    }
    assert_eq!(stage.event(), Event::LeaseAcked { ip: ADDRESS });
    assert_eq!((stage.count("dhcp_offers"), stage.count("dhcp_acks")), (1, 1));
}

/// Runs dhclient on the leases file `leases` until it has an address, and returns the options that it got.
pub(crate) fn run_dhclient(stage: &Stage, leases: &str) -> String {
    let [hook, told, config, pid] = ["hook", "told", "config", "pid"].map(|name| stage.path(name));
    let lines = format!("[ -z \"$new_ip_address\" ] || {{ set > {told}.new; mv {told}.new {told}; }}");
    script(&hook, &format!("#!/bin/sh\n{lines}\n"));
    let wanted = "subnet-mask, routers, domain-name-servers, domain-name, host-name, interface-mtu, domain-search";
    std::fs::write(&config, format!("request {wanted};\ninitial-interval 1;\nreboot 5;\n")).unwrap();
    let line = format!("dhclient -4 -d -sf {hook} -lf {leases} -cf {config} -pf {pid} {CARD}");
    // It stays to renew its lease.
    let mut dhclient = stage.client.command(&line).stderr(Stdio::null()).spawn().expect("dhclient");
    until(|| Path::new(&told).exists());
    // `timeout` passes it on.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(dhclient.id().try_into().unwrap()), nix::sys::signal::SIGTERM)
        .unwrap();
    dhclient.wait().unwrap();
    std::fs::read_to_string(told).unwrap()
}

fn dhclient() {
    let stage = Stage::new(spec(Reach::Outside));
    let leases = stage.path("leases");
    std::fs::write(&leases, "").unwrap();

    let told = run_dhclient(&stage, &leases);

    for line in [
        "new_ip_address=10.9.8.7",
        "new_subnet_mask=255.255.255.0",
        "new_routers=10.9.8.1",
        "new_domain_name_servers=10.9.8.1",
        "new_domain_name=minivmm",
        "new_host_name=web",
        "new_interface_mtu=1400",
        "new_dhcp_rebinding_time=3150",
    ] {
        assert!(says(&told, line), "{line} is missing in\n{told}");
    }
    assert_eq!(stage.event(), Event::LeaseAcked { ip: ADDRESS });
}

fn init_reboot() {
    let stage = Stage::new(spec(Reach::Outside));
    let leases = stage.path("leases");
    let remembered = format!(
        "lease {{\n  interface \"{CARD}\";\n  fixed-address 192.168.1.77;\n  option subnet-mask 255.255.255.0;\n  \
         option dhcp-lease-time 3600;\n  option dhcp-message-type 5;\n  option dhcp-server-identifier 192.168.1.1;\n  \
         renew 1 2035/01/01 00:00:00;\n  rebind 1 2035/01/01 00:00:00;\n  expire 1 2035/01/01 00:00:00;\n}}\n"
    );
    std::fs::write(&leases, remembered).unwrap();

    let told = run_dhclient(&stage, &leases);

    assert!(says(&told, "new_ip_address=10.9.8.7"), "{told}");
    assert_eq!((stage.count("dhcp_naks"), stage.count("dhcp_acks")), (1, 1));
}

fn host_only() {
    let stage = Stage::new(spec(Reach::HostOnly));
    let leases = stage.path("leases");
    std::fs::write(&leases, "").unwrap();

    let told = run_dhclient(&stage, &leases);

    assert!(says(&told, "new_domain_name_servers=10.9.8.1"), "{told}");
    assert!(!told.contains("new_routers"), "{told}");
    stage.configure();
    assert!(stage.dig("example.org").contains("status: REFUSED"));
    assert_eq!(stage.dig("+short db.minivmm").trim(), "10.9.8.8");
}

fn names() {
    let stage = Stage::new(spec(Reach::Outside));
    stage.configure();

    assert_eq!(stage.dig("+short db.minivmm").trim(), "10.9.8.8");
    assert_eq!(stage.dig("+short DB.minivmm AAAA").trim(), "fd00::8");
    assert_eq!(stage.dig("+short -x 10.9.8.8").trim(), "db.minivmm.");
    // The host has a name, too.
    assert_eq!(stage.dig("+short host.minivmm").trim(), GATEWAY);
    assert_eq!(stage.dig("+short host.minivmm AAAA").trim(), GATEWAY6);
    for address in [GATEWAY, GATEWAY6, LINK_LOCAL] {
        assert_eq!(stage.dig(&format!("+short -x {address}")).trim(), "host.minivmm.");
    }
    for (question, status) in [
        ("nobody.minivmm", "NXDOMAIN"),
        ("-x 10.9.8.99", "NXDOMAIN"),
        ("db.minivmm MX", "NOERROR"),
        ("db.minivmm CH TXT", "NXDOMAIN"),
        ("+edns=1 +noednsnegotiation db.minivmm", "BADVERS"),
        ("+opcode=NOTIFY db.minivmm", "NOTIMP"),
    ] {
        let answer = stage.dig(question);
        assert!(answer.contains(&format!("status: {status}")), "{question}: {answer}");
    }
    assert_eq!(stage.count("dns_forwarded"), 0);
    assert_eq!(stage.client.run(&format!("busybox nslookup db.minivmm {GATEWAY}")).matches("10.9.8.8").count(), 1);
}

fn relay() {
    let _resolver = Resolver::start("127.0.0.1", "192.0.2.33");
    let stage = Stage::new(spec(Reach::Outside));
    stage.configure();

    assert_eq!(stage.dig("+short example.org").trim(), "192.0.2.33");
    // The resolver's answer fits its buffer, but not the network's MTU.
    let large = stage.dig("+ignore +bufsize=4096 long.example.org TXT");
    assert!(large.contains(" tc ") && large.contains("ANSWER: 0"), "{large}");
    let small = stage.dig("+ignore +noedns long.example.org TXT");
    assert!(small.contains(" tc "), "{small}");
    // Over TCP there is room for it, and clients switch to TCP when an answer is truncated.
    for question in ["+tcp long.example.org TXT", "+bufsize=4096 long.example.org TXT", "+noedns long.example.org TXT"]
    {
        let whole = stage.dig(question);
        assert!(whole.contains("ANSWER: 12") && whole.contains("(TCP)"), "{question}: {whole}");
    }
    assert_eq!(stage.dig("+tcp +short db.minivmm").trim(), "10.9.8.8");
    let several = stage.dig("+tcp +keepopen +short db.minivmm example.org db.minivmm");
    assert_eq!(several.split_whitespace().collect::<Vec<_>>(), ["10.9.8.8", "192.0.2.33", "10.9.8.8"]);
    assert!(stage.dig("other.test").contains("status: REFUSED"));
    assert_eq!(stage.count("frames_lost"), 0);
}

fn follow() {
    let _first = Resolver::start("127.0.0.1", "192.0.2.1");
    let _second = Resolver::start("127.0.0.2", "192.0.2.2");
    let stage = Stage::new(spec(Reach::Outside));
    stage.configure();
    assert_eq!(stage.dig("+short example.org").trim(), "192.0.2.1");

    std::fs::write(Path::new(&stage.path("resolv.conf")), "nameserver 127.0.0.2\n").unwrap();

    until(|| stage.dig("+short example.org").trim() == "192.0.2.2");
}

fn slaac() {
    let stage = Stage::new(spec(Reach::Outside));

    // The kernel solicits by itself.
    stage.await_address("fd00:9:8::ff:fe00:9/64");

    let routes = stage.client.run("ip -6 route show");
    assert!(routes.contains("default via fe80::1 dev eth0"), "{routes}");
    assert!(routes.contains("fd00:9:8::/64 dev eth0"), "{routes}");
    assert_eq!(stage.client.run(&format!("cat /proc/sys/net/ipv6/conf/{CARD}/mtu")).trim(), "1400");
}

fn rdisc6() {
    let stage = Stage::new(spec(Reach::Outside));
    stage.await_address("fe80:");

    let text = stage.client.run(&format!("rdisc6 -1 -r 3 {CARD}"));

    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for line in [
        "Hop limit : 64 ",
        "Stateful address conf. : No",
        "Stateful other conf. : Yes",
        "Router lifetime : 1800 ",
        "Prefix : fd00:9:8::/64",
        "On-link : Yes",
        "Autonomous address conf.: Yes",
        "Valid time : 3600 ",
        "Pref. time : 1800 ",
        "MTU : 1400 bytes",
        "Source link-layer address: 02:00:00:00:00:01",
        "Recursive DNS server : fd00:9:8::1",
        "DNS search list : minivmm",
        "from fe80::1",
    ] {
        assert!(text.to_lowercase().contains(&line.to_lowercase()), "{line} is missing in {text}");
    }
}

fn host_only_advertises() {
    let stage = Stage::new(spec(Reach::HostOnly));

    stage.await_address("fd00:9:8:");

    let routes = stage.client.run("ip -6 route show");
    assert!(!routes.contains("default"), "{routes}");
}

fn dhcpv6() {
    let stage = Stage::new(spec(Reach::Outside));
    stage.await_address("fe80:");
    let [hook, told, config, leases] = ["hook", "told", "config", "leases"].map(|name| stage.path(name));
    let lines = format!("[ -z \"$new_dhcp6_name_servers\" ] || {{ set > {told}.new; mv {told}.new {told}; }}");
    script(&hook, &format!("#!/bin/sh\n{lines}\n"));
    std::fs::write(&config, "request dhcp6.name-servers, dhcp6.domain-search;\n").unwrap();
    std::fs::write(&leases, "").unwrap();
    let pid = stage.path("pid");

    stage.client.run(&format!("dhclient -6 -S -1 -sf {hook} -lf {leases} -cf {config} -pf {pid} {CARD}"));

    let told = std::fs::read_to_string(told).unwrap();
    assert!(says(&told, "new_dhcp6_name_servers=fd00:9:8::1"), "{told}");
    assert!(
        says(&told, "new_dhcp6_domain_search=minivmm.") || says(&told, "new_dhcp6_domain_search=minivmm"),
        "{told}"
    );
    assert_eq!(stage.count("dhcpv6_replies"), 1);
}

fn names_over_ipv6() {
    let stage = Stage::new(spec(Reach::Outside));
    stage.await_address("fd00:9:8:");

    for (server, way) in
        [(GATEWAY6, "+notcp"), ("fe80::1%eth0", "+notcp"), (GATEWAY6, "+tcp"), ("fe80::1%eth0", "+tcp")]
    {
        let line = format!("dig @{server} {way} +tries=1 +time=8 +short db.minivmm");
        assert_eq!(stage.client.run(&line).trim(), "10.9.8.8", "{server} {way}");
    }
}

fn no_resolver() {
    let stage = Stage::new(spec(Reach::Outside));
    stage.configure();

    // No server listens: the kernel reports it at once, and so does the relay.
    let start = std::time::Instant::now();
    assert!(stage.dig("example.org").contains("status: SERVFAIL"));
    assert!(stage.dig("+tcp example.org").contains("status: SERVFAIL"));
    assert!(start.elapsed() < DEADLINE / 4);

    let flood = "for i in $(seq 200); do dig @10.9.8.1 +tries=1 +time=1 x$i.example.org & done >/dev/null; wait";
    script(&stage.path("flood"), &format!("#!/bin/sh\n{flood}\n"));
    stage.client.run(&stage.path("flood"));
    assert_eq!(stage.dig("+short db.minivmm").trim(), "10.9.8.8");
}

/// A guest's broadcast DHCP message, after a virtio-net header and, as with checksum offload, with the sum of the
/// pseudo header in place of a checksum.
fn dhcp_from_a_card(kind: u8) -> Vec<u8> {
    let mac: MacAddr = MAC.parse().unwrap();
    let mut message = vec![0; 240];
    message[..3].copy_from_slice(&[1, 1, 6]);
    message[28..34].copy_from_slice(&mac.octets());
    message[236..].copy_from_slice(&[99, 130, 83, 99]);
    message.extend([53, 1, kind, 50, 4, 10, 9, 8, 7, 255]);
    let len = u16::try_from(message.len()).unwrap() + 8;
    let mut ip = vec![0x45, 0];
    ip.extend((len + 20).to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    let sum = |bytes: &[u8]| {
        let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap().to_be_bytes()
    };
    let checksum = sum(&ip).map(|octet| !octet);
    ip[10..12].copy_from_slice(&checksum);
    let pseudo = sum(&[&ip[12..20], &[0, 17], &len.to_be_bytes()].concat());
    // VIRTIO_NET_HDR_F_NEEDS_CSUM, with csum_start at the UDP header and csum_offset at its checksum.
    let header = [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0];
    let udp = [&[0, 68, 0, 67], &len.to_be_bytes()[..], &pseudo].concat();
    [&header[..], &[0xff; 6], &mac.octets(), &[8, 0], &ip, &udp, &message].concat()
}

/// Reads frames until one is a DHCP message to a client, and returns its type.
fn dhcp_for_a_card(tap: &OwnedFd) -> u8 {
    let mut frame = [0; 2048];
    loop {
        let mut fds = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(DEADLINE).unwrap();
        assert_ne!(poll(&mut fds, timeout).unwrap(), 0, "a frame in time");
        let len = nix::unistd::read(tap, &mut frame).unwrap();
        if len > 300 && frame[24..26] == [8, 0] && frame[48..50] == [0, 68] {
            return frame[12 + 42 + 240 + 2];
        }
    }
}

fn on_a_bridge() {
    let cards = vec![format!("bridge=lan,create=on,queues=1,mac={MAC}").parse().unwrap()];
    let mut keeper =
        Keeper::start(&Request { vm_name: "web".to_owned(), vcpus: 1, cards, policy: None, steering: None }).unwrap();
    let ports = keeper.ports().unwrap();
    let (tap, name) = (&ports[0].fds[0], &ports[0].tap_name);
    let services = Services::start(name, spec(Reach::Outside));

    nix::unistd::write(tap, &dhcp_from_a_card(1)).unwrap();
    assert_eq!(dhcp_for_a_card(tap), 2, "an offer");
    nix::unistd::write(tap, &dhcp_from_a_card(3)).unwrap();
    assert_eq!(dhcp_for_a_card(tap), 5, "an acknowledgement");

    assert_eq!(services.event(), Event::LeaseAcked { ip: ADDRESS });
    drop(services);
    drop(ports);
    keeper.stop().unwrap();
}

fn port_down() {
    let stage = Stage::new(spec(Reach::Outside));
    stage.configure();
    assert_eq!(stage.dig("+short db.minivmm").trim(), "10.9.8.8");

    sh(&format!("ip link set {PORT} down"));
    sh(&format!("ip link set {PORT} up"));
    until(|| link(PORT)["operstate"] == "UP");

    stage.client.run(&format!("ip neigh replace {GATEWAY} lladdr {GATEWAY_MAC} dev {CARD} nud permanent"));
    assert_eq!(stage.dig("+short db.minivmm").trim(), "10.9.8.8");
}

fn filtered() {
    let stage = Stage::new(ServiceSpec { ipv6: None, ..spec(Reach::Outside) });
    stage.configure();
    stage.client.run(&format!("ip neigh add 10.9.8.99 lladdr {GATEWAY_MAC} dev {CARD} nud permanent"));
    let client = &stage.client;

    for line in [
        "dig @10.9.8.99 +tries=1 +time=1 db.minivmm",
        "dig -p 54 @10.9.8.1 +tries=1 +time=1 db.minivmm",
        "busybox arping -c 1 -w 1 -I eth0 10.9.8.1",
        "busybox ping -c 1 -W 1 10.9.8.1",
    ] {
        assert!(!client.try_run(line).status.success(), "{line}");
    }

    assert_eq!(stage.dig("+short db.minivmm").trim(), "10.9.8.8");
    assert_eq!(stage.count("frames"), 1);
}
