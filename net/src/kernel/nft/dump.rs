//! State read from the kernel: counters of our tables, names of tables, and base chains of other programs.

use super::error::NftError;
use super::kernel::msg::*;
use super::kernel::*;
use super::socket::NftSocket;
use super::table::{Policy, TableName};
use crate::kernel::netlink::{Attrs, Writer};

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets.
    pub packets: u64,
    /// Bytes, with the IP header but without the Ethernet header.
    pub bytes: u64,
}

/// The counter of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleCounter {
    /// The chain that the rule is in.
    pub chain: String,
    /// The rule's comment.
    pub comment: Option<String>,
    /// The counts.
    pub counts: Counts,
}

/// A named counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedCounter {
    /// Its name in the table.
    pub name: String,
    /// The counts.
    pub counts: Counts,
}

/// An existing table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSeen {
    /// Its family: `inet`, `ip`, `ip6`, `arp`, `bridge`, `netdev`.
    pub family: &'static str,
    /// Its name.
    pub name: String,
    /// The netlink port of its owner, if it has one.
    pub owner: Option<u32>,
}

/// An existing base chain, whichever program made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChainSeen {
    /// The table's family.
    pub family: &'static str,
    /// The table's name.
    pub table: String,
    /// The chain's name.
    pub chain: String,
    /// The hook on the packet path: `forward`, `input`, ...
    pub hook: &'static str,
    /// Its order among the chains of the hook.
    pub priority: i32,
    /// The verdict for packets about which no rule has decided.
    pub policy: Policy,
    /// The verdict of the last rule, if it holds for every packet.
    pub ending: Ending,
}

/// The verdict of a chain's last rule, if that rule has no condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// No verdict, or not for every packet: the policy holds.
    Policy,
    /// It drops.
    Drop,
    /// It rejects.
    Reject,
    /// It accepts.
    Accept,
}

/// A rule of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleInChain {
    /// The kernel's number of the rule.
    pub handle: u64,
    /// Its comment.
    pub comment: Option<String>,
    /// True if the rule returns from the chain without a condition.
    pub returns: bool,
}

/// Shortest value, in bytes, that is taken for the prefix of an interface name: `mvn-`.
const SHORTEST_PREFIX: usize = 4;

impl NftSocket {
    /// The counters of a table's rules, in the order of the rules.
    ///
    /// # Errors
    /// The exchange with the kernel fails. A table that does not exist has no rules.
    pub fn rule_counters(&mut self, table: &TableName) -> Result<Vec<RuleCounter>, NftError> {
        let name = |w: &mut Writer| w.text(NFTA_RULE_TABLE, &table.name);
        self.dump(NFT_MSG_GETRULE, table.family.number(), name, |_, rule| {
            // Kernels before 5.2 list the rules of all tables.
            (rule.text(NFTA_RULE_TABLE)? == table.name).then_some(())?;
            let counter = exprs(rule).find(|(name, _)| *name == "counter").map(|(_, data)| counts(data))?;
            let comment = rule.find(NFTA_RULE_USERDATA).and_then(comment);
            Some(RuleCounter { chain: rule.text(NFTA_RULE_CHAIN)?.to_owned(), comment, counts: counter })
        })
    }

    /// The named counters of a table.
    ///
    /// # Errors
    /// The exchange with the kernel fails. A table that does not exist has no counters.
    pub fn named_counters(&mut self, table: &TableName) -> Result<Vec<NamedCounter>, NftError> {
        let filter = |w: &mut Writer| {
            w.text(NFTA_OBJ_TABLE, &table.name);
            w.be32(NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER);
        };
        self.dump(NFT_MSG_GETOBJ, table.family.number(), filter, |_, object| {
            let ours = object.text(NFTA_OBJ_TABLE)? == table.name;
            (ours && object.be32(NFTA_OBJ_TYPE)? == NFT_OBJECT_COUNTER).then_some(())?;
            let name = object.text(NFTA_OBJ_NAME)?.to_owned();
            Some(NamedCounter { name, counts: counts(object.list(NFTA_OBJ_DATA)) })
        })
    }

    /// The tables of the namespace whose names begin with `prefix`, of all families.
    ///
    /// # Errors
    /// The exchange with the kernel fails.
    pub fn tables(&mut self, prefix: &str) -> Result<Vec<TableSeen>, NftError> {
        self.dump(
            NFT_MSG_GETTABLE,
            0,
            |_| {},
            |family, table| {
                let name = table.text(NFTA_TABLE_NAME).filter(|name| name.starts_with(prefix))?.to_owned();
                Some(TableSeen { family: family_name(family), name, owner: table.be32(NFTA_TABLE_OWNER) })
            },
        )
    }

