use super::rules::{EnforcedCard, Generation, replacement, table};
use super::*;
use crate::error::Error;
use crate::kernel::nft::{Command, NftError};
use crate::kernel::tun::TapKind;

fn read(text: &str) -> Result<Policy, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn enforced() -> EnforcedCard {
    EnforcedCard { card: 0, tap: "vmtap0".parse().unwrap(), kind: TapKind::Tap, served: true }
}

/// The rules of chain `name` for the policy `text`.
fn chain(text: &str, name: &str) -> Vec<String> {
    let table = table(Generation { vm: "web", number: 0 }, &enforced(), &read(text).unwrap());
    let chain = table.chains.iter().find(|chain| chain.name == name).unwrap();
    chain.rules.iter().map(ToString::to_string).collect()
}

#[test]
fn empty_policy_lets_out_and_not_in() {
    let policy = read("{}").unwrap();
    assert_eq!(policy, Policy::default());
    assert_eq!((policy.defaults.ingress, policy.defaults.egress), (Action::Drop, Action::Accept));
}

#[test]
fn rule_has_single_values_and_lists() {
    let one = read(r#"{"ingress": [{"protocol": "tcp", "ports": 22, "source": "192.0.2.0/24"}]}"#).unwrap();
    let list = read(r#"{"ingress": [{"protocol": "tcp", "ports": [22], "source": ["192.0.2.0/24"]}]}"#).unwrap();
    assert_eq!(one, list);
    let ranges =
        read(r#"{"egress": [{"protocol": "udp", "ports": ["53", "6000-6010", 7], "action": "drop"}]}"#).unwrap();
    assert_eq!(serde_json::to_value(&ranges.egress[0].ports).unwrap(), serde_json::json!([53, "6000-6010", 7]));
}

#[test]
fn policy_reads_back() {
    let text = r#"{"default": {"egress": "drop"}, "ingress": [{"protocol": "icmp", "cards": [1]}],
        "egress": [{"protocol": "tcp", "ports": ["80-90", 443], "destination": ["2001:db8::/32", "192.0.2.1"], "action": "drop"}]}"#;
    let policy = read(text).unwrap();
    assert_eq!(read(&serde_json::to_string(&policy).unwrap()), Ok(policy));
}

#[test]
fn mistakes_are_named() {
    for (text, part) in [
        (r#"{"ingres": []}"#, "unknown field `ingres`, expected one of `default`, `ingress`, `egress`"),
        (r#"{"ingress": [{"port": 80}]}"#, "unknown field `port`, expected one of `protocol`, `ports`"),
        (
            r#"{"ingress": [{"protocol": "sctp"}]}"#,
            "unknown variant `sctp`, expected one of `tcp`, `udp`, `icmp`, `any`",
        ),
        (r#"{"ingress": [{"action": "reject"}]}"#, "unknown variant `reject`, expected `accept` or `drop`"),
        (r#"{"ingress": [{"ports": 80}]}"#, "Rule 1 of ingress has ports"),
        (r#"{"egress": [{}, {"protocol": "icmp", "ports": 80}]}"#, "Rule 2 of egress has ports"),
        (r#"{"ingress": [{"protocol": "tcp", "ports": 0}]}"#, "\"0\" is not a port"),
        (r#"{"ingress": [{"protocol": "tcp", "ports": 65536}]}"#, "\"65536\" is not a port"),
        (r#"{"ingress": [{"protocol": "tcp", "ports": -1}]}"#, "\"-1\" is not a port"),
        (r#"{"ingress": [{"protocol": "tcp", "ports": "90-80"}]}"#, "\"90-80\" is not a port"),
        (r#"{"ingress": [{"protocol": "tcp", "ports": []}]}"#, "The list is empty"),
        (r#"{"ingress": [{"protocol": "tcp", "ports": [true]}]}"#, "a number or a text"),
        (r#"{"ingress": [{"source": "192.0.2.1/24"}]}"#, "write 192.0.2.0/24"),
        (r#"{"ingress": [{"source": "2001:db8::1/64"}]}"#, "write 2001:db8::/64"),
        (r#"{"ingress": [{"source": "192.0.2.0/33"}]}"#, "is not an address or a prefix"),
        (r#"{"ingress": [{"source": "192.0.2.0/+8"}]}"#, "is not an address or a prefix"),
        (r#"{"ingress": [{"source": "web"}]}"#, "is not an address or a prefix"),
        (
            r#"{"ingress": [{"source": "192.0.2.1", "destination": "2001:db8::1"}]}"#,
            "Rule 1 of ingress has IPv4 on one side",
        ),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn policy_has_at_most_a_thousand_rules() {
    let text = |count| format!(r#"{{"ingress": [{}]}}"#, vec!["{}"; count].join(","));
    assert!(read(&text(RULES_MAX)).is_ok());
    assert!(read(&text(RULES_MAX + 1)).unwrap_err().contains("It has 1001 rules"));
}

#[test]
fn rule_for_a_card_that_is_not_there_is_refused() {
    let policy = read(r#"{"egress": [{"cards": [0, 2]}]}"#).unwrap();
    assert_eq!(policy.check_cards(2), Err(Refusal::PolicyCard { card: 2, count: 2 }));
    assert_eq!(policy.check_cards(3), Ok(()));
}

#[test]
fn rules_are_tried_after_what_is_known_and_before_the_default() {
    let text = r#"{"ingress": [
        {"protocol": "tcp", "ports": [22, "80-89"], "source": ["192.0.2.0/24", "2001:db8::/32"]},
        {"protocol": "icmp", "action": "drop"},
        {"protocol": "udp"},
        {"destination": "192.0.2.9", "cards": [0]},
        {"protocol": "tcp", "cards": [1]}
    ]}"#;
    assert_eq!(
        chain(text, "filter-to"),
        [
            "jump established-to",
            "icmpv6 type { nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-query } accept",
            "meta protocol ip ip saddr 192.0.2.0/24 tcp dport { 22, 80-89 } goto new-to",
            "meta protocol ip6 ip6 saddr 2001:db8::/32 tcp dport { 22, 80-89 } goto new-to",
            "meta protocol ip meta l4proto icmp counter name \"policy-ingress\" drop",
            "meta protocol ip6 meta l4proto ipv6-icmp counter name \"policy-ingress\" drop",
            "meta l4proto udp goto new-to",
            "meta protocol ip ip daddr 192.0.2.9/32 goto new-to",
            "counter name \"policy-ingress\" drop",
        ]
    );
    // Nothing there can be dropped, so no set is looked up.
    assert_eq!(chain(text, "filter-from"), ["goto new-from"]);
}

#[test]
fn connection_has_the_same_key_in_both_directions() {
    let first = |name| chain("{}", name).into_iter().find(|rule| rule.contains("tcp flags")).unwrap();
    assert_eq!(
        first("new-from"),
        "meta protocol ip meta l4proto tcp tcp flags ! fin,syn,rst update @connections4-0 { meta l4proto . ip saddr . ip daddr . \
         tcp sport . tcp dport timeout 2h11m } goto accept-from"
    );
    assert!(first("established-to").contains(
        "meta l4proto . ip daddr . ip saddr . tcp dport . tcp sport @connections4-0 update @connections4-0 { meta l4proto . ip daddr"
    ));
}

#[test]
fn services_pass_and_who_has_none_may_ask_for_an_address() {
    let chains = |served| {
        let enforced = EnforcedCard { served, ..enforced() };
        let text = table(Generation { vm: "web", number: 0 }, &enforced, &Policy::default()).to_string();
        (text.contains("meta mark 0x6d766d73 accept"), text.contains("udp sport 67 udp dport 68 accept"))
    };
    assert_eq!((chains(true), chains(false)), ((true, false), (false, true)));
}

#[test]
fn another_policy_comes_with_sets_of_its_own_and_leaves_base_chains_alone() {
    let commands = replacement(Generation { vm: "web", number: 7 }, &enforced(), &Policy::default());
    let text: Vec<String> = commands.iter().map(ToString::to_string).collect();
    assert!(text[0].starts_with("table netdev minivmm-web/policy0 {\n\tset connections4-7 {"), "{}", text[0]);
    assert_eq!(text.last().unwrap(), "delete set netdev minivmm-web/policy0 fragments6-6");
    let replaced: Vec<&str> = commands
        .iter()
        .filter_map(
            |command| if let Command::ReplaceRules(_, chain, _) = command { Some(chain.as_str()) } else { None },
        )
        .collect();
    let parts = |side: &str| ["filter", "established", "new", "accept"].map(|part| format!("{part}-{side}"));
    assert_eq!(replaced, [parts("from"), parts("to")].concat());
    assert!(!text.concat().contains("connections4-6 {"));
}

#[test]
fn policy_on_a_kernel_before_5_16_is_refused_with_what_it_takes() {
    let refused = |object: &str, errno| {
        let source = std::io::Error::from_raw_os_error(errno);
        Error::Policy(NftError::Refused { object: object.to_owned(), source }).report()
    };
    // Without the egress hook, and, before 5.12, without table owners.
    for (object, errno) in [
        ("chain card0-to-guest of table netdev minivmm-web/policy0", libc::EOPNOTSUPP),
        ("table netdev minivmm-web/policy0", libc::EINVAL),
    ] {
        let report = refused(object, errno);
        assert!(
            report.message.starts_with(&format!("Cannot enforce the policy: The kernel refuses {object}: ")),
            "{report:?}"
        );
        let hint = "it takes Linux 5.16 with CONFIG_NETFILTER_EGRESS; a policy is enforced as a whole or not at all";
        assert_eq!(report.hint.as_deref(), Some(hint));
    }
    let report = refused("table netdev minivmm-web/policy0", libc::EPERM);
    assert!(report.hint.is_some_and(|hint| hint.contains("CAP_NET_ADMIN")));
}
