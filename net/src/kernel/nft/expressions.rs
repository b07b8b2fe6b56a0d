//! Rules as the kernel's expressions: each loads, compares or changes registers, or acts on the packet.
//!
//! Register 1 carries the tested value. The protocol that a field belongs to (an Ethernet header, IPv4, TCP) is tested
//! before the field, once in a rule.

use std::net::IpAddr;

use super::kernel::*;
use super::lookup::{Lookup, NewSet, RuleError};
use super::matching::{DPORT, Field, Load, Match, Needs, RawMatch};
use super::statement::{Limit, Mss, NatPort, NatTarget, Reject, Statement, Verdict};
use super::table::{Expr, Family, Rule};
use super::test::{KeyKind, RawItem, RawTest};
use super::value::{Datum, EtherType, L4Proto, NfProto};
use crate::kernel::link::index_of;
use crate::kernel::netlink::Writer;
use crate::spec::IfName;

/// A rule being written, and its anonymous sets.
#[derive(Debug)]
pub(super) struct RuleEncoder {
    family: Family,
    ether: bool,
    network: Option<EtherType>,
    transport: Option<L4Proto>,
    exprs: Writer,
    /// Sets to be made before the rule, with the numbers that it uses for them.
    sets: Vec<NewSet>,
    next_set_id: u32,
}

impl RuleEncoder {
    /// The expressions of `rule` in a table of this family, as a list of attributes, and the sets it uses, numbered
    /// from `next_set_id`.
    ///
    /// # Errors
    /// A rule that this family cannot express, or an interface that does not exist.
    pub(super) fn encode(family: Family, rule: &Rule, next_set_id: u32) -> Result<(Writer, Vec<NewSet>), RuleError> {
        let exprs = Writer::default();
        let mut this =
            Self { family, ether: false, network: None, transport: None, exprs, sets: Vec::new(), next_set_id };
        for expr in &rule.exprs {
            match expr {
                Expr::Match(condition) => this.condition(condition)?,
                Expr::Statement(statement) => this.statement(statement)?,
            }
        }
        Ok((this.exprs, this.sets))
    }

    fn condition(&mut self, condition: &Match) -> Result<(), RuleError> {
        let RawMatch { needs, load, test } = condition.raw();
        self.need(needs)?;
        self.load(load, NFT_REG_1);
        self.test(test);
        // A protocol that the rule has tested is not tested again.
        match condition {
            Match::Protocol(test) => self.network = test.single().copied().or(self.network),
            Match::NfProto(test) if test.single() == Some(&NfProto::IP4) => self.network = Some(EtherType::IP4),
            Match::NfProto(test) if test.single() == Some(&NfProto::IP6) => self.network = Some(EtherType::IP6),
            Match::L4Proto(test) => self.transport = test.single().copied().or(self.transport),
            _ => {}
        }
        Ok(())
    }

    fn need(&mut self, needs: Needs) -> Result<(), RuleError> {
        match needs {
            Needs::Nothing => {}
            Needs::Ether => self.need_ether(),
            Needs::Network(EtherType::ARP) if self.family == Family::Inet => return Err(RuleError::ArpInInet),
            Needs::Network(kind) => self.need_network(kind),
            Needs::Transport(proto) => {
                match proto {
                    L4Proto::ICMP => self.need_network(EtherType::IP4),
                    L4Proto::ICMP6 => self.need_network(EtherType::IP6),
                    _ => {}
                }
                self.need_transport(proto);
            }
        }
        Ok(())
    }

    fn need_ether(&mut self) {
        if !self.ether && self.family != Family::Bridge {
            self.ether = true;
            self.load(Load::Meta(NFT_META_IIFTYPE), NFT_REG_1);
            self.compare(NFT_CMP_EQ, &ARPHRD_ETHER.to_ne_bytes());
        }
    }

    fn need_network(&mut self, kind: EtherType) {
        let known = match self.family {
            Family::Ip => Some(EtherType::IP4),
            Family::Ip6 => Some(EtherType::IP6),
            _ => self.network,
        };
        if known == Some(kind) {
            return;
        }
        self.network = Some(kind);
        if self.family == Family::Inet {
            let proto = if kind == EtherType::IP6 { NfProto::IP6 } else { NfProto::IP4 };
            self.load(Load::Meta(NFT_META_NFPROTO), NFT_REG_1);
            self.compare(NFT_CMP_EQ, &proto.bytes());
        } else {
            self.load(Load::Meta(NFT_META_PROTOCOL), NFT_REG_1);
            self.compare(NFT_CMP_EQ, &kind.bytes());
        }
    }

