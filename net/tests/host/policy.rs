//! Security groups: the traffic that passes, in both directions and on every kind of network, and how policies are
//! replaced.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use net::Policy;
use net::policy::ask;

use crate::Case;
use crate::guest::{Namespace, ask_tcp, ask_udp, configure, echo, is_silent, send_frame};
use crate::lan::{link, names, sh, snapshot, until};
use crate::machine::{give6, mac, machine_on_bridge};
use crate::vmm::{DEADLINE, Vmm};

pub(crate) const CASES: &[Case] = &[
    ("policy_by_default_lets_pass_what_the_guest_begins_and_nothing_else", by_default),
    ("policy_opens_what_its_rules_say_to_whom_they_say", opened),
    ("policy_keeps_the_guest_from_what_its_rules_say", kept_in),
    ("policy_replaced_cuts_what_it_forbids_and_keeps_the_rest", replaced),
    ("policy_is_replaced_without_a_gap_for_those_it_lets_pass_and_for_those_it_does_not", live),
    ("policy_that_is_refused_changes_nothing", refused),
    ("policy_is_not_for_strangers_to_change", strangers),
    ("policy_of_a_bridged_guest_holds_for_both_ip_versions", bridged),
    ("policy_of_a_card_leaves_others_alone", cards),
    ("policy_lets_fragments_and_errors_of_known_connections_pass", pieces),
    ("policy_drops_what_is_neither_ip_nor_arp", not_ip),
    ("policy_of_a_nat_guest_holds_for_ipv6", nat6),
    ("policy_holds_on_a_tap_of_somebody_else", foreign_tap),
    ("policy_of_a_macvtap_holds_for_both_ip_versions", macvtap),
    ("policy_leaves_nothing_however_the_vm_ends", endings),
];

fn policy(text: &str) -> Policy {
    serde_json::from_str(text).unwrap()
}

fn replace(vm: &str, text: &str) {
    assert_eq!(ask(vm, Some(policy(text))).unwrap(), Some(policy(text)));
}

/// The world behind the host's only uplink, with an echo on port 7.
pub(crate) fn world() -> Namespace {
    sh("ip link set lo up");
    let world = Namespace::behind("up0", "198.51.100.1/24", "198.51.100.2/24");
    sh("ip route add default via 198.51.100.1");
    let _ = std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");
    echo(&world, 7);
    world
}

/// The lease in a tap's alias, and the gateway.
fn lease(tap: &str) -> (String, String) {
    let alias = link(tap)["ifalias"].as_str().unwrap().to_owned();
    let lease = alias.split("ip4=").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let gateway = format!("{}.1", lease.rsplit_once('.').unwrap().0);
    (lease, gateway)
}

/// A guest on NAT called `web` with a policy, and its address.
pub(crate) fn web(spec: &str, text: &str) -> (Vmm, Namespace, String) {
    let (vmm, guest) = Vmm::start_with_policy("web", spec, &policy(text));
    let (address, gateway) = lease("vmtap0");
    configure(&guest, &address, &gateway);
    (vmm, guest, address)
}

