//! The ownership of tables, the text of refusals, and tables read back.

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use net::nft::{
    Batch, ChainType, Command as Change, Ending, Family, Hook, IpFields, Match, NftError, NftSocket, Policy, Rule,
    Statement, Table, TableName, Test, Verdict,
};

use super::{applied, base, inet, table};
use crate::Case;
use crate::lan::{sh, until};
use crate::vmm::itself;

pub(super) const CASES: &[Case] = &[
    ("nft_table_is_nobody_elses_to_change", nobody_elses),
    ("nft_table_is_gone_with_its_socket", gone_with_the_socket),
    ("nft_table_is_gone_after_a_sigkill", gone_after_a_sigkill),
    ("nft_refusal_names_the_rule_and_changes_nothing", refused_rule),
    ("nft_refusal_names_the_table_that_is_there", refused_table),
    ("nft_refusal_names_a_device_that_is_not_there", refused_device),
    ("nft_batch_of_a_thousand_rules_is_one_transaction", large),
    ("nft_tables_are_found_by_their_prefix", prefix),
    ("nft_base_chains_of_others_are_seen_with_their_endings", others),
];

fn simple(name: &str) -> Table {
    let drop = Rule::new().with(Statement::Counter).with(Verdict::Drop).comment("why");
    table(inet(name), vec![base("in", ChainType::Filter, Hook::Input, 0, vec![drop])])
}

/// The error of a failing `nft` command.
fn nft_fails(line: &str) -> String {
    let output = Command::new("nft").args(line.split(' ')).output().unwrap();
    assert!(!output.status.success(), "{line} succeeded");
    String::from_utf8(output.stderr).unwrap()
}

fn nobody_elses() {
    let _socket = applied(&simple("minivmm-a"));
    for line in [
        "add rule inet minivmm-a in accept",
        "flush table inet minivmm-a",
        "delete table inet minivmm-a",
        "add chain inet minivmm-a other",
    ] {
        assert!(nft_fails(line).contains("Operation not permitted"), "{line}");
    }
    // A flush of all other tables leaves it alone.
    sh("nft flush ruleset");
    assert_eq!(NftSocket::open().unwrap().tables("minivmm-").unwrap().len(), 1);
}

fn gone_with_the_socket() {
    let socket = applied(&simple("minivmm-a"));
    assert!(sh("nft list tables").contains("minivmm-a"));
    drop(socket);
    assert_eq!(sh("nft list tables"), "");
}

