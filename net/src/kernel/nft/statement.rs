//! The statements of a rule, run for packets that meet its conditions.

use std::fmt;
use std::net::IpAddr;

use super::matching::{Field, TcHandle};
use super::value::L4Proto;
use crate::spec::IfName;

/// A statement of a rule: an action, or a condition with state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// `counter`: packets and bytes that reach this rule.
    Counter,
    /// `counter name`: counts in the table's counter of that name.
    CountIn(String),
    /// `limit rate`
    Limit(Limit),
    /// `ct count over N`: more than N connections that this rule has seen still exist, this one included.
    CtCountOver(u32),
    /// The same by a share of the connections: the next of `shares` shares, in turn, has `count` already. The shares
    /// are elements of the table's set of that name. The kernel walks a whole list at each new connection, so many
    /// short lists are faster than a long one.
    CtShareOver {
        /// The set.
        set: String,
        /// How many shares.
        shares: u32,
        /// Connections of each.
        count: u32,
    },
    /// A condition: the values of these fields, concatenated, are in the table's set of that name. The protocols that
    /// the fields belong to are tested as for a [`super::Match`].
    InSet {
        /// The fields.
        key: Vec<Field>,
        /// The set.
        set: String,
    },
    /// `update`: adds the values of these fields to the set, or restarts their timeout. The rest of the rule applies
    /// only to packets for which the set has room.
    Update {
        /// The set.
        set: String,
        /// The fields.
        key: Vec<Field>,
        /// The time in seconds.
        timeout_s: u32,
    },
    /// `snat to`
    Snat(NatTarget),
    /// `dnat to`
    Dnat(NatTarget),
    /// `masquerade`, with source ports of this range if given, which needs a test of the protocol before.
    Masquerade(Option<(u16, u16)>),
    /// `redirect`: to this host itself, on this port, which needs a test of the protocol before.
    Redirect(NatPort),
    /// `tcp option maxseg size set`: in a segment that has the option; the size never grows.
    SetMss(Mss),
    /// `meta mark set`
    SetMark(u32),
    /// `meta priority set`
    SetPriority(u32),
    /// `notrack`: excludes the packet from connection tracking. In chains before it only.
    NoTrack,
    /// `dup to`: a copy goes out through this interface. In netdev tables only.
    Dup(IfName),
    /// `fwd to`: it goes out through this interface and nowhere else. In netdev tables only.
    Fwd(IfName),
    /// `reject`
    Reject(Reject),
    /// The verdict.
    Verdict(Verdict),
}

/// The verdict on a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The packet goes on to other base chains of the same hook.
    Accept,
    /// The packet is dropped.
    Drop,
    /// Back to the rule after the jump; in a base chain, the policy.
    Return,
    /// Through that chain, then on to the rule after this one.
    Jump(String),
    /// On in that chain, without a way back to this one.
    Goto(String),
    /// On to the next rule.
    Continue,
}

/// A rate that packets stay below, or, with `over`, exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// True to match above the rate, not below.
    pub over: bool,
    /// Packets per unit of time.
    pub packets: u64,
    /// The unit of time.
    pub per: Per,
    /// Packets allowed at once beyond the rate. The kernel takes 0 as 5.
    pub burst: u32,
}

/// A unit of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// `/second`
    Second,
    /// `/minute`
    Minute,
    /// `/hour`
    Hour,
}

impl Per {
    /// The unit in seconds.
    pub(super) fn seconds(self) -> u64 {
        match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3600,
        }
    }
}

/// The target of an address translation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatTarget {
    /// The new address. Packets of the other family are not translated.
    pub addr: IpAddr,
    /// The new port. All but [`NatPort::Keep`] need a test of the protocol before.
    pub port: NatPort,
}

/// The translation of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NatPort {
    /// Unchanged, if possible.
    Keep,
    /// This port.
    Is(u16),
    /// A port of this range; unchanged if it is one of them.
    OneOf(u16, u16),
    /// A map of destination ports of this protocol.
    Map(L4Proto, Vec<(u16, u16)>),
}

impl NatPort {
    /// Maps the `count` destination ports from `from` on to those from `to` on, one to one. Ports beyond 65535 are left
    /// out.
    pub fn shift(proto: L4Proto, from: u16, to: u16, count: u16) -> Self {
        if from == to {
            return Self::Keep;
        }
        if count == 1 {
            return Self::Is(to);
        }
        let pair = |idx| Some((from.checked_add(idx)?, to.checked_add(idx)?));
        Self::Map(proto, (0..count).map_while(pair).collect())
    }
}