    /// The rules of a chain in their order, whichever program made them; none if the chain does not exist.
    ///
    /// # Errors
    /// The exchange with the kernel fails.
    pub fn rules_of(&mut self, table: &TableName, chain: &str) -> Result<Vec<RuleInChain>, NftError> {
        let place = |w: &mut Writer| {
            w.text(NFTA_RULE_TABLE, &table.name);
            w.text(NFTA_RULE_CHAIN, chain);
        };
        self.dump(NFT_MSG_GETRULE, table.family.number(), place, |_, rule| {
            let here = rule.text(NFTA_RULE_TABLE)? == table.name && rule.text(NFTA_RULE_CHAIN)? == chain;
            let handle = rule.be64(NFTA_RULE_HANDLE).filter(|_| here)?;
            let comment = rule.find(NFTA_RULE_USERDATA).and_then(comment);
            Some(RuleInChain { handle, comment, returns: verdict(rule) == Some(NFT_RETURN) })
        })
    }

    /// The policy of an existing chain; accept for one without a hook.
    ///
    /// # Errors
    /// The exchange with the kernel fails.
    pub fn policy_of(&mut self, table: &TableName, chain: &str) -> Result<Option<Policy>, NftError> {
        let place = |w: &mut Writer| {
            w.text(NFTA_CHAIN_TABLE, &table.name);
            w.text(NFTA_CHAIN_NAME, chain);
        };
        self.get(NFT_MSG_GETCHAIN, table.family.number(), place, |chain| Some(policy(chain)))
    }

    /// All base chains of the namespace except those in tables whose names begin with `but`. They include the rules of
    /// iptables-nft, but not those of iptables-legacy.
    ///
    /// # Errors
    /// The exchange with the kernel fails.
    pub fn base_chains(&mut self, but: &str) -> Result<Vec<BaseChainSeen>, NftError> {
        let mut chains = self.dump(
            NFT_MSG_GETCHAIN,
            0,
            |_| {},
            |family, chain| {
                let table = chain.text(NFTA_CHAIN_TABLE).filter(|table| !table.starts_with(but))?.to_owned();
                let name = chain.text(NFTA_CHAIN_NAME)?.to_owned();
                let hook = Attrs::from(chain.find(NFTA_CHAIN_HOOK)?);
                let seen = BaseChainSeen {
                    family: family_name(family),
                    table,
                    chain: name,
                    hook: hook_name(family, hook.be32(NFTA_HOOK_HOOKNUM)?),
                    priority: hook.be32(NFTA_HOOK_PRIORITY)?.cast_signed(),
                    policy: policy(chain),
                    ending: Ending::Policy,
                };
                Some((family, seen))
            },
        )?;
        // Chain by chain: a container host has thousands of rules in other chains.
        for (family, seen) in &mut chains {
            let last = self.in_rules_of(*family, &seen.table, Some(&seen.chain), ending)?.pop();
            seen.ending = last.unwrap_or(Ending::Policy);
        }
        Ok(chains.into_iter().map(|(_, seen)| seen).collect())
    }

    /// True if a rule in the table of `chain` names the interface `link`, or a prefix of its name, and does not drop
    /// its packets. The rule need not be in this chain.
    ///
    /// # Errors
    /// The exchange with the kernel fails.
    pub fn accepts_for(&mut self, chain: &BaseChainSeen, link: &str) -> Result<bool, NftError> {
        let family = family_number(chain.family);
        let names = self.in_rules_of(family, &chain.table, None, |rule| names(rule, link) && !drops(rule))?;
        Ok(names.contains(&true))
    }

    /// The results of `each` for the rules of a table, or of a chain of it, in their order.
    fn in_rules_of<T>(
        &mut self,
        family: u8,
        table: &str,
        chain: Option<&str>,
        each: impl Fn(Attrs<'_>) -> T,
    ) -> Result<Vec<T>, NftError> {
        let place = |w: &mut Writer| {
            w.text(NFTA_RULE_TABLE, table);
            if let Some(chain) = chain {
                w.text(NFTA_RULE_CHAIN, chain);
            }
        };
        // Kernels before 5.2 list the rules of all tables.
        let here = |rule: Attrs<'_>| {
            let in_chain = chain.is_none_or(|chain| rule.text(NFTA_RULE_CHAIN) == Some(chain));
            in_chain && rule.text(NFTA_RULE_TABLE) == Some(table)
        };
        self.dump(NFT_MSG_GETRULE, family, place, |_, rule| here(rule).then(|| each(rule)))
    }
}

impl BaseChainSeen {
    /// True if the chain drops packets that none of its rules accepts.
    pub fn drops(&self) -> bool {
        match self.ending {
            Ending::Drop | Ending::Reject => true,
            Ending::Accept => false,
            Ending::Policy => self.policy == Policy::Drop,
        }
    }
}

