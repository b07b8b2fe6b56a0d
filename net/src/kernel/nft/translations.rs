//! Port translations (DNAT) by rules of other programs, as far as the rules show them.
//!
//! A rule is read from its first expression to the translation, collecting the ports, protocols and addresses that it
//! compares. Not seen: ports from maps with several keys, and chains that only some packets reach.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use super::dump::{comment, exprs, family_name};
use super::error::NftError;
use super::kernel::msg::*;
use super::kernel::*;
use super::socket::NftSocket;
use crate::kernel::netlink::{Attrs, Writer};

/// `enum nft_cmp_ops`.
const NFT_CMP_LTE: u32 = 3;
const NFT_CMP_GTE: u32 = 5;
/// `enum nft_match_attributes` of linux/netfilter/nf_tables_compat.h.
const NFTA_MATCH_NAME: u16 = 1;
const NFTA_MATCH_INFO: u16 = 3;
/// `NF_INET_PRE_ROUTING`.
const PREROUTING: u32 = 0;
/// Offsets of the protocol and the destination address in an IPv4 header, and of the destination port in TCP and UDP.
const IP4_PROTOCOL: u32 = 9;
const IP4_DADDR: u32 = 16;
const DPORT: u32 = 2;
/// `XT_TCP_INV_DSTPT` and `XT_UDP_INV_DSTPT`, and their offsets in `struct xt_tcp` and `struct xt_udp`.
const XT_INV_DSTPT: u8 = 2;
const XT_TCP_INVFLAGS: usize = 11;
const XT_UDP_INVFLAGS: usize = 8;
/// Ports of `struct xt_multiport_v1`.
const XT_MULTIPORT_PORTS: usize = 15;

/// A rule that translates ports of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The table with its family, as the program that shows it names it.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// The command or place that shows the rule, in words.
    pub rule: String,
    /// The protocol's number, if the rule is for one only.
    pub protocol: Option<u8>,
    /// The ports; at least one.
    pub ports: Vec<RangeInclusive<u16>>,
    /// The host's address and its prefix length, if the rule is for some only.
    pub address: Option<(Ipv4Addr, u8)>,
}

impl NftSocket {
    /// The rules that translate ports of the host, except in tables whose names begin with `but`.
    ///
    /// # Errors
    /// The exchange with the kernel fails.
    pub fn translations(&mut self, but: &str) -> Result<Vec<Translation>, NftError> {
        let mut tables = self.dump(
            NFT_MSG_GETCHAIN,
            0,
            |_| {},
            |family, chain| {
                let table = chain.text(NFTA_CHAIN_TABLE).filter(|table| !table.starts_with(but))?;
                let hook = Attrs::from(chain.find(NFTA_CHAIN_HOOK)?).be32(NFTA_HOOK_HOOKNUM)?;
                let translates = chain.text(NFTA_CHAIN_TYPE) == Some("nat") && hook == PREROUTING;
                translates.then(|| (family, table.to_owned()))
            },
        )?;
        tables.sort();
        tables.dedup();
        let mut found = Vec::new();
        for (family, table) in tables {
            let name = |w: &mut Writer| w.text(NFTA_RULE_TABLE, &table);
            let rules = self.dump(NFT_MSG_GETRULE, family, name, |_, rule| {
                // Kernels before 5.2 list the rules of all tables.
                (rule.text(NFTA_RULE_TABLE)? == table).then(|| read(rule))?
            })?;
            for (mut translation, sets) in rules {
                for set in sets {
                    translation.ports.extend(self.ports_of(family, &table, &set)?);
                }
                translation.table = format!("{} {table}", family_name(family));
                found.extend(Some(translation).filter(|translation| !translation.ports.is_empty()));
            }
        }
        Ok(found)
    }

    /// The ports in a set or map whose keys are ports.
    fn ports_of(&mut self, family: u8, table: &str, set: &str) -> Result<Vec<RangeInclusive<u16>>, NftError> {
        let place = |w: &mut Writer| {
            w.text(NFTA_SET_ELEM_LIST_TABLE, table);
            w.text(NFTA_SET_ELEM_LIST_SET, set);
        };
        let lists = self.dump(NFT_MSG_GETSETELEM, family, place, |_, message| {
            let elements = message.list(NFTA_SET_ELEM_LIST_ELEMENTS).into_iter();
            let elements = elements.filter_map(|(_, element)| {
                let element = Attrs::from(element);
                let key = element.list(NFTA_SET_ELEM_KEY).find(NFTA_DATA_VALUE)?;
                let ends = element.be32(NFTA_SET_ELEM_FLAGS).unwrap_or_default() & NFT_SET_ELEM_INTERVAL_END != 0;
                // A set of another type has no ports.
                Some((u16::from_be_bytes(*key.first_chunk().filter(|_| key.len() == 2)?), ends))
            });
            Some(elements.collect::<Vec<_>>())
        })?;
        Ok(ranges(lists.into_iter().flatten().collect()))
    }
}

