//! Ports of the host that other programs translate: by nftables and by its predecessor, as far as either can be seen.

use std::fs;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::process::Command;

use crate::kernel::nft::{NftSocket, Translation};

/// The beginning of the names of minivmm's tables. The ports of other VMs are held by sockets.
const OURS: &str = "minivmm-";

/// The tables of the predecessor of nf_tables that are in use.
const LEGACY_TABLES: &str = "/proc/self/net/ip_tables_names";
/// The program that shows them.
const LEGACY: &str = "iptables-legacy";

/// Reads the translations; none for a user who may not look.
pub(crate) fn survey() -> Vec<Translation> {
    let nftables = NftSocket::open().and_then(|mut socket| socket.translations(OURS));
    let nftables = nftables.inspect_err(|error| log::debug!("Cannot look for translated ports: {error}"));
    nftables.unwrap_or_default().into_iter().chain(legacy()).collect()
}

/// Translations of the predecessor, which only its own program can read. It runs only where the kernel has such a
/// table.
fn legacy() -> Vec<Translation> {
    let in_use = fs::read_to_string(LEGACY_TABLES).is_ok_and(|names| names.lines().any(|name| name == "nat"));
    let output = in_use.then(|| Command::new(LEGACY).args(["-t", "nat", "-S"]).output().ok()).flatten();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().filter_map(rule).collect()
}

/// The translation in a line of `iptables-legacy -t nat -S`, if there is one.
fn rule(line: &str) -> Option<Translation> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    // A word after a flag, unless that is negated.
    let value = |flag: &str| {
        let at = words.iter().position(|word| *word == flag)?;
        let negated = at > 0 && words.get(at - 1) == Some(&"!");
        words.get(at + 1).copied().filter(|_| !negated)
    };
    let chain = value("-A")?.to_owned();
    matches!(value("-j"), Some("DNAT" | "REDIRECT")).then_some(())?;
    let protocol = value("-p").and_then(|name| match name {
        "tcp" => Some(6),
        "udp" => Some(17),
        _ => None,
    });
    let ports: Vec<_> = value("--dport").or_else(|| value("--dports"))?.split(',').filter_map(range).collect();
    let address = value("-d").and_then(|prefix| {
        let (ip, bits) = prefix.split_once('/').unwrap_or((prefix, "32"));
        Some((ip.parse::<Ipv4Addr>().ok()?, bits.parse().ok()?))
    });
    let table = format!("nat of {LEGACY}");
    (!ports.is_empty()).then(|| Translation { table, chain, rule: line.to_owned(), protocol, ports, address })
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_iptables_legacy_that_translate_ports_are_read() {
        let docker = "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80";
        let found = rule(docker).unwrap();
        assert_eq!((found.chain.as_str(), found.protocol, found.ports), ("DOCKER", Some(6), vec![8080..=8080]));
        assert_eq!((found.table.as_str(), found.rule.as_str()), ("nat of iptables-legacy", docker));
        let many = "-A PREROUTING -d 127.0.0.0/8 -p udp -m multiport --dports 53,5300:5310 -j REDIRECT --to-ports 53";
        let found = rule(many).unwrap();
        assert_eq!((found.protocol, found.ports), (Some(17), vec![53..=53, 5300..=5310]));
        assert_eq!(found.address, Some(([127, 0, 0, 0].into(), 8)));
    }

    #[test]
    fn other_rules_are_not() {
        for line in [
            "-P PREROUTING ACCEPT",
            "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
            "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
            "-A PREROUTING -p tcp -m tcp ! --dport 8080 -j DNAT --to-destination 172.17.0.2:80",
        ] {
            assert_eq!(rule(line), None, "{line}");
        }
    }
}
