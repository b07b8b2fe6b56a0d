//! Tables, chains, sets and rules as messages, each with its object.

use std::fmt;

use super::expressions::RuleEncoder;
use super::kernel::msg::*;
use super::kernel::*;
use super::lookup::{Element, Lookup, NewSet, RuleError, elements};
use super::table::{Chain, Elements, Family, Rule, Set, Table, TableName};
use crate::kernel::netlink::{Head, TooLong, Writer};

/// An object that cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// A rule.
    #[error("Cannot encode {object}")]
    Rule {
        /// The rule and where it is.
        object: String,
        /// The reason.
        source: RuleError,
    },
    /// An attribute with more than 65535 bytes.
    #[error(transparent)]
    TooLong(#[from] TooLong),
}

/// The object of a message.
#[derive(Clone, Copy, Debug)]
pub(super) enum Object<'a> {
    /// The first message of a transaction, or the last.
    Transaction,
    Table(&'a TableName),
    Counter(&'a TableName, &'a str),
    Set(&'a TableName, &'a str),
    Elements(&'a TableName, &'a str),
    Chain(&'a TableName, &'a str),
    Rule(&'a TableName, &'a str, &'a Rule),
}

impl fmt::Display for Object<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transaction => f.write_str("the transaction"),
            Self::Table(table) => write!(f, "table {table}"),
            Self::Counter(table, name) => write!(f, "counter {name} of table {table}"),
            Self::Set(table, name) => write!(f, "set {name} of table {table}"),
            Self::Elements(table, name) => write!(f, "the elements of set {name} of table {table}"),
            Self::Chain(table, name) => write!(f, "chain {name} of table {table}"),
            Self::Rule(table, chain, rule) => write!(f, "rule '{rule}' of chain {chain} of table {table}"),
        }
    }
}

/// Elements in one message: an attribute holds at most 64 KiB, and an element takes at most 56 bytes.
const ELEMENTS_MAX: usize = 1000;

/// The place of a message's flags (`struct nlmsghdr`).
const FLAGS_AT: usize = 6;

/// A transaction being written: messages with consecutive numbers, and the object of each.
#[derive(Debug)]
pub(super) struct Transaction<'a> {
    writer: Writer,
    objects: Vec<Object<'a>>,
    /// The start of the last message that changes something.
    last_at: usize,
    first_seq: u32,
    next_set_id: u32,
}

impl<'a> Transaction<'a> {
    /// A transaction whose messages are numbered from `first_seq`.
    pub(super) fn new(first_seq: u32) -> Self {
        let mut this = Self { writer: Writer::default(), objects: Vec::new(), last_at: 0, first_seq, next_set_id: 1 };
        this.mark(NFNL_MSG_BATCH_BEGIN);
        this
    }

    /// The messages of the transaction, and the object of each.
    ///
    /// # Errors
    /// An attribute that is too long.
    pub(super) fn end(mut self) -> Result<(Vec<u8>, Vec<Object<'a>>), EncodeError> {
        self.mark(NFNL_MSG_BATCH_END);
        self.finish()
    }

    /// The messages and their objects, without the end: the kernel checks them and rolls everything back.
    ///
    /// # Errors
    /// An attribute that is too long.
    pub(super) fn leave_open(self) -> Result<(Vec<u8>, Vec<Object<'a>>), EncodeError> {
        self.finish()
    }

    /// Has the kernel acknowledge the last message. It reports refusals anyway, and acknowledging each message takes as
    /// long as the changes; but complete silence would be no proof.
    fn finish(self) -> Result<(Vec<u8>, Vec<Object<'a>>), EncodeError> {
        self.writer.check()?;
        let mut bytes = self.writer.bytes().to_vec();
        let flag = bytes.get_mut(self.last_at + FLAGS_AT..).and_then(|flags| flags.first_chunk_mut::<2>());
        if let Some(flags) = flag {
            let asked = u16::try_from(libc::NLM_F_ACK).unwrap_or_default();
            *flags = (u16::from_ne_bytes(*flags) | asked).to_ne_bytes();
        }
        Ok((bytes, self.objects))
    }

