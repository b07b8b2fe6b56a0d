//! Tables and their contents, as plain data.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::kernel::*;
use super::matching::Match;
use super::statement::{Statement, Verdict};
use super::test::{Braces, Item, KeyKind, RawItem};
use super::value::{EtherAddr, L4Proto};
use crate::spec::IfName;

/// The packets that a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4 alone, as the tables of iptables.
    Ip,
    /// IPv6 alone.
    Ip6,
    /// All packets in or out through an interface.
    Netdev,
    /// All packets through a bridge.
    Bridge,
}

/// A table's name, unique within its family in a network namespace. Names begin with a letter, followed by letters,
/// digits, `/`, `\`, `_`, `.` and `-`; the kernel takes at most 255 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableName {
    /// The family: the packets that it sees.
    pub family: Family,
    /// The name within the family.
    pub name: String,
}

/// A table that belongs to the socket that creates it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: TableName,
    /// Named counters, for `counter name`.
    pub counters: Vec<String>,
    /// Named sets, for [`super::Test::InSet`].
    pub sets: Vec<Set>,
    /// Chains.
    pub chains: Vec<Chain>,
}

/// A list of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name in the table.
    pub name: String,
    /// The hook; without it, packets enter only by jumps.
    pub base: Option<Base>,
    /// The rules in their order.
    pub rules: Vec<Rule>,
}

/// The hook of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// The chain's type.
    pub chain_type: ChainType,
    /// The hook.
    pub hook: Hook,
    /// Chains of a hook run in the order of their priorities (`enum nf_ip_hook_priorities`).
    pub priority: i32,
    /// The verdict for packets about which no rule has decided.
    pub policy: Policy,
}

/// The type of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainType {
    /// Filter.
    Filter,
    /// Translate addresses: sees the first packet of each connection.
    Nat,
    /// Route a packet again after changing it. At the output hook only.
    Route,
}

/// A place on the packet path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// To this host.
    Input,
    /// Through this host.
    Forward,
    /// From this host.
    Output,
    /// After routing.
    Postrouting,
    /// In through this interface, before all others. In inet tables since Linux 5.10. Before Linux 6.16 the interface
    /// must exist; since then the chain waits for it.
    Ingress(IfName),
    /// Out through this interface, after all others. In netdev tables only, since Linux 5.16.
    Egress(IfName),
}

/// The verdict at the end of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The packet goes on.
    Accept,
    /// The packet is dropped.
    Drop,
}

/// Conditions, and statements for packets that meet all of them, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Conditions and statements.
    pub exprs: Vec<Expr>,
    /// A comment, shown by `nft list`.
    pub comment: Option<String>,
}

/// A part of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// A condition.
    Match(Match),
    /// An action, or a condition with state.
    Statement(Statement),
}

/// A named set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name in the table.
    pub name: String,
    /// Its elements.
    pub elements: Elements,
}

/// Elements of a set. Addresses and ports may be ranges and may overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elements {
    /// IPv4 addresses.
    Ip4(Vec<Item<Ipv4Addr>>),
    /// IPv6 addresses.
    Ip6(Vec<Item<Ipv6Addr>>),
    /// Ports.
    Ports(Vec<Item<u16>>),
    /// Ethernet addresses.
    Ether(Vec<EtherAddr>),
    /// Interfaces.
    Interfaces(Vec<IfName>),
    /// Elements that [`Statement::Update`] adds, each for a time.
    Timed {
        /// The parts of a key.
        key: Vec<KeyPart>,
        /// The maximum; beyond it, no element is added.
        most: u32,
    },
    /// Elements that [`Statement::CtShareOver`] adds.
    Shares {
        /// Their number.
        most: u32,
    },
}

/// A part of a key: the type of a [`super::Field`] in that place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyPart {
    /// An IP protocol.
    L4Proto,
    /// An IPv4 address.
    Ip4,
    /// An IPv6 address.
    Ip6,
    /// A port, or another 16-bit number.
    Port,
    /// A 32-bit number.
    Number,
}

impl KeyPart {
    fn kind(self) -> KeyKind {
        match self {
            Self::L4Proto => KeyKind::of::<L4Proto>(),
            Self::Ip4 => KeyKind::of::<Ipv4Addr>(),
            Self::Ip6 => KeyKind::of::<Ipv6Addr>(),
            Self::Port => KeyKind::of::<u16>(),
            // nft's type `mark`.
            Self::Number => KeyKind { number: 19, len: 4, host_order: false },
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::L4Proto => "inet_proto",
            Self::Ip4 => Elements::Ip4(Vec::new()).type_name(),
            Self::Ip6 => Elements::Ip6(Vec::new()).type_name(),
            Self::Port => Elements::Ports(Vec::new()).type_name(),
            Self::Number => "mark",
        }
    }
}

