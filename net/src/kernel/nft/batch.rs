//! Changes that take effect together.

use std::fmt;

use super::objects::{EncodeError, Object, Transaction};
use super::table::{Chain, Elements, Rule, Set, Table, TableName};

/// Changes, in order, of tables that belong to the socket or have no owner. They take effect together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The changes.
    pub commands: Vec<Command>,
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Creates a table with all its contents; a table of that name must not exist.
    AddTable(Table),
    /// Deletes a table.
    DeleteTable(TableName),
    /// Creates a chain, with its rules.
    AddChain(TableName, Chain),
    /// Deletes a chain that is the target of no jump.
    DeleteChain(TableName, String),
    /// Creates a set, with its elements.
    AddSet(TableName, Set),
    /// Deletes a set that no rule uses.
    DeleteSet(TableName, String),
    /// Replaces the rules of a chain.
    ReplaceRules(TableName, String, Vec<Rule>),
    /// Replaces the elements of a named set.
    ReplaceElements(TableName, String, Elements),
    /// Inserts a rule before the one with this handle, or at the end of the chain. The table may have another owner.
    InsertRule {
        /// The table.
        table: TableName,
        /// The chain.
        chain: String,
        /// The rule that comes next.
        before: Option<u64>,
        /// The rule to insert.
        rule: Rule,
    },
    /// Deletes the rule with this handle.
    DeleteRule(TableName, String, u64),
}

impl Batch {
    /// No changes.
    pub fn new() -> Self {
        Self::default()
    }

    /// The batch with another change at its end.
    #[must_use]
    pub fn with(mut self, command: Command) -> Self {
        self.commands.push(command);
        self
    }

    /// The messages of the batch, numbered from `first_seq`, and the object of each.
    pub(super) fn encode(&self, first_seq: u32) -> Result<(Vec<u8>, Vec<Object<'_>>), EncodeError> {
        self.transaction(first_seq)?.end()
    }

    /// The same without the end of the batch: the kernel checks the changes and makes none.
    pub(super) fn encode_check(&self, first_seq: u32) -> Result<(Vec<u8>, Vec<Object<'_>>), EncodeError> {
        self.transaction(first_seq)?.leave_open()
    }

    fn transaction(&self, first_seq: u32) -> Result<Transaction<'_>, EncodeError> {
        let mut transaction = Transaction::new(first_seq);
        for command in &self.commands {
            match command {
                Command::AddTable(table) => transaction.add_table(table)?,
                Command::DeleteTable(table) => transaction.delete_table(table),
                Command::AddChain(table, chain) => {
                    transaction.add_chain(table, chain);
                    transaction.add_rules(table, &chain.name, &chain.rules)?;
                }
                Command::DeleteChain(table, chain) => transaction.delete_chain(table, chain),
                Command::AddSet(table, set) => transaction.add_set(table, set),
                Command::DeleteSet(table, set) => transaction.delete_set(table, set),
                Command::ReplaceRules(table, chain, rules) => {
                    transaction.flush_chain(table, chain);
                    transaction.add_rules(table, chain, rules)?;
                }
                Command::ReplaceElements(table, set, elements) => transaction.replace_elements(table, set, elements),
                Command::InsertRule { table, chain, before, rule } => {
                    transaction.insert_rule(table, chain, *before, rule)?;
                }
                Command::DeleteRule(table, chain, handle) => transaction.delete_rule(table, chain, *handle),
            }
        }
        Ok(transaction)
    }
}

impl From<Table> for Batch {
    fn from(table: Table) -> Self {
        Self { commands: vec![Command::AddTable(table)] }
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (idx, command) in self.commands.iter().enumerate() {
            write!(f, "{}{command}", if idx == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable(table) => table.fmt(f),
            Self::DeleteTable(table) => write!(f, "delete table {table}"),
            Self::AddChain(table, chain) => write!(f, "table {table} {{\n{chain}\n}}"),
            Self::DeleteChain(table, chain) => write!(f, "delete chain {table} {chain}"),
            Self::AddSet(table, set) => write!(f, "table {table} {{\n{set}\n}}"),
            Self::DeleteSet(table, set) => write!(f, "delete set {table} {set}"),
            Self::ReplaceRules(table, chain, rules) => {
                write!(f, "flush chain {table} {chain}")?;
                rules.iter().try_for_each(|rule| write!(f, "\nadd rule {table} {chain} {rule}"))
            }
            Self::ReplaceElements(table, set, elements) => {
                write!(f, "flush set {table} {set}")?;
                if elements.is_empty() { Ok(()) } else { write!(f, "\nadd element {table} {set} {elements}") }
            }
            Self::InsertRule { table, chain, before: None, rule } => write!(f, "add rule {table} {chain} {rule}"),
            Self::InsertRule { table, chain, before: Some(handle), rule } => {
                write!(f, "insert rule {table} {chain} position {handle} {rule}")
            }
            Self::DeleteRule(table, chain, handle) => write!(f, "delete rule {table} {chain} handle {handle}"),
        }
    }
}