    fn need_transport(&mut self, proto: L4Proto) {
        if self.transport != Some(proto) {
            self.transport = Some(proto);
            self.load(Load::Meta(NFT_META_L4PROTO), NFT_REG_1);
            self.compare(NFT_CMP_EQ, &proto.bytes());
        }
    }

    /// An expression of that name.
    fn expr(&mut self, name: &str, data: impl FnOnce(&mut Writer)) {
        self.exprs.nest(NFTA_LIST_ELEM, |elem| {
            elem.text(NFTA_EXPR_NAME, name);
            elem.nest(NFTA_EXPR_DATA, data);
        });
    }

    fn load(&mut self, load: Load, register: u32) {
        match load {
            Load::Meta(key) => self.expr("meta", |w| {
                w.be32(NFTA_META_DREG, register);
                w.be32(NFTA_META_KEY, key);
            }),
            Load::Payload(base, offset, len) => self.expr("payload", |w| {
                w.be32(NFTA_PAYLOAD_DREG, register);
                w.be32(NFTA_PAYLOAD_BASE, base);
                w.be32(NFTA_PAYLOAD_OFFSET, offset);
                w.be32(NFTA_PAYLOAD_LEN, len);
            }),
            Load::Extension(kind, offset, len) => self.expr("exthdr", |w| {
                w.be32(NFTA_EXTHDR_DREG, register);
                w.attr(NFTA_EXTHDR_TYPE, &[kind.0]);
                w.be32(NFTA_EXTHDR_OFFSET, offset);
                w.be32(NFTA_EXTHDR_LEN, len);
            }),
            Load::Ct(key) => self.expr("ct", |w| {
                w.be32(NFTA_CT_DREG, register);
                w.be32(NFTA_CT_KEY, key);
            }),
            Load::FibType(flag) => self.fib(register, NFT_FIB_RESULT_ADDRTYPE, flag),
            Load::FibOif(flag) => self.fib(register, NFT_FIB_RESULT_OIFNAME, flag),
        }
    }

    fn fib(&mut self, register: u32, result: u32, flag: u32) {
        self.expr("fib", |w| {
            w.be32(NFTA_FIB_DREG, register);
            w.be32(NFTA_FIB_RESULT, result);
            w.be32(NFTA_FIB_FLAGS, flag);
        });
    }

    fn test(&mut self, test: RawTest) {
        let op = |negate| if negate { NFT_CMP_NEQ } else { NFT_CMP_EQ };
        match test {
            RawTest::Item { item: RawItem { first, mask: Some(mask), .. }, negate } => {
                self.mask(&mask);
                self.compare(op(negate), &first);
            }
            RawTest::Item { item: RawItem { first, last, mask: None }, negate } if first == last => {
                self.compare(op(negate), &first);
            }
            RawTest::Item { item: RawItem { first, last, mask: None }, negate } => self.expr("range", |w| {
                w.be32(NFTA_RANGE_SREG, NFT_REG_1);
                w.be32(NFTA_RANGE_OP, if negate { NFT_RANGE_NEQ } else { NFT_RANGE_EQ });
                w.nest(NFTA_RANGE_FROM_DATA, |data| data.attr(NFTA_DATA_VALUE, &first));
                w.nest(NFTA_RANGE_TO_DATA, |data| data.attr(NFTA_DATA_VALUE, &last));
            }),
            RawTest::Bits { mask, value, negate } => {
                self.mask(&mask);
                self.compare(op(negate), &value);
            }
            RawTest::Items { items, negate, key } => {
                let set = self.new_set(NewSet::keys(items, key));
                self.lookup(&set, NFT_REG_1, None, negate);
            }
            RawTest::Set { name, negate } => self.lookup(&Lookup::named(&name), NFT_REG_1, None, negate),
        }
    }