/// Elements of a set as ranges: a port is a range of one, unless the next element ends an interval.
fn ranges(mut elements: Vec<(u16, bool)>) -> Vec<RangeInclusive<u16>> {
    elements.sort_unstable();
    let next = |idx: usize| elements.get(idx + 1).filter(|(_, ends)| *ends);
    let begins = elements.iter().enumerate().filter(|(_, (_, ends))| !ends);
    begins.map(|(idx, (port, _))| *port..=next(idx).map_or(*port, |(end, _)| end.saturating_sub(1))).collect()
}

/// The relevant contents of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loaded {
    Protocol,
    Port,
    /// An address, with this prefix length.
    Address(u8),
}

/// A translating rule, and the sets that hold its ports; none for any other rule.
fn read(rule: Attrs<'_>) -> Option<(Translation, Vec<String>)> {
    let handle = rule.be64(NFTA_RULE_HANDLE)?;
    let note = rule.find(NFTA_RULE_USERDATA).and_then(comment);
    let mut registers: BTreeMap<u32, Loaded> = BTreeMap::new();
    let (mut protocol, mut address, mut ports, mut sets) = (None, None, Vec::new(), Vec::new());
    let mut first_port = 0;
    let mut translates = false;
    for (name, data) in exprs(rule) {
        match name {
            "meta" if data.be32(NFTA_META_KEY) == Some(NFT_META_L4PROTO) => {
                registers.insert(data.be32(NFTA_META_DREG)?, Loaded::Protocol);
            }
            "payload" => {
                let field = ([NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_OFFSET, NFTA_PAYLOAD_LEN]).map(|kind| data.be32(kind));
                let [Some(base), Some(offset), Some(len)] = field else { continue };
                let register = data.be32(NFTA_PAYLOAD_DREG)?;
                match (base, offset, len) {
                    (NFT_PAYLOAD_NETWORK_HEADER, IP4_PROTOCOL, 1) => registers.insert(register, Loaded::Protocol),
                    // A prefix of whole bytes is loaded alone.
                    (NFT_PAYLOAD_NETWORK_HEADER, IP4_DADDR, 1..=4) => registers.insert(register, Loaded::Address(32)),
                    (NFT_PAYLOAD_TRANSPORT_HEADER, DPORT, 2) => registers.insert(register, Loaded::Port),
                    _ => registers.remove(&register),
                };
            }
            "bitwise" => {
                let mask = data.list(NFTA_BITWISE_MASK).find(NFTA_DATA_VALUE).and_then(|mask| mask.first_chunk::<4>());
                let from = registers.get(&data.be32(NFTA_BITWISE_SREG)?).copied();
                let to = data.be32(NFTA_BITWISE_DREG)?;
                match (from, mask) {
                    (Some(Loaded::Address(_)), Some(mask)) => {
                        let bits = u32::from_be_bytes(*mask).leading_ones();
                        registers.insert(to, Loaded::Address(u8::try_from(bits).unwrap_or(32)))
                    }
                    _ => registers.remove(&to),
                };
            }
            "cmp" => {
                let value = data.list(NFTA_CMP_DATA).find(NFTA_DATA_VALUE)?;
                let loaded = registers.get(&data.be32(NFTA_CMP_SREG)?);
                let port = || value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
                match (loaded, data.be32(NFTA_CMP_OP)?) {
                    (Some(Loaded::Protocol), NFT_CMP_EQ) => protocol = value.first().copied(),
                    (Some(Loaded::Port), NFT_CMP_EQ) => ports.extend(port().map(|port| port..=port)),
                    (Some(Loaded::Port), NFT_CMP_GTE) => first_port = port()?,
                    (Some(Loaded::Port), NFT_CMP_LTE) => ports.push(first_port..=port()?),
                    (Some(Loaded::Address(bits)), NFT_CMP_EQ) => {
                        let mut octets = [0; 4];
                        octets.iter_mut().zip(value).for_each(|(to, from)| *to = *from);
                        let len = u8::try_from(value.len() * 8).unwrap_or(32);
                        address = Some((Ipv4Addr::from(octets), (*bits).min(len)));
                    }
                    _ => {}
                }
            }
            "range" if registers.get(&data.be32(NFTA_RANGE_SREG)?) == Some(&Loaded::Port) => {
                let end = |kind| Some(u16::from_be_bytes(*data.list(kind).find(NFTA_DATA_VALUE)?.first_chunk()?));
                if data.be32(NFTA_RANGE_OP)? == NFT_RANGE_EQ {
                    ports.push(end(NFTA_RANGE_FROM_DATA)?..=end(NFTA_RANGE_TO_DATA)?);
                }
            }
            "lookup" if registers.get(&data.be32(NFTA_LOOKUP_SREG)?) == Some(&Loaded::Port) => {
                let inverted = data.be32(NFTA_LOOKUP_FLAGS).unwrap_or_default() & NFT_LOOKUP_F_INV != 0;
                sets.extend(data.text(NFTA_LOOKUP_SET).filter(|_| !inverted).map(str::to_owned));
            }
            "match" => {
                let info = data.find(NFTA_MATCH_INFO)?;
                let (of, found) = xt_ports(data.text(NFTA_MATCH_NAME)?, info).unwrap_or_default();
                protocol = of.or(protocol);
                ports.extend(found);
            }
            "nat" => translates |= data.be32(NFTA_NAT_TYPE) == Some(NFT_NAT_DNAT),
            "redir" => translates = true,
            "target" => translates |= matches!(data.text(NFTA_TARGET_NAME), Some("DNAT" | "REDIRECT")),
            _ => {}
        }
    }
    let rule_text = note.map_or_else(|| format!("handle {handle}"), |note| format!("handle {handle}, \"{note}\""));
    let chain = rule.text(NFTA_RULE_CHAIN)?.to_owned();
    let translation = Translation { table: String::new(), chain, rule: rule_text, protocol, ports, address };
    translates.then_some((translation, sets))
}