/// True if a rule compares a value with the name of a link, or with a prefix of it.
fn names(rule: Attrs<'_>, link: &str) -> bool {
    let compared = exprs(rule).filter(|(name, _)| *name == "cmp");
    let values = compared.filter_map(|(_, data)| data.list(NFTA_CMP_DATA).find(NFTA_DATA_VALUE));
    let is_name = |value: &[u8]| match value.iter().position(|byte| *byte == 0) {
        Some(len) => value.get(..len) == Some(link.as_bytes()),
        // Shorter values could be numbers.
        None => value.len() >= SHORTEST_PREFIX && link.as_bytes().starts_with(value),
    };
    values.into_iter().any(is_name)
}

/// True if a rule drops or rejects.
fn drops(rule: Attrs<'_>) -> bool {
    exprs(rule).any(|(name, data)| match name {
        "reject" => true,
        "target" => matches!(data.text(NFTA_TARGET_NAME), Some("REJECT" | "DROP")),
        "immediate" => {
            let verdict = data.list(NFTA_IMMEDIATE_DATA).list(NFTA_DATA_VERDICT);
            verdict.be32(NFTA_VERDICT_CODE).map(u32::cast_signed) == Some(NF_DROP)
        }
        _ => false,
    })
}

/// The expressions of a rule: name and data.
pub(super) fn exprs<'a>(rule: Attrs<'a>) -> impl Iterator<Item = (&'a str, Attrs<'a>)> {
    let list = rule.list(NFTA_RULE_EXPRESSIONS).into_iter().map(|(_, expr)| Attrs::from(expr));
    list.filter_map(|expr| Some((expr.text(NFTA_EXPR_NAME)?, expr.list(NFTA_EXPR_DATA))))
}

fn counts(data: Attrs<'_>) -> Counts {
    let number = |attr| data.be64(attr).unwrap_or_default();
    Counts { packets: number(NFTA_COUNTER_PACKETS), bytes: number(NFTA_COUNTER_BYTES) }
}

/// The comment in a rule's userdata: records of type, length and value.
pub(super) fn comment(mut userdata: &[u8]) -> Option<String> {
    loop {
        let ([kind, len], rest) = userdata.split_first_chunk()?;
        let (value, rest) = rest.split_at_checked(usize::from(*len))?;
        if *kind == NFTNL_UDATA_RULE_COMMENT {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        userdata = rest;
    }
}

fn policy(chain: Attrs<'_>) -> Policy {
    let drops = chain.be32(NFTA_CHAIN_POLICY) == Some(NF_DROP.cast_unsigned());
    if drops { Policy::Drop } else { Policy::Accept }
}

/// The verdict of a rule that has no condition.
fn verdict(rule: Attrs<'_>) -> Option<i32> {
    match unconditional(rule) {
        Some(("immediate", data)) => {
            let verdict = data.list(NFTA_IMMEDIATE_DATA).list(NFTA_DATA_VERDICT);
            verdict.be32(NFTA_VERDICT_CODE).map(u32::cast_signed)
        }
        _ => None,
    }
}

/// A rule's first expression other than counters and logs: a verdict only if the rule has no condition.
fn unconditional(rule: Attrs<'_>) -> Option<(&str, Attrs<'_>)> {
    exprs(rule).find(|(name, _)| !matches!(*name, "counter" | "objref" | "log"))
}

/// The verdict of a rule for every packet.
fn ending(rule: Attrs<'_>) -> Ending {
    match (unconditional(rule), verdict(rule)) {
        (Some(("reject", _)), _) => Ending::Reject,
        (Some(("target", data)), _) => match data.text(NFTA_TARGET_NAME) {
            Some("REJECT") => Ending::Reject,
            Some("DROP") => Ending::Drop,
            _ => Ending::Policy,
        },
        (_, Some(NF_DROP)) => Ending::Drop,
        (_, Some(NF_ACCEPT)) => Ending::Accept,
        _ => Ending::Policy,
    }
}

/// `NFPROTO_*` and nft's names for them.
const FAMILIES: [(u8, &str); 6] = [(1, "inet"), (2, "ip"), (3, "arp"), (5, "netdev"), (7, "bridge"), (10, "ip6")];

pub(super) fn family_name(number: u8) -> &'static str {
    FAMILIES.into_iter().find(|(found, _)| *found == number).map_or("unknown", |(_, name)| name)
}

fn family_number(name: &str) -> u8 {
    FAMILIES.into_iter().find(|(_, found)| *found == name).map_or(0, |(number, _)| number)
}

/// The name of a family's hook in nft. ARP numbers its hooks differently.
fn hook_name(family: u8, number: u32) -> &'static str {
    match (family_name(family), number) {
        ("netdev", 0) | (_, 5) => "ingress",
        ("netdev", 1) => "egress",
        ("arp", 0) => "input",
        ("arp", 1) => "output",
        (_, 1) => "input",
        (_, 3) => "output",
        (_, 0) => "prerouting",
        (_, 2) => "forward",
        (_, 4) => "postrouting",
        _ => "unknown",
    }
}