    fn compare(&mut self, op: u32, value: &[u8]) {
        self.expr("cmp", |w| {
            w.be32(NFTA_CMP_SREG, NFT_REG_1);
            w.be32(NFTA_CMP_OP, op);
            w.nest(NFTA_CMP_DATA, |data| data.attr(NFTA_DATA_VALUE, value));
        });
    }

    fn mask(&mut self, mask: &[u8]) {
        let len = u32::try_from(mask.len()).unwrap_or(u32::MAX);
        self.expr("bitwise", |w| {
            w.be32(NFTA_BITWISE_SREG, NFT_REG_1);
            w.be32(NFTA_BITWISE_DREG, NFT_REG_1);
            w.be32(NFTA_BITWISE_LEN, len);
            w.nest(NFTA_BITWISE_MASK, |data| data.attr(NFTA_DATA_VALUE, mask));
            w.nest(NFTA_BITWISE_XOR, |data| data.attr(NFTA_DATA_VALUE, &vec![0; mask.len()]));
        });
    }

    fn new_set(&mut self, mut set: NewSet) -> Lookup {
        set.id = self.next_set_id;
        self.next_set_id += 1;
        let lookup = set.lookup();
        self.sets.push(set);
        lookup
    }

    fn lookup(&mut self, set: &Lookup, from: u32, to: Option<u32>, negate: bool) {
        self.expr("lookup", |w| {
            w.text(NFTA_LOOKUP_SET, &set.name);
            if let Some(id) = set.id {
                w.be32(NFTA_LOOKUP_SET_ID, id);
            }
            w.be32(NFTA_LOOKUP_SREG, from);
            if let Some(register) = to {
                w.be32(NFTA_LOOKUP_DREG, register);
            }
            if negate {
                w.be32(NFTA_LOOKUP_FLAGS, NFT_LOOKUP_F_INV);
            }
        });
    }

    /// Loads fields one after the other, from the first register on.
    fn concatenate(&mut self, key: &[Field]) -> Result<(), RuleError> {
        let raw: Vec<(Vec<Needs>, Load, usize)> = key.iter().map(Field::raw).collect();
        // The protocol tests use the same register.
        raw.iter().flat_map(|(needs, ..)| needs).try_for_each(|needs| self.need(*needs))?;
        let mut register = NFT_REG32_00;
        for (_, load, len) in raw {
            self.load(load, register);
            register += u32::try_from(len.div_ceil(NFT_REG32_SIZE)).unwrap_or(u32::MAX);
        }
        Ok(())
    }

    fn immediate(&mut self, register: u32, value: &[u8]) {
        self.expr("immediate", |w| {
            w.be32(NFTA_IMMEDIATE_DREG, register);
            w.nest(NFTA_IMMEDIATE_DATA, |data| data.attr(NFTA_DATA_VALUE, value));
        });
    }

