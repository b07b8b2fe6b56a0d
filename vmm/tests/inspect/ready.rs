//! The line that says that the network is ready, and `--wait-net`.

use crate::Case;
use crate::host::{minivmm, said, sh};
use crate::vm::{Vm, guest_asks_dhcp, guest_says_arp, tap};
use serde_json::{Value, json};
use std::net::Ipv4Addr;

pub(crate) const CASES: &[Case] = &[
    ("ready_line_comes_with_the_address", with_the_address),
    ("ready_line_of_a_card_behind_nat_comes_with_its_lease", lease),
    ("ready_line_on_stderr_is_the_only_one_that_begins_with_a_brace", on_stderr),
    ("ready_line_waits_for_every_card", every_card),
    ("ready_line_of_a_vm_without_cards_comes_at_once", without_cards),
    ("ready_line_says_that_an_address_cannot_be_heard", unknown),
    ("ready_fd_that_is_not_open_is_refused", closed),
    ("config_file_and_flags_make_one_vm", config),
    ("wait_net_ends_the_vm_with_97", overdue),
    ("wait_net_is_satisfied_by_an_address", in_time),
    ("wait_net_is_refused_where_no_address_can_be_heard", deaf),
];

const TAP0: [&str; 4] = ["--name", "web", "--net", "tap=tap0,queues=1,mac=52:54:00:00:00:01"];
/// For `setpriv`.
const WITHOUT_NET_RAW: [&str; 3] = ["setpriv", "--bounding-set=-net_raw", "--"];