/// The protocol and ports that an iptables match asks for (linux/netfilter/xt_tcpudp.h, xt_multiport.h).
fn xt_ports(name: &str, info: &[u8]) -> Option<(Option<u8>, Vec<RangeInclusive<u16>>)> {
    let port = |at: usize| info.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes));
    let of_protocol = |protocol, flags_at: usize| {
        let (first, last) = (port(4)?, port(6)?);
        let all = (first, last) == (0, u16::MAX) || info.get(flags_at)? & XT_INV_DSTPT != 0;
        Some((Some(protocol), Vec::from_iter((!all).then_some(first..=last))))
    };
    match name {
        "tcp" => of_protocol(6, XT_TCP_INVFLAGS),
        "udp" => of_protocol(17, XT_UDP_INVFLAGS),
        "multiport" => {
            let [flags, count] = *info.first_chunk()?;
            let count = usize::from(count).min(XT_MULTIPORT_PORTS);
            let continues = |idx: usize| info.get(2 + 2 * XT_MULTIPORT_PORTS + idx) == Some(&1);
            let inverted = info.get(2 + 3 * XT_MULTIPORT_PORTS) == Some(&1);
            // Flag 0 means source ports.
            if flags == 0 || inverted {
                return None;
            }
            let firsts = (0..count).filter(|idx| *idx == 0 || !continues(idx - 1));
            let range = |idx: usize| {
                let last = if continues(idx) { idx + 1 } else { idx };
                Some(port(2 + 2 * idx)?..=port(2 + 2 * last)?)
            };
            Some((None, firsts.filter_map(range).collect()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_of_a_set_are_ports_and_ranges() {
        assert_eq!(ranges(vec![(80, false), (443, false)]), [80..=80, 443..=443]);
        assert_eq!(ranges(vec![(8081, true), (8000, false), (0, true)]), [8000..=8080]);
    }

    #[test]
    fn ports_of_iptables_extensions_are_read() {
        let tcp = |first: u16, last: u16, flags| {
            let mut info = [0; 12];
            info[2..4].copy_from_slice(&u16::MAX.to_ne_bytes());
            info[4..6].copy_from_slice(&first.to_ne_bytes());
            info[6..8].copy_from_slice(&last.to_ne_bytes());
            info[11] = flags;
            xt_ports("tcp", &info)
        };
        assert_eq!(tcp(8080, 8080, 0), Some((Some(6), vec![8080..=8080])));
        assert_eq!(tcp(0, u16::MAX, 0), Some((Some(6), vec![])));
        assert_eq!(tcp(8080, 8080, 2), Some((Some(6), vec![])));
        let mut info = [0; 48];
        info[..2].copy_from_slice(&[1, 3]);
        for (idx, port) in [80_u16, 8000, 8010].into_iter().enumerate() {
            info[2 + 2 * idx..4 + 2 * idx].copy_from_slice(&port.to_ne_bytes());
        }
        info[33] = 1;
        assert_eq!(xt_ports("multiport", &info), Some((None, vec![80..=80, 8000..=8010])));
        assert_eq!(xt_ports("tcp", &[0; 5]), None);
        assert_eq!(xt_ports("addrtype", &info), None);
    }
}