    fn statement(&mut self, statement: &Statement) -> Result<(), RuleError> {
        match statement {
            Statement::Counter => self.expr("counter", |_| {}),
            Statement::CountIn(name) => self.expr("objref", |w| {
                w.be32(NFTA_OBJREF_IMM_TYPE, NFT_OBJECT_COUNTER);
                w.text(NFTA_OBJREF_IMM_NAME, name);
            }),
            Statement::Limit(limit) => self.limit(*limit),
            Statement::CtCountOver(count) => self.expr("connlimit", |w| count_over(w, *count)),
            Statement::CtShareOver { set, shares, count } => {
                self.expr("numgen", |w| {
                    w.be32(NFTA_NG_DREG, NFT_REG_1);
                    w.be32(NFTA_NG_MODULUS, *shares);
                    w.be32(NFTA_NG_TYPE, NFT_NG_INCREMENTAL);
                });
                self.expr("dynset", |w| {
                    w.text(NFTA_DYNSET_SET_NAME, set);
                    w.be32(NFTA_DYNSET_OP, NFT_DYNSET_OP_ADD);
                    w.be32(NFTA_DYNSET_SREG_KEY, NFT_REG_1);
                    w.nest(NFTA_DYNSET_EXPR, |expr| {
                        expr.text(NFTA_EXPR_NAME, "connlimit");
                        expr.nest(NFTA_EXPR_DATA, |w| count_over(w, *count));
                    });
                });
            }
            Statement::InSet { key, set } => {
                self.concatenate(key)?;
                self.lookup(&Lookup::named(set), NFT_REG32_00, None, false);
            }
            Statement::Update { set, key, timeout_s } => {
                self.concatenate(key)?;
                self.expr("dynset", |w| {
                    w.text(NFTA_DYNSET_SET_NAME, set);
                    w.be32(NFTA_DYNSET_OP, NFT_DYNSET_OP_UPDATE);
                    w.be32(NFTA_DYNSET_SREG_KEY, NFT_REG32_00);
                    w.be64(NFTA_DYNSET_TIMEOUT, u64::from(*timeout_s) * 1000);
                });
            }
            Statement::Snat(target) => self.nat(NFT_NAT_SNAT, target),
            Statement::Dnat(target) => self.nat(NFT_NAT_DNAT, target),
            Statement::Masquerade(ports) => {
                let port = ports.map_or(NatPort::Keep, |(first, last)| NatPort::OneOf(first, last));
                let (min, max) = self.port(&port);
                self.expr("masq", |w| {
                    registers(w, &[(NFTA_MASQ_REG_PROTO_MIN, min), (NFTA_MASQ_REG_PROTO_MAX, max)]);
                });
            }
            Statement::Redirect(port) => {
                let (min, max) = self.port(port);
                self.expr("redir", |w| {
                    registers(w, &[(NFTA_REDIR_REG_PROTO_MIN, min), (NFTA_REDIR_REG_PROTO_MAX, max)]);
                });
            }
            Statement::SetMss(mss) => self.set_mss(*mss),
            Statement::SetMark(mark) => self.set_meta(NFT_META_MARK, *mark),
            Statement::SetPriority(number) => self.set_meta(NFT_META_PRIORITY, *number),
            Statement::NoTrack => self.expr("notrack", |_| {}),
            Statement::Dup(device) => {
                self.device(device)?;
                self.expr("dup", |w| w.be32(NFTA_DUP_SREG_DEV, NFT_REG_1));
            }
            Statement::Fwd(device) => {
                self.device(device)?;
                self.expr("fwd", |w| w.be32(NFTA_FWD_SREG_DEV, NFT_REG_1));
            }
            Statement::Reject(reject) => self.reject(*reject),
            Statement::Verdict(verdict) => self.verdict(verdict),
        }
        Ok(())
    }

    fn limit(&mut self, limit: Limit) {
        self.expr("limit", |w| {
            w.be64(NFTA_LIMIT_RATE, limit.packets);
            w.be64(NFTA_LIMIT_UNIT, limit.per.seconds());
            w.be32(NFTA_LIMIT_BURST, limit.burst);
            w.be32(NFTA_LIMIT_TYPE, NFT_LIMIT_PKTS);
            w.be32(NFTA_LIMIT_FLAGS, if limit.over { NFT_LIMIT_F_INV } else { 0 });
        });
    }

    fn nat(&mut self, kind: u32, target: &NatTarget) {
        let (min, max) = self.port(&target.port);
        let family = match target.addr {
            IpAddr::V4(addr) => {
                self.immediate(NFT_REG_1, &addr.octets());
                NfProto::IP4
            }
            IpAddr::V6(addr) => {
                self.immediate(NFT_REG_1, &addr.octets());
                NfProto::IP6
            }
        };
        self.expr("nat", |w| {
            w.be32(NFTA_NAT_TYPE, kind);
            w.be32(NFTA_NAT_FAMILY, u32::from(family.0));
            w.be32(NFTA_NAT_REG_ADDR_MIN, NFT_REG_1);
            registers(w, &[(NFTA_NAT_REG_PROTO_MIN, min), (NFTA_NAT_REG_PROTO_MAX, max)]);
        });
    }