    /// The number of the next message.
    fn seq(&self) -> u32 {
        self.first_seq.wrapping_add(u32::try_from(self.objects.len()).unwrap_or(u32::MAX))
    }

    fn mark(&mut self, kind: u16) {
        let head = Head { kind, flags: 0, seq: self.seq(), family: 0, res_id: NFNL_SUBSYS_NFTABLES };
        self.writer.message(head, |_| {});
        self.objects.push(Object::Transaction);
    }

    /// A message.
    fn message(&mut self, object: Object<'a>, family: Family, kind: u16, flags: i32, body: impl FnOnce(&mut Writer)) {
        let flags = u16::try_from(flags).unwrap_or_default();
        self.last_at = self.writer.bytes().len();
        let kind = NFNL_SUBSYS_NFTABLES << 8 | kind;
        let head = Head { kind, flags, seq: self.seq(), family: family.number(), res_id: 0 };
        self.writer.message(head, body);
        self.objects.push(object);
    }

    /// Creates an owned table with all its contents.
    pub(super) fn add_table(&mut self, table: &'a Table) -> Result<(), EncodeError> {
        let name = &table.name;
        self.message(Object::Table(name), name.family, NFT_MSG_NEWTABLE, libc::NLM_F_CREATE | libc::NLM_F_EXCL, |w| {
            w.text(NFTA_TABLE_NAME, &name.name);
            w.be32(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER);
        });
        for counter in &table.counters {
            self.add_counter(name, counter);
        }
        for set in &table.sets {
            self.add_set(name, set);
        }
        for chain in &table.chains {
            self.add_chain(name, chain);
        }
        for chain in &table.chains {
            self.add_rules(name, &chain.name, &chain.rules)?;
        }
        Ok(())
    }

    /// Deletes a table and all that is in it.
    pub(super) fn delete_table(&mut self, name: &'a TableName) {
        let object = Object::Table(name);
        self.message(object, name.family, NFT_MSG_DELTABLE, 0, |w| w.text(NFTA_TABLE_NAME, &name.name));
    }

    fn add_counter(&mut self, table: &'a TableName, counter: &'a str) {
        let object = Object::Counter(table, counter);
        self.message(object, table.family, NFT_MSG_NEWOBJ, libc::NLM_F_CREATE | libc::NLM_F_EXCL, |w| {
            w.text(NFTA_OBJ_TABLE, &table.name);
            w.text(NFTA_OBJ_NAME, counter);
            w.be32(NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER);
            w.nest(NFTA_OBJ_DATA, |_| {});
        });
    }

    /// Creates a named set with its elements.
    pub(super) fn add_set(&mut self, table: &'a TableName, set: &'a Set) {
        let flags = match &set.elements {
            Elements::Timed { .. } => NFT_SET_TIMEOUT | NFT_SET_EVAL,
            Elements::Shares { .. } => NFT_SET_EVAL,
            elements if elements.has_intervals() => NFT_SET_INTERVAL,
            _ => 0,
        };
        let size = match &set.elements {
            Elements::Timed { most, .. } | Elements::Shares { most } => Some(*most),
            _ => None,
        };
        let key = set.elements.key();
        let new = NewSet { id: self.take_set_id(), flags, key, size, elements: Vec::new() };
        self.new_set(Object::Set(table, &set.name), table, &set.name, &new);
        self.add_elements(table, &set.name, &set.elements);
    }

    /// Deletes a named set.
    pub(super) fn delete_set(&mut self, table: &'a TableName, set: &'a str) {
        self.message(Object::Set(table, set), table.family, NFT_MSG_DELSET, 0, |w| {
            w.text(NFTA_SET_TABLE, &table.name);
            w.text(NFTA_SET_NAME, set);
        });
    }

