//! The DNS search domains of a guest, sent to ISC's dhclient by our services and by dnsmasq.

use std::process::{Child, Command, Stdio};

use net::services::{Reach, Search, ServiceSpec};

use crate::Case;
use crate::client::PORT;
use crate::lan::{sh, until};
use crate::services::{Stage, run_dhclient, spec};

pub(crate) const CASES: &[Case] = &[("search_domains_of_the_host_are_told_as_dnsmasq_tells_them", told)];

fn told() {
    let mut stage = Stage::new(ServiceSpec { search: Search::Host(Vec::new()), ipv6: None, ..spec(Reach::Outside) });
    let resolv_conf = stage.path("resolv.conf");
    // As much as a client accepts that states no buffer size of its own.
    let long = ["x".repeat(60), "y".repeat(60), "z".repeat(60)].join(".");
    let lines = format!("nameserver 127.0.0.1\nsearch corp.example bad..name lab.corp.example {long}\n");
    std::fs::write(&resolv_conf, lines).unwrap();
    let ours = domains(&stage);
    assert_eq!(ours, format!("minivmm. corp.example. lab.corp.example. {long}."));

    // A renewed lease has the file's contents of that time.
    std::fs::write(&resolv_conf, "nameserver 127.0.0.1\ndomain new.example\n").unwrap();
    until(|| domains(&stage) == "minivmm. new.example.");

    stage.end_services();
    let list = ours.split(' ').map(|name| name.trim_end_matches('.')).collect::<Vec<_>>().join(",");
    let _dnsmasq = Dnsmasq::start(&stage, &list);
    let theirs = domains(&stage);
    println!("both say {theirs}");
    assert_eq!(ours, theirs);
}

/// The list that dhclient gets.
fn domains(stage: &Stage) -> String {
    let leases = stage.path("leases");
    std::fs::write(&leases, "").unwrap();
    let _ = std::fs::remove_file(stage.path("told"));
    let told = run_dhclient(stage, &leases);
    let line = told.lines().find_map(|line| line.strip_prefix("new_domain_search=")).unwrap_or_default();
    line.trim_matches('\'').to_owned()
}

/// Another server in place of our services.
struct Dnsmasq(Child);

impl Dnsmasq {
    fn start(stage: &Stage, domains: &str) -> Self {
        sh(&format!("ip addr add 10.9.8.1/24 dev {PORT}"));
        let child = Command::new("dnsmasq")
            .args(["--conf-file=/dev/null", "--keep-in-foreground", "--user=root", "--port=0", "--pid-file"])
            .args(["--dhcp-authoritative", "--dhcp-range=10.9.8.7,10.9.8.7", "--bind-interfaces", "--no-ping"])
            .arg(format!("--interface={PORT}"))
            .arg(format!("--dhcp-leasefile={}", stage.path("dnsmasq.leases")))
            .arg(format!("--dhcp-option=option:domain-search,{domains}"))
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("dnsmasq"))
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