fn gone_after_a_sigkill() {
    let mut owner = itself(&["nft-owner"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(owner.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(sh("nft list tables").contains("minivmm-owned"));
    owner.kill().unwrap();
    owner.wait().unwrap();
    until(|| sh("nft list tables").is_empty());
}

/// The role of a process that owns a table until it is killed.
pub(crate) fn own() {
    let _socket = applied(&simple("minivmm-owned"));
    println!("ready");
    loop {
        std::thread::park();
    }
}

/// The refused object, and the kernel's error.
fn refusal(error: NftError) -> (String, i32) {
    let NftError::Refused { object, source } = error else { panic!("{error}: {:?}", error.source()) };
    (object, source.raw_os_error().unwrap())
}

fn refused_rule() {
    let mut socket = NftSocket::open().unwrap();
    let good = Rule::new().with(Match::Ip4(IpFields::Saddr(Test::any([Ipv4Addr::LOCALHOST])))).with(Verdict::Accept);
    let bad = Rule::new().with(Match::TcpDport(Test::is(22))).with(Verdict::Jump("nowhere".to_owned()));
    let rules = vec![good.clone(), bad, good];
    let batch = Batch::from(table(inet("x"), vec![base("in", ChainType::Filter, Hook::Input, 0, rules)]));
    let (object, errno) = refusal(socket.apply(&batch).unwrap_err());
    assert_eq!(object, "rule 'tcp dport 22 jump nowhere' of chain in of table inet x");
    assert_eq!(errno, libc::ENOENT);
    assert_eq!(sh("nft list ruleset"), "");
}

fn refused_table() {
    let _first = applied(&simple("minivmm-a"));
    let mut second = NftSocket::open().unwrap();
    let (object, errno) = refusal(second.apply(&Batch::from(simple("minivmm-a"))).unwrap_err());
    assert_eq!(object, "table inet minivmm-a");
    assert!(matches!(errno, libc::EEXIST | libc::EPERM), "{errno}");
    let flush = Batch::new().with(Change::ReplaceRules(inet("minivmm-a"), "in".to_owned(), Vec::new()));
    assert_eq!(refusal(second.apply(&flush).unwrap_err()).1, libc::EPERM);
}

fn refused_device() {
    let mut socket = NftSocket::open().unwrap();
    let mirror = Rule::new().with(Statement::Dup("tap7".parse().unwrap()));
    let chain = base("in", ChainType::Filter, Hook::Ingress("lo".parse().unwrap()), 0, vec![mirror]);
    let name = TableName { family: Family::Netdev, name: "x".to_owned() };
    let error = socket.apply(&Batch::from(table(name, vec![chain]))).unwrap_err();
    assert_eq!(error.to_string(), "Cannot encode rule 'dup to \"tap7\"' of chain in of table netdev x");
    assert_eq!(error.source().unwrap().to_string(), "Cannot find interface tap7");
}

fn large() {
    const RULES: u16 = 1000;
    let ports = |port| Test::any([port, port + RULES]);
    let rule = |port| Rule::new().with(Match::TcpDport(ports(port))).with(Statement::Counter).with(Verdict::Drop);
    let mut rules: Vec<Rule> = (1..=RULES).map(rule).collect();
    let batch = |rules| Batch::from(table(inet("x"), vec![base("in", ChainType::Filter, Hook::Input, 0, rules)]));
    let mut socket = NftSocket::open().unwrap();
    rules.push(Rule::new().with(Verdict::Goto("nowhere".to_owned())));
    let (object, _) = refusal(socket.apply(&batch(rules.clone())).unwrap_err());
    assert_eq!(object, "rule 'goto nowhere' of chain in of table inet x");
    rules.pop();
    socket.apply(&batch(rules)).unwrap();
    assert_eq!(socket.rule_counters(&inet("x")).unwrap().len(), usize::from(RULES));
}

fn prefix() {
    sh("nft add table ip minivmm-stranger");
    sh("nft add table inet other");
    let mut socket = applied(&simple("minivmm-a"));
    let tables = socket.tables("minivmm-").unwrap();
    let seen: Vec<_> = tables.iter().map(|table| (table.family, table.name.as_str(), table.owner.is_some())).collect();
    assert_eq!(seen, [("ip", "minivmm-stranger", false), ("inet", "minivmm-a", true)]);
}

fn others() {
    sh("nft add table inet docker");
    for (chain, hook) in
        [("a", "forward priority 0; policy drop;"), ("b", "input priority -5;"), ("c", "output priority 7;")]
    {
        sh(&format!("nft add chain inet docker {chain} {{ type filter hook {hook} }}"));
    }
    sh("nft add chain inet docker regular");
    sh("nft add rule inet docker a tcp dport 22 drop");
    sh("nft add rule inet docker b tcp dport 22 accept");
    sh("nft add rule inet docker b counter drop");
    sh("nft add rule inet docker c reject with icmpx admin-prohibited");
    let mut socket = applied(&simple("minivmm-a"));
    let seen = socket.base_chains("minivmm-").unwrap();
    let seen: Vec<_> = seen
        .iter()
        .map(|c| (c.family, c.table.as_str(), c.chain.as_str(), c.hook, c.priority, c.policy, c.ending))
        .collect();
    let expected = [
        ("inet", "docker", "a", "forward", 0, Policy::Drop, Ending::Policy),
        ("inet", "docker", "b", "input", -5, Policy::Accept, Ending::Drop),
        ("inet", "docker", "c", "output", 7, Policy::Accept, Ending::Reject),
    ];
    assert_eq!(seen, expected);
}
