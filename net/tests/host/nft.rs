//! Our nftables code: `nft` reads back what we send to the kernel, and tables belong to their socket.

mod lab;
pub(crate) mod ownership;
mod syntax;
pub(crate) mod tap;
mod traffic;

use net::nft::{Base, Batch, Chain, ChainType, Family, Hook, NftSocket, Policy, Rule, Table, TableName};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    [ownership::CASES, syntax::CASES, tap::CASES, traffic::CASES].concat()
}

/// The name of a table of the inet family.
fn inet(name: &str) -> TableName {
    TableName { family: Family::Inet, name: name.to_owned() }
}

/// A base chain that accepts what no rule decides.
fn base(name: &str, chain_type: ChainType, hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    let base = Base { chain_type, hook, priority, policy: Policy::Accept };
    Chain { name: name.to_owned(), base: Some(base), rules }
}

/// A table of chains.
fn table(name: TableName, chains: Vec<Chain>) -> Table {
    Table { name, counters: Vec::new(), sets: Vec::new(), chains }
}

/// A socket that owns this table.
fn applied(table: &Table) -> NftSocket {
    let mut socket = NftSocket::open().unwrap();
    socket
        .apply(&Batch::from(table.clone()))
        .unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)));
    socket
}