    /// Loads the ports of a translation; returns the registers of the lowest and the highest. Uses register 1.
    fn port(&mut self, port: &NatPort) -> (Option<u32>, Option<u32>) {
        match port {
            NatPort::Keep => (None, None),
            NatPort::Is(port) => {
                self.immediate(NFT_REG_2, &port.bytes());
                (Some(NFT_REG_2), None)
            }
            NatPort::OneOf(first, last) => {
                self.immediate(NFT_REG_2, &first.bytes());
                self.immediate(NFT_REG_3, &last.bytes());
                (Some(NFT_REG_2), Some(NFT_REG_3))
            }
            NatPort::Map(proto, pairs) => {
                let set = self.new_set(NewSet::ports(pairs, KeyKind::of::<u16>()));
                self.need_transport(*proto);
                self.load(DPORT, NFT_REG_2);
                self.lookup(&set, NFT_REG_2, Some(NFT_REG_2), false);
                (Some(NFT_REG_2), None)
            }
        }
    }

    fn set_meta(&mut self, key: u32, value: u32) {
        self.immediate(NFT_REG_1, &value.to_ne_bytes());
        self.expr("meta", |w| {
            w.be32(NFTA_META_KEY, key);
            w.be32(NFTA_META_SREG, NFT_REG_1);
        });
    }

    fn set_mss(&mut self, mss: Mss) {
        self.need_transport(L4Proto::TCP);
        match mss {
            Mss::RouteMtu => {
                self.expr("rt", |w| {
                    w.be32(NFTA_RT_DREG, NFT_REG_1);
                    w.be32(NFTA_RT_KEY, NFT_RT_TCPMSS);
                });
                self.expr("byteorder", |w| {
                    w.be32(NFTA_BYTEORDER_SREG, NFT_REG_1);
                    w.be32(NFTA_BYTEORDER_DREG, NFT_REG_1);
                    w.be32(NFTA_BYTEORDER_OP, NFT_BYTEORDER_HTON);
                    w.be32(NFTA_BYTEORDER_LEN, 2);
                    w.be32(NFTA_BYTEORDER_SIZE, 2);
                });
            }
            Mss::Bytes(bytes) => self.immediate(NFT_REG_1, &bytes.to_be_bytes()),
        }
        self.expr("exthdr", |w| {
            w.be32(NFTA_EXTHDR_SREG, NFT_REG_1);
            w.attr(NFTA_EXTHDR_TYPE, &[TCPOPT_MSS]);
            w.be32(NFTA_EXTHDR_OFFSET, 2);
            w.be32(NFTA_EXTHDR_LEN, 2);
            w.be32(NFTA_EXTHDR_OP, NFT_EXTHDR_OP_TCPOPT);
        });
    }

    fn device(&mut self, device: &IfName) -> Result<(), RuleError> {
        let index = index_of(device.as_str()).map_err(|source| RuleError::Device { name: device.clone(), source })?;
        self.immediate(NFT_REG_1, &index.to_ne_bytes());
        Ok(())
    }

    fn reject(&mut self, reject: Reject) {
        let (kind, code) = match reject {
            Reject::AdminProhibited => (NFT_REJECT_ICMPX_UNREACH, NFT_REJECT_ICMPX_ADMIN_PROHIBITED),
            Reject::PortUnreachable => (NFT_REJECT_ICMPX_UNREACH, NFT_REJECT_ICMPX_PORT_UNREACH),
            Reject::HostUnreachable => (NFT_REJECT_ICMPX_UNREACH, NFT_REJECT_ICMPX_HOST_UNREACH),
            Reject::NoRoute => (NFT_REJECT_ICMPX_UNREACH, NFT_REJECT_ICMPX_NO_ROUTE),
            Reject::TcpReset => {
                self.need_transport(L4Proto::TCP);
                (NFT_REJECT_TCP_RST, 0)
            }
        };
        self.expr("reject", |w| {
            w.be32(NFTA_REJECT_TYPE, kind);
            w.attr(NFTA_REJECT_ICMP_CODE, &[code]);
        });
    }

    fn verdict(&mut self, verdict: &Verdict) {
        let (code, chain) = match verdict {
            Verdict::Accept => (NF_ACCEPT, None),
            Verdict::Drop => (NF_DROP, None),
            Verdict::Return => (NFT_RETURN, None),
            Verdict::Jump(chain) => (NFT_JUMP, Some(chain)),
            Verdict::Goto(chain) => (NFT_GOTO, Some(chain)),
            Verdict::Continue => (NFT_CONTINUE, None),
        };
        self.expr("immediate", |w| {
            w.be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
            w.nest(NFTA_IMMEDIATE_DATA, |data| {
                data.nest(NFTA_DATA_VERDICT, |data| {
                    data.attr(NFTA_VERDICT_CODE, &code.to_be_bytes());
                    if let Some(chain) = chain {
                        data.text(NFTA_VERDICT_CHAIN, chain);
                    }
                });
            });
        });
    }
}

