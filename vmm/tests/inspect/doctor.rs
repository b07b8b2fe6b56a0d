//! `minivmm doctor`: each trouble is named, and gone once its fix has been run.

use crate::Case;
use crate::host::{bridge, minivmm, said, sh, snapshot, unprivileged};
use serde_json::{Value, json};
use std::process::Command;

pub(crate) const CASES: &[Case] = &[
    ("doctor_names_what_a_start_is_refused_for", refusal),
    ("doctor_names_a_chain_that_drops_what_is_routed", dropping_chain),
    ("doctor_names_a_chain_that_drops_what_is_bridged", dropping_bridge_chain),
    ("doctor_finds_a_chain_that_ends_in_a_drop", dropping_rule),
    ("doctor_names_frames_that_pass_rules_for_packets", bridge_nf),
    ("doctor_names_a_port_that_carries_less", narrow_port),
    ("doctor_names_subnets_that_overlap", overlap),
    ("doctor_names_a_strict_return_path", return_path),
    ("doctor_names_what_a_user_may_not", not_allowed),
    ("doctor_touches_nothing", touches_nothing),
    ("doctor_says_in_its_exit_code_whether_a_start_would_work", exit_code),
];

/// Everything that doctor says of these cards.
fn findings(cards: &[&str]) -> Vec<Value> {
    let flags = cards.iter().flat_map(|card| ["--net", card]);
    let (_, text, errors) = said(minivmm(&["doctor", "--json"]).args(flags));
    assert_eq!(errors, "");
    let report: Value = serde_json::from_str(&text).unwrap();
    report["findings"].as_array().unwrap().clone()
}

/// The doctor's finding about this card and this thing, unless all is well: its level, its text, and the fix.
fn trouble(card: &str, about: &str) -> Option<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let found = findings(&[card]).into_iter().find(|it| it["about"] == about && it["level"] != "fine")?;
    assert_ne!(found["why"], "");
    Some((text(&found["level"]), text(&found["what"]), text(&found["fix"])))
}

/// There is this trouble; its fix is run, and it has gone.
fn fixed(card: &str, about: &str, level: &str, what: &str) {
    let (found_level, found_what, fix) = trouble(card, about).expect("trouble");
    assert_eq!((found_level.as_str(), found_what.as_str()), (level, what));
    let status = Command::new("sh").args(["-c", &fix]).stdout(std::process::Stdio::null()).status().unwrap();
    assert!(status.success(), "{fix}");
    assert_eq!(trouble(card, about), None, "after: {fix}");
}

fn refusal() {
    let (level, what, fix) = trouble("bridge=br0", "plan").unwrap();

    assert_eq!((level.as_str(), what.as_str()), ("problem", "Bridge br0 does not exist"));
    assert_eq!(fix, "add create=on to have minivmm make it: --net bridge=br0,create=on");
    assert_eq!(trouble("bridge=br0,create=on", "plan"), None);
}

fn dropping_chain() {
    sh("nft add table inet strict");
    sh("nft add chain inet strict gate { type filter hook forward priority 0 ; policy drop ; }");

    // With br_netfilter, what guests of a network without a way out say to each other passes it as well.
    let _ = std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");
    assert_eq!(trouble("host", "firewall"), None);
    fixed("nat", "firewall", "problem", "Chain gate of table inet strict drops traffic that no rule accepts");
}

fn dropping_bridge_chain() {
    bridge("br0");
    sh("nft add table bridge strict");
    sh("nft add chain bridge strict gate { type filter hook forward priority 0 ; policy drop ; }");

    let (level, what, fix) = trouble("bridge=br0", "firewall").unwrap();

    assert_eq!(
        (level.as_str(), what.as_str()),
        ("problem", "Chain gate of table bridge strict drops traffic that no rule accepts")
    );
    assert!(fix.starts_with("nft insert rule bridge strict gate iifname"), "{fix}");
}

fn dropping_rule() {
    sh("nft add table ip strict");
    sh("nft add chain ip strict gate { type filter hook forward priority 0 ; policy accept ; }");
    assert_eq!(trouble("nat", "firewall"), None);

    sh("nft add rule ip strict gate counter reject");

    fixed("nat", "firewall", "problem", "Chain gate of table ip strict drops traffic that no rule accepts");
}