impl Rule {
    /// A rule that matches every packet and does nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The rule with another condition or statement appended.
    #[must_use]
    pub fn with(mut self, expr: impl Into<Expr>) -> Self {
        self.exprs.push(expr.into());
        self
    }

    /// The rule with this comment, in which `"` becomes `'`, and which is cut after [`COMMENT_MAX`] bytes.
    #[must_use]
    pub fn comment(mut self, text: &str) -> Self {
        let clean = text.chars().map(|c| if c == '"' { '\'' } else { c }).filter(|c| !c.is_control());
        let mut comment = String::new();
        for c in clean {
            if comment.len() + c.len_utf8() > COMMENT_MAX {
                break;
            }
            comment.push(c);
        }
        self.comment = Some(comment);
        self
    }
}

/// Most bytes of a rule's comment that `nft` takes.
pub const COMMENT_MAX: usize = 127;

impl From<Match> for Expr {
    fn from(condition: Match) -> Self {
        Self::Match(condition)
    }
}

impl From<Statement> for Expr {
    fn from(statement: Statement) -> Self {
        Self::Statement(statement)
    }
}

impl From<Verdict> for Expr {
    fn from(verdict: Verdict) -> Self {
        Self::Statement(Statement::Verdict(verdict))
    }
}

impl Family {
    /// `NFPROTO_*` of linux/netfilter.h.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Ip6 => 10,
            Self::Netdev => 5,
            Self::Bridge => 7,
        }
    }
}

impl Hook {
    /// `enum nf_inet_hooks`, `enum nf_dev_hooks`.
    pub(super) fn number(&self, family: Family) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
            Self::Ingress(_) if family == Family::Netdev => 0,
            Self::Ingress(_) => 5,
            Self::Egress(_) => 1,
        }
    }

    /// The interface it is bound to.
    pub(super) fn device(&self) -> Option<&IfName> {
        match self {
            Self::Ingress(device) | Self::Egress(device) => Some(device),
            _ => None,
        }
    }
}

impl Policy {
    /// The verdict.
    pub(super) fn number(self) -> i32 {
        match self {
            Self::Accept => NF_ACCEPT,
            Self::Drop => NF_DROP,
        }
    }
}

impl Elements {
    /// The kind of the keys.
    pub(super) fn key(&self) -> KeyKind {
        match self {
            Self::Ip4(_) => KeyKind::of::<Ipv4Addr>(),
            Self::Ip6(_) => KeyKind::of::<Ipv6Addr>(),
            Self::Ports(_) => KeyKind::of::<u16>(),
            Self::Ether(_) => KeyKind::of::<EtherAddr>(),
            Self::Interfaces(_) => KeyKind::of::<IfName>(),
            Self::Shares { .. } => KeyPart::Number.kind(),
            // Parts begin at registers, and nft has six bits for the type of each.
            Self::Timed { key, .. } => KeyKind {
                number: key.iter().fold(0, |number, part| number << 6 | part.kind().number),
                len: key.iter().map(|part| part.kind().len.next_multiple_of(NFT_REG32_SIZE)).sum(),
                host_order: false,
            },
        }
    }

    /// True if elements may be ranges.
    pub(super) fn has_intervals(&self) -> bool {
        matches!(self, Self::Ip4(_) | Self::Ip6(_) | Self::Ports(_))
    }

    /// The elements as bytes.
    pub(super) fn raw(&self) -> Vec<RawItem> {
        match self {
            Self::Ip4(items) => items.iter().map(Item::raw).collect(),
            Self::Ip6(items) => items.iter().map(Item::raw).collect(),
            Self::Ports(items) => items.iter().map(Item::raw).collect(),
            Self::Ether(addrs) => addrs.iter().map(|addr| Item::One(*addr).raw()).collect(),
            Self::Interfaces(names) => names.iter().map(|name| Item::One(name.clone()).raw()).collect(),
            Self::Timed { .. } | Self::Shares { .. } => Vec::new(),
        }
    }