    /// Replaces the elements of a set.
    pub(super) fn replace_elements(&mut self, table: &'a TableName, set: &'a str, elements: &Elements) {
        self.message(Object::Elements(table, set), table.family, NFT_MSG_DELSETELEM, 0, |w| {
            w.text(NFTA_SET_ELEM_LIST_TABLE, &table.name);
            w.text(NFTA_SET_ELEM_LIST_SET, set);
        });
        self.add_elements(table, set, elements);
    }

    fn add_elements(&mut self, table: &'a TableName, set: &'a str, new: &Elements) {
        let list = elements(&new.raw(), new.has_intervals());
        self.new_elements(Object::Elements(table, set), table, &Lookup::named(set), &list);
    }

    /// Creates a chain without rules.
    pub(super) fn add_chain(&mut self, table: &'a TableName, chain: &'a Chain) {
        let object = Object::Chain(table, &chain.name);
        self.message(object, table.family, NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE | libc::NLM_F_EXCL, |w| {
            w.text(NFTA_CHAIN_TABLE, &table.name);
            w.text(NFTA_CHAIN_NAME, &chain.name);
            let Some(base) = &chain.base else { return };
            w.nest(NFTA_CHAIN_HOOK, |w| {
                w.be32(NFTA_HOOK_HOOKNUM, base.hook.number(table.family));
                w.attr(NFTA_HOOK_PRIORITY, &base.priority.to_be_bytes());
                if let Some(device) = base.hook.device() {
                    w.text(NFTA_HOOK_DEV, device.as_str());
                }
            });
            w.attr(NFTA_CHAIN_POLICY, &base.policy.number().to_be_bytes());
            w.text(NFTA_CHAIN_TYPE, &base.chain_type.to_string());
        });
    }

    /// Deletes a chain and its rules.
    pub(super) fn delete_chain(&mut self, table: &'a TableName, chain: &'a str) {
        self.flush_chain(table, chain);
        self.message(Object::Chain(table, chain), table.family, NFT_MSG_DELCHAIN, 0, |w| {
            w.text(NFTA_CHAIN_TABLE, &table.name);
            w.text(NFTA_CHAIN_NAME, chain);
        });
    }

    /// Deletes the rules of a chain.
    pub(super) fn flush_chain(&mut self, table: &'a TableName, chain: &'a str) {
        self.message(Object::Chain(table, chain), table.family, NFT_MSG_DELRULE, 0, |w| {
            w.text(NFTA_RULE_TABLE, &table.name);
            w.text(NFTA_RULE_CHAIN, chain);
        });
    }

    /// Appends rules to a chain.
    pub(super) fn add_rules(
        &mut self,
        table: &'a TableName,
        chain: &'a str,
        rules: &'a [Rule],
    ) -> Result<(), EncodeError> {
        rules.iter().try_for_each(|rule| self.insert_rule(table, chain, None, rule))
    }

    /// Deletes a rule.
    pub(super) fn delete_rule(&mut self, table: &'a TableName, chain: &'a str, handle: u64) {
        self.message(Object::Chain(table, chain), table.family, NFT_MSG_DELRULE, 0, |w| {
            w.text(NFTA_RULE_TABLE, &table.name);
            w.text(NFTA_RULE_CHAIN, chain);
            w.be64(NFTA_RULE_HANDLE, handle);
        });
    }