fn with(more: &[&'static str]) -> Vec<&'static str> {
    [&TAP0, more].concat()
}

fn started(args: &[&str]) -> Vm {
    let mut vm = Vm::start(&[args, &["--log", "debug"]].concat());
    while !vm.error_line().contains("vCPUs are running") {}
    vm
}

fn with_the_address() {
    tap("tap0");
    let mut vm = started(&with(&["--ready-fd", "7"]));

    guest_says_arp("tap0", [0; 4]);
    guest_says_arp("tap0", [10, 0, 0, 5]);
    let ready: Value = serde_json::from_str(&vm.ready_line()).unwrap();

    let card = json!({
        "card": "net0", "mode": "tap", "bridge": null, "network": null, "tap": "tap0", "mac": "52:54:00:00:00:01",
        "address": "known", "addresses": ["10.0.0.5"], "forwards": [], "foreign_rules": [],
    });
    assert_eq!(ready["event"], "ready");
    assert_eq!(ready["name"], "web");
    assert_eq!(ready["cards"], json!([card]));
    assert!(ready["ms"].as_u64().unwrap() < 60_000, "{ready}");
    assert!(ready["setup"]["apply_us"].is_u64(), "{ready}");
    assert_eq!(vm.quit().0, 131);
}

fn lease() {
    let net = "nat=lab,mac=52:54:00:00:00:01,queues=2,forward=tcp:8080:80";
    let mut vm = started(&["--name", "web", "--net", net, "--ready-fd", "7"]);
    let links: Value = serde_json::from_str(&sh("ip -j -d link show vmtap0")).unwrap();
    let alias = links[0]["ifalias"].as_str().unwrap().to_owned();
    let ip: Ipv4Addr = alias.split(' ').find_map(|word| word.strip_prefix("ip4=")).unwrap().parse().unwrap();

    guest_asks_dhcp("vmtap0", [0x52, 0x54, 0, 0, 0, 1], ip.octets());
    let ready: Value = serde_json::from_str(&vm.ready_line()).unwrap();

    let card = json!({
        "card": "net0", "mode": "nat", "bridge": "mvn-lab", "network": "lab", "tap": "vmtap0",
        "mac": "52:54:00:00:00:01", "address": "known", "addresses": [ip.to_string()], "forwards": ["tcp:8080:80"], "foreign_rules": [],
    });
    assert_eq!(ready["cards"], json!([card]));
    assert_eq!(vm.quit().0, 131);
}

fn on_stderr() {
    tap("tap0");
    let mut vm = started(&TAP0);

    guest_says_arp("tap0", [10, 0, 0, 5]);
    let mut line = vm.error_line();
    while !line.starts_with('{') {
        assert!(line.starts_with("minivmm: "), "{line}");
        line = vm.error_line();
    }

    let ready: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(ready["cards"][0]["addresses"], json!(["10.0.0.5"]));
    let (_, rest) = vm.quit();
    assert!(rest.lines().all(|line| line.starts_with("minivmm: ")), "{rest}");
}

fn every_card() {
    tap("tap0");
    tap("tap1");
    let mut vm = started(&with(&["--net", "tap=tap1,queues=1", "--ready-fd", "7"]));

    guest_says_arp("tap1", [10, 0, 1, 5]);
    guest_says_arp("tap0", [10, 0, 0, 5]);
    let ready: Value = serde_json::from_str(&vm.ready_line()).unwrap();

    let addresses: Vec<_> = ready["cards"].as_array().unwrap().iter().map(|card| &card["addresses"][0]).collect();
    assert_eq!(addresses, ["10.0.0.5", "10.0.1.5"]);
}

fn without_cards() {
    let mut vm = Vm::start(&["--name", "web", "--ready-fd", "7"]);

    let ready: Value = serde_json::from_str(&vm.ready_line()).unwrap();

    assert_eq!((&ready["name"], &ready["cards"]), (&json!("web"), &json!([])));
}

fn unknown() {
    tap("tap0");
    let mut vm = Vm::start_through(&WITHOUT_NET_RAW, &with(&["--ready-fd", "7"]));

    let ready: Value = serde_json::from_str(&vm.ready_line()).unwrap();

    assert_eq!((&ready["cards"][0]["address"], &ready["cards"][0]["addresses"]), (&json!("unknown"), &json!([])));
}

fn closed() {
    let (code, _, errors) = said(&mut minivmm(&["--ready-fd", "77"]));

    assert_eq!(code, 64);
    assert!(errors.starts_with("minivmm: --ready-fd 77 is not open in this process\nhint: "), "{errors}");
}

fn config() {
    tap("tap0");
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = "name = \"web\"\nready-fd = 9\nlog = \"debug\"\n[[net]]\ntap = \"tap0\"\nqueues = 1\nmtu = 1400\n";
    std::fs::write(file.path(), text).unwrap();
    let mut vm = Vm::start(&["--config", file.path().to_str().unwrap(), "--ready-fd", "7"]);
    while !vm.error_line().contains("vCPUs are running") {}

    guest_says_arp("tap0", [10, 0, 0, 5]);
    let ready: Value = serde_json::from_str(&vm.ready_line()).unwrap();

    assert_eq!((&ready["name"], &ready["cards"][0]["tap"]), (&json!("web"), &json!("tap0")));
}

fn overdue() {
    tap("tap0");
    let mut vm = Vm::start(&with(&["--wait-net", "1"]));

    let (code, errors) = vm.end();

    assert_eq!(code, 97, "{errors}");
    let (sentence, hint) = errors.split_once('\n').unwrap();
    assert_eq!(sentence, "minivmm: net0 has no address after 1 s");
    assert!(hint.starts_with("hint: See whether the guest asks for an address and a server on tap tap0"), "{hint}");
}

fn in_time() {
    tap("tap0");
    let mut vm = started(&with(&["--wait-net", "2", "--ready-fd", "7"]));
    guest_says_arp("tap0", [10, 0, 0, 5]);
    vm.ready_line();

    std::thread::sleep(std::time::Duration::from_millis(2200));

    assert_eq!(vm.quit().0, 131);
}

fn deaf() {
    tap("tap0");
    let mut vm = Vm::start_through(&WITHOUT_NET_RAW, &with(&["--wait-net", "9"]));

    let (code, errors) = vm.end();

    assert_eq!(code, 64, "{errors}");
    let sentence = "minivmm: --wait-net cannot be had: the address of net0 cannot be heard\nhint: ";
    assert!(errors.starts_with(sentence), "{errors}");
}