/// A connection limit that matches above `count`.
fn count_over(w: &mut Writer, count: u32) {
    w.be32(NFTA_CONNLIMIT_COUNT, count);
    w.be32(NFTA_CONNLIMIT_FLAGS, NFT_CONNLIMIT_F_INV);
}

/// The registers in use.
fn registers(w: &mut Writer, registers: &[(u16, Option<u32>)]) {
    for (attr, register) in registers {
        if let Some(register) = register {
            w.be32(*attr, *register);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::Attrs;
    use crate::kernel::nft::matching::{CtState, IpFields};
    use crate::kernel::nft::test::Test;

    /// The names of the kernel's expressions for a rule.
    fn names(family: Family, rule: &Rule) -> Vec<String> {
        let (exprs, _) = RuleEncoder::encode(family, rule, 1).unwrap();
        let list = Attrs::from(exprs.bytes()).into_iter().map(|(_, expr)| Attrs::from(expr));
        list.map(|expr| expr.text(NFTA_EXPR_NAME).unwrap().to_owned()).collect()
    }

    #[test]
    fn a_port_is_tested_after_the_protocol() {
        let rule = Rule::new().with(Match::TcpDport(Test::is(80))).with(Verdict::Accept);
        assert_eq!(names(Family::Inet, &rule), ["meta", "cmp", "payload", "cmp", "immediate"]);
    }

    #[test]
    fn what_a_field_needs_is_tested_once() {
        let addr = "10.0.0.1".parse().unwrap();
        let rule = Rule::new()
            .with(Match::Ip4(IpFields::Saddr(Test::is(addr))))
            .with(Match::Ip4(IpFields::Daddr(Test::is_not(addr))))
            .with(Match::L4Proto(Test::is(L4Proto::TCP)))
            .with(Match::TcpDport(Test::range(1, 2)));
        let expected = ["meta", "cmp", "payload", "cmp", "payload", "cmp", "meta", "cmp", "payload", "range"];
        assert_eq!(names(Family::Inet, &rule), expected);
    }

    #[test]
    fn a_test_for_several_protocols_does_not_stand_for_one() {
        let rule = Rule::new()
            .with(Match::L4Proto(Test::any([L4Proto::TCP, L4Proto::UDP])))
            .with(Match::TcpDport(Test::is(80)));
        assert_eq!(names(Family::Inet, &rule), ["meta", "lookup", "meta", "cmp", "payload", "cmp"]);
    }

    #[test]
    fn a_bridge_has_ethernet_anyway() {
        let rule = Rule::new().with(Match::EtherType(Test::is(EtherType::ARP)));
        assert_eq!(names(Family::Bridge, &rule), ["payload", "cmp"]);
        assert_eq!(names(Family::Netdev, &rule), ["meta", "cmp", "payload", "cmp"]);
    }

    #[test]
    fn states_are_bits() {
        let rule = Rule::new().with(Match::CtState(vec![CtState::Established]));
        assert_eq!(names(Family::Inet, &rule), ["ct", "bitwise", "cmp"]);
    }

    #[test]
    fn sets_without_names_are_numbered_on() {
        let ports = |port| Match::TcpDport(Test::any([port, 80]));
        let rule = Rule::new().with(ports(1)).with(ports(2));
        let (_, sets) = RuleEncoder::encode(Family::Inet, &rule, 5).unwrap();
        assert_eq!(sets.iter().map(|set| set.id).collect::<Vec<_>>(), [5, 6]);
    }

    #[test]
    fn arp_in_an_inet_table_is_refused() {
        let rule = Rule::new().with(Match::ArpSenderIp(Test::is("10.0.0.1".parse().unwrap())));
        assert!(matches!(RuleEncoder::encode(Family::Inet, &rule, 1), Err(RuleError::ArpInInet)));
        assert_eq!(names(Family::Netdev, &rule), ["meta", "cmp", "payload", "cmp"]);
    }
}
