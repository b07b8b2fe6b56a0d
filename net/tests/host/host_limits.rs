//! Limits of the host that a plan checks, so that a start does not hit them half-way.

use net::nft::{Chain, Family, NftSocket, Rule, Table, TableName, Verdict};
use net::preview::preview;
use net::{Error, Request};

use crate::Case;
use crate::lan::{sh, snapshot};
use crate::nat::{stop, world};
use crate::vmm::Vmm;

pub(crate) const CASES: &[Case] = &[
    ("ipv6_behind_a_narrow_uplink_is_refused_by_plan_and_start", narrow),
    ("ipv6_works_where_the_host_has_it_off_for_new_interfaces", off_by_default),
    ("plan_has_the_kernel_look_at_its_rules_and_make_none", looked_at),
];

fn request(spec: &str) -> Request {
    let cards = vec![spec.parse().unwrap()];
    Request { vm_name: "web".to_owned(), vcpus: 1, cards, policy: None, steering: None }
}

fn narrow() {
    let _world = world();
    sh("ip link set up0 mtu 1200");
    let before = snapshot();

    let planned = preview(&request("nat,ipv6=on")).unwrap_err();
    let vmm = Vmm::spawn("web", &["nat,ipv6=on"]);

    let refused = "ipv6=on needs an MTU of 1280, and up0 carries 1200";
    assert_eq!(planned.to_string(), refused);
    assert!(
        vmm.line().starts_with(&format!("failed {refused} | leave ipv6=on out, or raise the MTU: ip link set up0"))
    );
    assert_eq!(vmm.end(), "");
    assert_eq!(snapshot(), before);
    stop(Vmm::start("web", &["nat"]));
}

fn off_by_default() {
    let _world = world();
    for conf in ["all", "default"] {
        sh(&format!("sysctl -qw net.ipv6.conf.{conf}.disable_ipv6=1"));
    }

    let vmm = Vmm::start("web", &["nat,ipv6=on"]);

    let addresses = sh("ip -6 addr show dev mvn-default");
    assert!(addresses.contains("inet6 fd") && addresses.contains("fe80::1/64"), "{addresses}");
    stop(vmm);
}

fn looked_at() {
    let _world = world();
    let spec = "nat,ipv6=on,forward=tcp:8080:80+udp:5300:53,connections=100,new-connections=50/s";

    let plan = preview(&request(spec));

    assert!(plan.is_ok(), "{:?}", plan.err().as_ref().map(Error::to_string));
    assert_eq!(sh("nft list ruleset"), "");
    // While the VM runs, too.
    let vmm = Vmm::start("web", &[spec]);
    let plan = preview(&Request { vm_name: "db".to_owned(), ..request("nat") });
    assert!(plan.is_ok(), "{:?}", plan.err().as_ref().map(Error::to_string));
    stop(vmm);
    // A refusal by the kernel leaves no trace, either.
    let rule = Rule::new().with(Verdict::Jump("missing".to_owned()));
    let chains = vec![Chain { name: "c".to_owned(), base: None, rules: vec![rule] }];
    let name = TableName { family: Family::Inet, name: "web".to_owned() };
    let table = Table { name, counters: Vec::new(), sets: Vec::new(), chains };
    let refused = NftSocket::open().unwrap().check(&table.into()).unwrap_err().to_string();
    assert!(refused.starts_with("The kernel refuses rule 'jump missing'"), "{refused}");
    assert_eq!(sh("nft list ruleset"), "");
}