    /// Inserts a rule before another one or at the end of a chain, after the sets that it uses.
    pub(super) fn insert_rule(
        &mut self,
        table: &'a TableName,
        chain: &'a str,
        before: Option<u64>,
        rule: &'a Rule,
    ) -> Result<(), EncodeError> {
        let object = Object::Rule(table, chain, rule);
        let (exprs, sets) = RuleEncoder::encode(table.family, rule, self.next_set_id)
            .map_err(|source| EncodeError::Rule { object: object.to_string(), source })?;
        for set in &sets {
            self.take_set_id();
            self.new_set(object, table, set.name(), set);
            self.new_elements(object, table, &set.lookup(), &set.elements);
        }
        let place = if before.is_some() { 0 } else { libc::NLM_F_APPEND };
        self.message(object, table.family, NFT_MSG_NEWRULE, libc::NLM_F_CREATE | place, |w| {
            w.text(NFTA_RULE_TABLE, &table.name);
            w.text(NFTA_RULE_CHAIN, chain);
            if let Some(handle) = before {
                w.be64(NFTA_RULE_POSITION, handle);
            }
            w.nest(NFTA_RULE_EXPRESSIONS, |w| w.append(&exprs));
            if let Some(comment) = &rule.comment {
                let text = [comment.as_bytes(), &[0]].concat();
                w.attr(NFTA_RULE_USERDATA, &record(NFTNL_UDATA_RULE_COMMENT, &text));
            }
        });
        Ok(())
    }

    fn take_set_id(&mut self) -> u32 {
        let id = self.next_set_id;
        self.next_set_id += 1;
        id
    }

    fn new_set(&mut self, object: Object<'a>, table: &TableName, name: &str, set: &NewSet) {
        let len = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        self.message(object, table.family, NFT_MSG_NEWSET, libc::NLM_F_CREATE | libc::NLM_F_EXCL, |w| {
            w.text(NFTA_SET_TABLE, &table.name);
            w.text(NFTA_SET_NAME, name);
            w.be32(NFTA_SET_FLAGS, set.flags);
            w.be32(NFTA_SET_KEY_TYPE, set.key.number);
            w.be32(NFTA_SET_KEY_LEN, len(set.key.len));
            if set.flags & NFT_SET_MAP != 0 {
                w.be32(NFTA_SET_DATA_TYPE, set.key.number);
                w.be32(NFTA_SET_DATA_LEN, len(set.key.len));
            }
            w.be32(NFTA_SET_ID, set.id);
            let order = if set.key.host_order { BYTEORDER_HOST_ENDIAN } else { BYTEORDER_BIG_ENDIAN };
            w.attr(NFTA_SET_USERDATA, &record(NFTNL_UDATA_SET_KEYBYTEORDER, &order.to_ne_bytes()));
            if let Some(size) = set.size {
                w.nest(NFTA_SET_DESC, |w| w.be32(NFTA_SET_DESC_SIZE, size));
            }
        });
    }

    fn new_elements(&mut self, object: Object<'a>, table: &TableName, set: &Lookup, elements: &[Element]) {
        for some in elements.chunks(ELEMENTS_MAX) {
            self.message(object, table.family, NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE, |w| {
                w.text(NFTA_SET_ELEM_LIST_TABLE, &table.name);
                w.text(NFTA_SET_ELEM_LIST_SET, &set.name);
                if let Some(id) = set.id {
                    w.be32(NFTA_SET_ELEM_LIST_SET_ID, id);
                }
                w.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |w| {
                    for element in some {
                        w.nest(NFTA_LIST_ELEM, |w| element.write(w));
                    }
                });
            });
        }
    }
}

impl Element {
    fn write(&self, w: &mut Writer) {
        if self.end {
            w.be32(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
        }
        w.nest(NFTA_SET_ELEM_KEY, |w| w.attr(NFTA_DATA_VALUE, &self.key));
        if let Some(data) = &self.data {
            w.nest(NFTA_SET_ELEM_DATA, |w| w.attr(NFTA_DATA_VALUE, data));
        }
    }
}

/// A record of userdata: type, length and value, of which it takes at most 255 bytes.
fn record(kind: u8, value: &[u8]) -> Vec<u8> {
    let len = u8::try_from(value.len()).unwrap_or(u8::MAX);
    [&[kind, len], value.get(..usize::from(len)).unwrap_or(value)].concat()
}