    fn type_name(&self) -> &'static str {
        match self {
            Self::Ip4(_) => "ipv4_addr",
            Self::Ip6(_) => "ipv6_addr",
            Self::Ports(_) => "inet_service",
            Self::Ether(_) => "ether_addr",
            Self::Interfaces(_) | Self::Timed { .. } => "ifname",
            Self::Shares { .. } => KeyPart::Number.name(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Ip4(items) => items.is_empty(),
            Self::Ip6(items) => items.is_empty(),
            Self::Ports(items) => items.is_empty(),
            Self::Ether(addrs) => addrs.is_empty(),
            Self::Interfaces(names) => names.is_empty(),
            Self::Timed { .. } | Self::Shares { .. } => true,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Netdev => "netdev",
            Self::Bridge => "bridge",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        })
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {{\n\tflags owner", self.name)?;
        for counter in &self.counters {
            writeln!(f, "\n\tcounter {counter} {{\n\t}}")?;
        }
        for set in &self.sets {
            writeln!(f, "\n{set}")?;
        }
        for chain in &self.chains {
            writeln!(f, "\n{chain}")?;
        }
        f.write_str("}")
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tset {} {{", self.name)?;
        match &self.elements {
            Elements::Timed { key, most } => {
                let parts: Vec<&str> = key.iter().map(|part| part.name()).collect();
                writeln!(f, "\t\ttype {}\n\t\tsize {most}\n\t\tflags dynamic,timeout", parts.join(" . "))?;
            }
            Elements::Shares { most } => {
                writeln!(f, "\t\ttype {}\n\t\tsize {most}\n\t\tflags dynamic", self.elements.type_name())?;
            }
            elements => writeln!(f, "\t\ttype {}", elements.type_name())?,
        }
        if self.elements.has_intervals() {
            writeln!(f, "\t\tflags interval")?;
        }
        if !self.elements.is_empty() {
            writeln!(f, "\t\telements = {}", self.elements)?;
        }
        f.write_str("\t}")
    }
}

impl fmt::Display for Elements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip4(items) => Braces(items).fmt(f),
            Self::Ip6(items) => Braces(items).fmt(f),
            Self::Ports(items) => Braces(items).fmt(f),
            Self::Ether(addrs) => Braces(&addrs.iter().copied().map(Item::One).collect::<Vec<_>>()).fmt(f),
            Self::Interfaces(names) => Braces(&names.iter().cloned().map(Item::One).collect::<Vec<_>>()).fmt(f),
            Self::Timed { .. } | Self::Shares { .. } => Ok(()),
        }
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tchain {} {{", self.name)?;
        if let Some(base) = &self.base {
            writeln!(f, "\t\t{base}")?;
        }
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        f.write_str("\t}")
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { chain_type, hook, priority, policy } = self;
        write!(f, "type {chain_type} hook {hook} priority {priority}; policy {policy};")
    }
}

impl fmt::Display for ChainType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        })
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prerouting => f.write_str("prerouting"),
            Self::Input => f.write_str("input"),
            Self::Forward => f.write_str("forward"),
            Self::Output => f.write_str("output"),
            Self::Postrouting => f.write_str("postrouting"),
            Self::Ingress(device) => write!(f, "ingress device \"{device}\""),
            Self::Egress(device) => write!(f, "egress device \"{device}\""),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept => "accept",
            Self::Drop => "drop",
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (idx, expr) in self.exprs.iter().enumerate() {
            write!(f, "{}{expr}", if idx == 0 { "" } else { " " })?;
        }
        match &self.comment {
            Some(comment) if self.exprs.is_empty() => write!(f, "comment \"{comment}\""),
            Some(comment) => write!(f, " comment \"{comment}\""),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Match(condition) => condition.fmt(f),
            Self::Statement(statement) => statement.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::nft::test::Test;

    #[test]
    fn a_table_prints_as_nft_takes_it() {
        let base = Base { chain_type: ChainType::Filter, hook: Hook::Forward, priority: -5, policy: Policy::Drop };
        let rule = Rule::new().with(Match::TcpDport(Test::any([22, 80]))).with(Statement::CountIn("seen".to_owned()));
        let table = Table {
            name: TableName { family: Family::Inet, name: "minivmm-web".to_owned() },
            counters: vec!["seen".to_owned()],
            sets: vec![Set { name: "macs".to_owned(), elements: Elements::Ether(vec![EtherAddr([2; 6])]) }],
            chains: vec![Chain { name: "c".to_owned(), base: Some(base), rules: vec![rule.with(Verdict::Accept)] }],
        };
        let expected = "table inet minivmm-web {
\tflags owner

\tcounter seen {
\t}

\tset macs {
\t\ttype ether_addr
\t\telements = { 02:02:02:02:02:02 }
\t}

\tchain c {
\t\ttype filter hook forward priority -5; policy drop;
\t\ttcp dport { 22, 80 } counter name \"seen\" accept
\t}
}";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn a_comment_is_made_to_fit() {
        assert_eq!(Rule::new().comment("a \"b\"\n").to_string(), "comment \"a 'b'\"");
        let long = Rule::new().comment(&"\u{e4}".repeat(100)).comment.unwrap();
        assert_eq!(long.len(), COMMENT_MAX - 1);
    }
}