/// Packets that the policy of a VM's card has dropped for a reason.
fn dropped(vm: &str, card: usize, reason: &str) -> u64 {
    let text = sh(&format!("nft list counter netdev minivmm-{vm}/policy{card} policy-{reason}"));
    text.split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

/// This namespace, which is the host's.
fn host() -> Namespace {
    Namespace::at("/proc/self/ns/net")
}

fn by_default() {
    let world = world();
    let (vmm, guest, address) = web("nat,forward=tcp:8080:80", "{}");
    echo(&guest, 80);
    // Its own services first, which no policy covers.
    let text = guest.sh("busybox udhcpc -f -q -n -t 5 -T 2 -i eth0 -s /bin/true");
    assert!(text.contains(&format!("lease of {address} obtained")), "{text}");
    let (ok, text) = guest.attempt(&format!("nslookup -type=a web.minivmm {}", lease("vmtap0").1));
    assert!(ok && text.contains(&address), "{text}");
    assert!(ask_tcp(&guest, "198.51.100.1:7").is_some());
    assert!(ask_udp(&guest, "198.51.100.1:7").is_some());
    guest.sh("ping -c 1 -W 5 198.51.100.1");
    let (sibling, db) = Vmm::start_with_guest("db", "nat");
    let (db_address, gateway) = lease("vmtap1");
    configure(&db, &db_address, &gateway);
    echo(&db, 9);
    assert!(ask_tcp(&guest, &format!("{db_address}:9")).is_some());
    // From outside, from the host by any of its addresses, from another VM, by any protocol.
    assert!(is_silent(&world, "198.51.100.2:8080"));
    for (from, to) in [(host(), "127.0.0.1:8080".to_owned()), (host(), format!("{address}:80"))] {
        assert!(is_silent(&from, &to), "{to}");
    }
    assert!(is_silent(&db, &format!("{address}:80")));
    assert!(ask_udp(&db, &format!("{address}:80")).is_none());
    assert!(!db.attempt(&format!("ping -c 1 -W 1 {address}")).0);
    assert!(!host().attempt(&format!("ping -c 1 -W 1 {address}")).0);
    assert!(dropped("web", 0, "ingress") >= 6);
    assert_eq!(dropped("web", 0, "egress"), 0);
    sibling.stop();
    vmm.stop();
}

fn opened() {
    let world = world();
    let text = r#"{"ingress": [
        {"protocol": "tcp", "ports": [80, "8000-8001"], "source": ["198.51.100.0/24", "2001:db8::/32"]},
        {"protocol": "udp", "ports": 53},
        {"protocol": "icmp", "source": "10.0.0.0/8", "action": "drop"},
        {"protocol": "icmp"}
    ]}"#;
    let (vmm, guest, address) = web("nat,forward=tcp:8080:80+tcp:8000-8002:8000-8002+udp:5300:53", text);
    [80, 8000, 8001, 8002, 53].into_iter().for_each(|port| echo(&guest, port));
    for port in [8080, 8000, 8001] {
        assert_eq!(ask_tcp(&world, &format!("198.51.100.2:{port}")), "198.51.100.1".parse().ok());
    }
    assert!(is_silent(&world, "198.51.100.2:8002"));
    assert_eq!(ask_udp(&world, "198.51.100.2:5300"), "198.51.100.1".parse().ok());
    // Not from the gateway's address, which the host uses towards the guest.
    assert!(is_silent(&host(), &format!("{address}:80")));
    assert!(ask_udp(&host(), &format!("{address}:53")).is_some());
    assert!(!host().attempt(&format!("ping -c 1 -W 1 {address}")).0);
    vmm.stop();
}

fn kept_in() {
    let world = world();
    [25, 80, 443].into_iter().for_each(|port| echo(&world, port));
    let text = r#"{"egress": [
        {"protocol": "tcp", "ports": 25, "action": "drop"},
        {"destination": "198.51.100.2/32", "action": "drop"}
    ]}"#;
    let (vmm, guest, address) = web("nat,forward=tcp:8080:80", text);
    echo(&guest, 80);
    assert!(is_silent(&guest, "198.51.100.1:25"));
    assert!(ask_tcp(&guest, "198.51.100.1:80").is_some());
    assert!(!guest.attempt("ping -c 1 -W 1 198.51.100.2").0);
    assert!(dropped("web", 0, "egress") > 1);
    // Only listed traffic passes, and replies to accepted traffic.
    replace(
        "web",
        r#"{"default": {"egress": "drop"}, "egress": [{"protocol": "tcp", "ports": 443}], "ingress": [{"protocol": "tcp", "ports": 80}]}"#,
    );
    assert!(ask_tcp(&guest, "198.51.100.1:443").is_some());
    assert!(is_silent(&guest, "198.51.100.1:80"));
    assert!(ask_udp(&guest, "198.51.100.1:7").is_none());
    assert!(ask_tcp(&world, "198.51.100.2:8080").is_some());
    assert!(!guest.attempt("ping -c 1 -W 1 198.51.100.1").0);
    // The policy does not cover the services.
    let text = guest.sh("busybox udhcpc -f -q -n -t 5 -T 2 -i eth0 -s /bin/true");
    assert!(text.contains(&format!("lease of {address} obtained")), "{text}");
    vmm.stop();
}

/// A TCP connection whose other end echoes.
fn mirror(namespace: &Namespace, port: u16) {
    let any: SocketAddr = format!("0.0.0.0:{port}").parse().unwrap();
    let listener = namespace.within(|| TcpListener::bind(any).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut bytes = [0; 64];
                while let Ok(len @ 1..) = stream.read(&mut bytes) {
                    let _ = stream.write_all(&bytes[..len]);
                }
            });
        }
    });
}

fn connect(namespace: &Namespace, to: &str) -> TcpStream {
    let to: SocketAddr = to.parse().unwrap();
    namespace.within(|| TcpStream::connect_timeout(&to, DEADLINE / 4).unwrap())
}