fn bridge_nf() {
    bridge("br0");
    // A kernel without br_netfilter has nothing to find.
    let Ok(()) = std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "1") else { return };
    sh("nft add table ip strict");
    sh("nft add chain ip strict gate { type filter hook forward priority 0 ; policy drop ; }");
    sh("sysctl -q -w net.bridge.bridge-nf-call-ip6tables=0");

    fixed(
        "bridge=br0",
        "bridge-nf",
        "problem",
        "Frames on bridges pass the rules of iptables (bridge-nf-call-iptables=1)",
    );
}

fn narrow_port() {
    bridge("br0");
    sh("ip link add up0 mtu 1500 type veth peer name peer0");
    sh("ip link set up0 master br0");
    sh("ip link set br0 mtu 9000");

    let (level, what, fix) = trouble("bridge=br0,mtu=9000", "mtu").unwrap();

    assert_eq!(
        (level.as_str(), what.as_str()),
        ("warning", "Port up0 of bridge br0 carries 1500 bytes, and the card 9000")
    );
    assert_eq!(fix, "ip link set up0 mtu 9000, or give the card mtu=1500");
    assert_eq!(trouble("bridge=br0,mtu=1500", "mtu"), None);
}

fn overlap() {
    bridge("br0");
    bridge("br1");
    sh("ip address add 10.0.0.1/24 dev br0");
    sh("ip address add 10.0.0.129/25 dev br1");

    let (level, what, fix) = trouble("bridge=br0", "subnets").unwrap();

    assert_eq!((level.as_str(), what.as_str()), ("warning", "10.0.0.1/24 on br0 and 10.0.0.129/25 on br1 overlap"));
    // Which of the two is wrong only their owner knows: advice, not a command that takes an address away.
    assert!(fix.starts_with("give the machines on br0 or br1 addresses of another subnet"), "{fix}");
    sh("ip address del 10.0.0.129/25 dev br1");
    assert_eq!(trouble("bridge=br0", "subnets"), None);
}

fn return_path() {
    for (link, net) in [("up0", "10.1.0"), ("up1", "10.2.0")] {
        sh(&format!("ip link add {link} type veth peer name {link}-end"));
        sh(&format!("ip link set {link}-end up"));
        sh(&format!("ip link set {link} up"));
        sh(&format!("ip address add {net}.2/24 dev {link}"));
        sh(&format!("ip route add default via {net}.1 dev {link} metric {}", &net[3..4]));
        sh(&format!("sysctl -q -w net.ipv4.conf.{link}.rp_filter=0"));
    }
    sh("sysctl -q -w net.ipv4.conf.all.rp_filter=0");
    assert_eq!(trouble("nat", "rp-filter"), None);

    sh("sysctl -q -w net.ipv4.conf.up1.rp_filter=1");

    let what = "up1 is one of 2 ways out, and accepts only packets whose answers leave by it (rp_filter=1)";
    fixed("nat", "rp-filter", "warning", what);
}

fn not_allowed() {
    bridge("br0");

    let (code, text, errors) = said(&mut unprivileged(&["doctor", "--net", "bridge=br0"]));

    assert_eq!((code, errors.as_str()), (71, ""));
    assert!(text.contains("\nPROBLEM  privileges: This process lacks CAP_NET_ADMIN\n"), "{text}");
    assert!(text.contains("\nwarning  firewall: Cannot read the nftables of this host\n"), "{text}");
}

fn touches_nothing() {
    bridge("br0");
    sh("ip tuntap add tap0 mode tap");
    let before = snapshot();

    findings(&["bridge=br0", "tap=tap0", "nat"]);
    findings(&[]);

    assert_eq!(snapshot(), before);
}

fn exit_code() {
    bridge("br0");
    for card in ["bridge=br0", "bridge=br9"] {
        let (code, text, _) = said(&mut minivmm(&["doctor", "--json", "--net", card]));

        let report: Value = serde_json::from_str(&text).unwrap();
        let problem = report["findings"].as_array().unwrap().iter().any(|finding| finding["level"] == "problem");
        assert_eq!(report["works"], json!(!problem));
        assert_eq!(code, if problem { 71 } else { 0 });
    }
}