/// The maximum segment size announced to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mss {
    /// The size that fits the MTU of the route. In forward, output and postrouting chains only.
    RouteMtu,
    /// This many bytes.
    Bytes(u16),
}

/// The reply to a refused packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// `with icmpx admin-prohibited`
    AdminProhibited,
    /// `with icmpx port-unreachable`
    PortUnreachable,
    /// `with icmpx host-unreachable`
    HostUnreachable,
    /// `with icmpx no-route`
    NoRoute,
    /// `with tcp reset`: TCP only.
    TcpReset,
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Counter => f.write_str("counter"),
            Self::CountIn(name) => write!(f, "counter name \"{name}\""),
            Self::Limit(limit) => limit.fmt(f),
            Self::CtCountOver(count) => write!(f, "ct count over {count}"),
            Self::CtShareOver { set, shares, count } => {
                write!(f, "add @{set} {{ numgen inc mod {shares} ct count over {count} }}")
            }
            Self::InSet { key, set } => write!(f, "{} @{set}", Dotted(key)),
            Self::Update { set, key, timeout_s } => {
                write!(f, "update @{set} {{ {} timeout {} }}", Dotted(key), Time(*timeout_s))
            }
            Self::Snat(target) => write!(f, "snat {target}"),
            Self::Dnat(target) => write!(f, "dnat {target}"),
            Self::Masquerade(None) => f.write_str("masquerade"),
            Self::Masquerade(Some((first, last))) => write!(f, "masquerade to :{first}-{last}"),
            Self::Redirect(NatPort::Keep) => f.write_str("redirect"),
            Self::Redirect(port) => write!(f, "redirect to {port}"),
            Self::SetMss(Mss::RouteMtu) => f.write_str("tcp option maxseg size set rt mtu"),
            Self::SetMss(Mss::Bytes(bytes)) => write!(f, "tcp option maxseg size set {bytes}"),
            Self::SetMark(mark) => write!(f, "meta mark set {mark:#010x}"),
            Self::SetPriority(number) => write!(f, "meta priority set {}", TcHandle(*number)),
            Self::NoTrack => f.write_str("notrack"),
            Self::Dup(device) => write!(f, "dup to \"{device}\""),
            Self::Fwd(device) => write!(f, "fwd to \"{device}\""),
            Self::Reject(reject) => reject.fmt(f),
            Self::Verdict(verdict) => verdict.fmt(f),
        }
    }
}

/// Fields separated by dots.
struct Dotted<'a>(&'a [Field]);

impl fmt::Display for Dotted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (idx, field) in self.0.iter().enumerate() {
            write!(f, "{}{field}", if idx == 0 { "" } else { " . " })?;
        }
        Ok(())
    }
}

/// Seconds as nft writes them.
struct Time(u32);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [(self.0 / 3600, "h"), (self.0 / 60 % 60, "m"), (self.0 % 60, "s")];
        parts.iter().filter(|(count, _)| *count > 0).try_for_each(|(count, unit)| write!(f, "{count}{unit}"))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Continue => f.write_str("continue"),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let over = if self.over { "over " } else { "" };
        let per = match self.per {
            Per::Second => "second",
            Per::Minute => "minute",
            Per::Hour => "hour",
        };
        write!(f, "limit rate {over}{}/{per}", self.packets)?;
        if self.burst == 0 { Ok(()) } else { write!(f, " burst {} packets", self.burst) }
    }
}

impl fmt::Display for NatTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.addr, &self.port) {
            (IpAddr::V4(addr), port) => write!(f, "ip to {addr}{port}"),
            (IpAddr::V6(addr), NatPort::Keep) => write!(f, "ip6 to {addr}"),
            (IpAddr::V6(addr), port) => write!(f, "ip6 to [{addr}]{port}"),
        }
    }
}

impl fmt::Display for NatPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep => Ok(()),
            Self::Is(port) => write!(f, ":{port}"),
            Self::OneOf(first, last) => write!(f, ":{first}-{last}"),
            Self::Map(proto, pairs) => {
                write!(f, ":{proto} dport map ")?;
                for (idx, (from, to)) in pairs.iter().enumerate() {
                    write!(f, "{}{from} : {to}", if idx == 0 { "{ " } else { ", " })?;
                }
                f.write_str(" }")
            }
        }
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AdminProhibited => "reject with icmpx admin-prohibited",
            Self::PortUnreachable => "reject with icmpx port-unreachable",
            Self::HostUnreachable => "reject with icmpx host-unreachable",
            Self::NoRoute => "reject with icmpx no-route",
            Self::TcpReset => "reject with tcp reset",
        })
    }
}