fn is_answered(mut stream: &TcpStream, patience: Duration) -> bool {
    stream.set_read_timeout(Some(patience)).unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0; 1]).is_ok()
}

fn is_alive(stream: &TcpStream) -> bool {
    is_answered(stream, DEADLINE)
}

fn is_cut(stream: &TcpStream) -> bool {
    !is_answered(stream, Duration::from_millis(700))
}

fn replaced() {
    let world = world();
    let both = r#"{"ingress": [{"protocol": "tcp", "ports": "80-81"}]}"#;
    let (vmm, guest, _) = web("nat,forward=tcp:8080-8081:80-81", both);
    assert_eq!(ask("web", None).unwrap(), Some(policy(both)));
    [80, 81].into_iter().for_each(|port| mirror(&guest, port));
    mirror(&world, 5000);
    let (kept, cut) = (connect(&world, "198.51.100.2:8080"), connect(&world, "198.51.100.2:8081"));
    let outward = connect(&guest, "198.51.100.1:5000");
    assert!(is_alive(&kept) && is_alive(&cut) && is_alive(&outward));
    replace("web", r#"{"ingress": [{"protocol": "tcp", "ports": 80}]}"#);
    assert!(is_alive(&kept) && is_alive(&outward));
    assert!(is_cut(&cut));
    replace("web", r#"{"default": {"egress": "drop"}, "ingress": [{"protocol": "tcp", "ports": 80}]}"#);
    assert!(is_alive(&kept));
    assert!(is_cut(&outward));
    vmm.stop();
}

fn live() {
    let world = world();
    let (vmm, guest, _) =
        web("nat,forward=udp:5300:53+udp:5400:54", r#"{"ingress": [{"protocol": "udp", "ports": 53}]}"#);
    echo(&guest, 53);
    let unheard = guest.within(|| UdpSocket::bind("0.0.0.0:54").unwrap());
    unheard.set_nonblocking(true).unwrap();
    let (done, world) = (AtomicBool::new(false), &world);
    let (answered, tried) = (AtomicU64::new(0), AtomicU64::new(0));
    assert!(ask_udp(world, "198.51.100.2:5300").is_some());
    std::thread::scope(|scope| {
        let (done, answered, tried) = (&done, &answered, &tried);
        // A packet lost in a gap is lost for good: each question is sent once.
        scope.spawn(move || {
            let socket = world.within(|| UdpSocket::bind("0.0.0.0:0").unwrap());
            socket.connect("198.51.100.2:5300").unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            let mut bytes = [0; 64];
            while !done.load(Ordering::Relaxed) {
                socket.send(b"?").unwrap();
                socket.recv(&mut bytes).expect("an answer");
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
        scope.spawn(move || {
            let socket = world.within(|| UdpSocket::bind("0.0.0.0:0").unwrap());
            while !done.load(Ordering::Relaxed) {
                socket.send_to(b"!", "198.51.100.2:5400").unwrap();
                tried.fetch_add(1, Ordering::Relaxed);
            }
        });
        for round in 0..100 {
            let other = ["icmp", "tcp"][round % 2];
            replace(
                "web",
                &format!(r#"{{"ingress": [{{"protocol": "{other}"}}, {{"protocol": "udp", "ports": 53}}]}}"#),
            );
        }
        until(|| answered.load(Ordering::Relaxed) > 0 && tried.load(Ordering::Relaxed) > 0);
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(unheard.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    until(|| dropped("web", 0, "ingress") > 0);
    vmm.stop();
}

/// A raw connection to the keeper of `web`, without our client.
fn keeper() -> UnixStream {
    let stream = UnixStream::connect("/run/minivmm/web.keeper").unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

fn refused() {
    let _world = world();
    let text = r#"{"ingress": [{"protocol": "tcp", "ports": 80}]}"#;
    let (vmm, guest, address) = web("nat", text);
    echo(&guest, 80);
    let before = sh("nft -s list ruleset");
    let error = ask("web", Some(policy(r#"{"ingress": [{"cards": [7]}]}"#))).unwrap_err().to_string();
    assert_eq!(error, "The policy has a rule for card 7, and the VM has 1");
    for line in ["", "{}\n", "\"hide\"\n", "{\"replace\":{\"ingress\":[{\"port\":80}]}}\n", "\u{fffd}\n"] {
        let mut stream = keeper();
        stream.write_all(line.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("{\"refused\":\"Cannot read the request: "), "{line}: {answer}");
    }
    // A silent client is dropped, and the next one is served.
    let silent = keeper();
    assert_eq!(ask("web", None).unwrap(), Some(policy(text)));
    drop(silent);
    assert!(ask("db", None).unwrap_err().to_string().starts_with("No VM with the name db"));
    assert_eq!(sh("nft -s list ruleset"), before);
    assert!(ask_tcp(&host(), &format!("{address}:80")).is_some());
    vmm.stop();
}

fn strangers() {
    let _world = world();
    let (vmm, _guest, _) = web("nat", "{}");
    let no = "Only root and the user who started this VM may ask for its policy, with CAP_NET_ADMIN";
    // Another user, whom the kernel keeps from the socket.
    let other = std::thread::spawn(|| {
        // The raw system call changes this thread alone.
        #[expect(unsafe_code, reason = "libc sets all threads")]
        // SAFETY: no pointers.
        let result = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(result, 0);
        (UnixStream::connect("/run/minivmm/web.keeper").unwrap_err().kind(), ask("web", None).unwrap_err().to_string())
    });
    assert_eq!(other.join().unwrap(), (ErrorKind::PermissionDenied, no.to_owned()));
    // Root without the capability, like a compromised VMM.
    let asked = |dropped: &str| {
        let own = std::env::current_exe().unwrap();
        let mut command = Command::new("setpriv");
        let output = command.args([dropped, "--inh-caps=-all"]).arg(own).args(["ask-policy", "web"]).output();
        String::from_utf8(output.expect("setpriv").stdout).unwrap()
    };
    assert_eq!(asked("--bounding-set=-net_admin"), format!("refused {no}\n"));
    assert_eq!(asked("--bounding-set=-sys_time"), "in force\n");
    vmm.stop();
}

/// The role of a client: prints whether a VM's keeper tells its policy.
pub(crate) fn call(vm: &str) {
    match ask(vm, None) {
        Ok(_) => println!("in force"),
        Err(error) => println!("refused {error}"),
    }
}

/// Answers on TCP `port` over IPv6.
fn echo6(namespace: &Namespace, port: u16) {
    let listener = namespace.within(|| TcpListener::bind(format!("[::]:{port}")).unwrap());
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = stream.write_all(peer.ip().to_string().as_bytes());
        }
    });
}

fn bridged() {
    let machine = machine_on_bridge();
    echo(&machine, 7);
    echo6(&machine, 8);
    let text = r#"{"ingress": [{"protocol": "tcp", "ports": 80, "source": ["192.0.2.1", "2001:db8::1"]}, {"protocol": "icmp", "source": "192.0.2.1"}]}"#;
    let (vmm, guest) = Vmm::start_with_policy("web", "bridge=br0", &policy(text));
    let (sibling, other) = Vmm::start_bridged("db", "bridge=br0");
    for (namespace, host) in [(&guest, 5), (&other, 6)] {
        namespace.sh(&format!("ip addr add 192.0.2.{host}/24 dev eth0"));
        give6(namespace, &format!("2001:db8::{host}"));
    }
    echo(&guest, 81);
    echo6(&guest, 80);
    // Outbound.
    assert!(ask_tcp(&guest, "192.0.2.1:7").is_some());
    assert!(ask_udp(&guest, "192.0.2.1:7").is_some());
    assert!(ask_tcp(&guest, "[2001:db8::1]:8").is_some());
    guest.sh("ping -c 1 -W 5 192.0.2.1");
    guest.sh("ping -c 1 -W 5 2001:db8::1");
    // Inbound, from the outside.
    assert!(ask_tcp(&machine, "192.0.2.5:80").is_some());
    assert!(ask_tcp(&machine, "[2001:db8::5]:80").is_some());
    machine.sh("ping -c 1 -W 5 192.0.2.5");
    assert!(is_silent(&machine, "192.0.2.5:81"));
    assert!(!machine.attempt("ping -c 1 -W 1 2001:db8::5").0);
    // From another VM and from the host.
    sh("ip addr add 192.0.2.254/24 dev br0");
    for from in [&other, &host()] {
        assert!(is_silent(from, "192.0.2.5:80"));
        assert!(!from.attempt("ping -c 1 -W 1 192.0.2.5").0);
    }
    assert!(is_silent(&other, "[2001:db8::5]:80"));
    vmm.stop();
    sibling.stop();
    assert_eq!(sh("nft list ruleset"), "");
}

fn cards() {
    let _machine = machine_on_bridge();
    let mut command = crate::vmm::itself(&["vmm", "web", "bridge=br0", "bridge=br0"]);
    let text = r#"{"ingress": [{"protocol": "icmp", "cards": [1]}]}"#;
    command.env("GUESTS", "all").env("POLICY", text);
    let vmm = Vmm::from_command(command);
    vmm.taps();
    let guests = [vmm.guest(), vmm.guest()];
    for (guest, host) in guests.iter().zip([5, 6]) {
        guest.sh(&format!("ip addr add 192.0.2.{host}/24 dev eth0"));
    }
    sh("ip addr add 192.0.2.254/24 dev br0");
    host().sh("ping -c 1 -W 5 192.0.2.6");
    assert!(!host().attempt("ping -c 1 -W 1 192.0.2.5").0);
    assert!(dropped("web", 0, "ingress") > 0);
    replace("web", r#"{"ingress": [{"protocol": "icmp", "cards": [0]}]}"#);
    host().sh("ping -c 1 -W 5 192.0.2.5");
    assert!(!host().attempt("ping -c 1 -W 1 192.0.2.6").0);
    vmm.stop();
}

fn pieces() {
    let machine = machine_on_bridge();
    echo(&machine, 7);
    let (vmm, guest) = Vmm::start_with_policy("web", "bridge=br0", &policy("{}"));
    guest.sh("ip addr add 192.0.2.5/24 dev eth0");
    give6(&guest, "2001:db8::5");
    // In three fragments each way.
    guest.sh("ping -c 1 -W 5 -s 4000 192.0.2.1");
    guest.sh("ping -c 1 -W 5 -s 4000 2001:db8::1");
    assert!(!machine.attempt("ping -c 1 -W 1 -s 4000 192.0.2.5").0);
    assert!(!machine.attempt("ping -c 1 -W 1 -s 4000 2001:db8::5").0);
    assert!(dropped("web", 0, "fragment") >= 4);
    // No server listens there, and the other end's ICMP error says so.
    for (local, to) in [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")] {
        let socket = guest.within(|| UdpSocket::bind(local).unwrap());
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.send(b"?").unwrap();
        assert_eq!(socket.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{to}");
    }
    // The same error about a packet that the guest never sent is dropped.
    let before = dropped("web", 0, "ingress");
    let mac = |namespace| mac(namespace).octets();
    let ip = |proto: u8, len: u8, from: u8, to: u8| {
        [&[0x45, 0, 0, len, 0, 1, 0, 0, 64, proto, 0, 0][..], &[192, 0, 2, from], &[192, 0, 2, to]].concat()
    };
    let quoted = [ip(17, 28, 5, 1), vec![0x30, 0x39, 0, 9, 0, 8, 0, 0]].concat();
    let frame =
        [&mac(&guest)[..], &mac(&machine), &[8, 0], &ip(1, 56, 1, 5), &[3, 3, 0, 0, 0, 0, 0, 0], &quoted].concat();
    send_frame(&machine, &frame);
    until(|| dropped("web", 0, "ingress") == before + 1);
    vmm.stop();
}

fn not_ip() {
    let machine = machine_on_bridge();
    let (vmm, guest) = Vmm::start_with_policy("web", "bridge=br0", &policy(r#"{"default": {"ingress": "accept"}}"#));
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
    frame.resize(60, 0);
    send_frame(&guest, &frame);
    until(|| dropped("web", 0, "not-ip") == 1);
    send_frame(&machine, &frame);
    until(|| dropped("web", 0, "not-ip") == 2);
    // A packet whose headers cannot be parsed is malformed.
    frame[12..].fill(0);
    frame[12..14].copy_from_slice(&[0x86, 0xdd]);
    frame[14] = 0x60;
    frame[19] = 1;
    send_frame(&guest, &frame);
    until(|| dropped("web", 0, "malformed") == 1);
    vmm.stop();
}

fn nat6() {
    let world = world();
    give6(&world, "2001:db8:1::1");
    sh("sysctl -q net.ipv6.conf.up0.disable_ipv6=0");
    sh("ip addr add 2001:db8:1::2/64 dev up0 nodad");
    sh("ip route add default via 2001:db8:1::1");
    echo6(&world, 8);
    let (vmm, guest) = Vmm::start_with_policy("web", "nat,ipv6=on", &policy("{}"));
    let text = sh("ip -6 -j addr show dev mvn-default");
    let gateway =
        text.split("\"local\":\"").skip(1).find(|rest| rest.starts_with("fd")).unwrap().split('"').next().unwrap();
    let address = format!("{}5", gateway.strip_suffix('1').unwrap());
    guest.sh(&format!("ip addr add {address}/64 dev eth0"));
    guest.sh(&format!("ip route add default via {gateway}"));
    // Its own once duplicate address detection has passed.
    until(|| guest.sh("ip addr show dev eth0 scope global -tentative").contains(&address));
    until(|| ask_tcp(&guest, "[2001:db8:1::1]:8").is_some());
    echo6(&guest, 80);
    assert!(is_silent(&host(), &format!("[{address}]:80")));
    assert!(!host().attempt(&format!("ping -c 1 -W 1 {address}")).0);
    replace("web", r#"{"ingress": [{"protocol": "tcp", "ports": 80}, {"protocol": "icmp", "source": "fd00::/8"}]}"#);
    let from: IpAddr = ask_tcp(&host(), &format!("[{address}]:80")).unwrap();
    assert_eq!(from.to_string(), gateway);
    host().sh(&format!("ping -c 1 -W 5 {address}"));
    vmm.stop();
}

fn macvtap() {
    let outside = Namespace::behind("up0", "192.0.2.1/24", "192.0.2.254/24");
    until(|| link("up0")["operstate"] == "UP");
    give6(&outside, "2001:db8::1");
    echo(&outside, 7);
    echo6(&outside, 8);
    let text = r#"{"ingress": [{"protocol": "tcp", "ports": 80}], "egress": [{"protocol": "tcp", "ports": 7, "action": "drop"}]}"#;
    let (vmm, guest) = Vmm::start_with_policy("web", "macvtap=up0", &policy(text));
    guest.sh("ip addr add 192.0.2.5/24 dev eth0");
    give6(&guest, "2001:db8::5");
    [80, 81].into_iter().for_each(|port| echo6(&guest, port));
    assert!(ask_tcp(&guest, "[2001:db8::1]:8").is_some());
    guest.sh("ping -c 1 -W 5 192.0.2.1");
    assert!(is_silent(&guest, "192.0.2.1:7"));
    assert!(dropped("web", 0, "egress") > 0);
    for address in ["192.0.2.5", "[2001:db8::5]"] {
        assert!(ask_tcp(&outside, &format!("{address}:80")).is_some(), "{address}");
        assert!(is_silent(&outside, &format!("{address}:81")), "{address}");
    }
    assert!(!outside.attempt("ping -c 1 -W 1 192.0.2.5").0);
    vmm.stop();
}

fn foreign_tap() {
    sh("ip tuntap add tap9 mode tap vnet_hdr");
    sh("ip addr add 192.0.2.1/24 dev tap9");
    sh("ip link set tap9 up");
    let (vmm, guest) = Vmm::start_with_policy("web", "tap=tap9", &policy("{}"));
    guest.sh("ip addr add 192.0.2.5/24 dev eth0");
    echo(&guest, 80);
    guest.sh("ping -c 1 -W 5 192.0.2.1");
    assert!(is_silent(&host(), "192.0.2.5:80"));
    replace("web", r#"{"ingress": [{"protocol": "tcp", "ports": 80}]}"#);
    assert!(ask_tcp(&host(), "192.0.2.5:80").is_some());
    vmm.stop();
    assert_eq!(sh("nft list ruleset"), "");
}

fn endings() {
    let _world = world();
    let before = [snapshot(), sh("nft list ruleset")];
    let after = || [snapshot(), sh("nft list ruleset")];
    let (mut vmm, _guest, _) = web("nat", "{}");
    vmm.kill();
    assert_eq!(vmm.end(), "");
    assert_eq!(after(), before);
    // A VM without a policy gets one, and it ends with the VM in the same way.
    let (mut vmm, guest) = Vmm::start_with_guest("web", "nat");
    let (address, gateway) = lease("vmtap0");
    configure(&guest, &address, &gateway);
    echo(&guest, 80);
    assert_eq!(ask("web", None).unwrap(), None);
    assert!(ask_tcp(&host(), &format!("{address}:80")).is_some());
    replace("web", "{}");
    assert!(is_silent(&host(), &format!("{address}:80")));
    vmm.kill();
    vmm.end();
    assert_eq!(after(), before);
    let (mut vmm, _guest, _) = web("nat", "{}");
    vmm.kill_keeper();
    assert_eq!(vmm.line(), "keeper gone");
    vmm.kill();
    assert_eq!(sh("nft list ruleset"), "");
    assert_eq!(names().len(), 2);
}
