//! minivmm's own nftables over netlink: no `nft` program, no C library.
//!
//! ```text
//! Table, Chain, Rule (plain data, Display is nft's syntax)
//!        '-> Batch -> one transaction of netlink messages -> the kernel
//!                            '<- an error names the object that was refused
//! ```
//!
//! A [`Table`] that an [`NftSocket`] creates belongs to that socket (`NFT_TABLE_F_OWNER`, Linux 5.12): no other process
//! can change it, and it goes when the socket is closed, also by SIGKILL. A [`Batch`] takes effect as a whole or not at
//! all.
//!
//! The ingress hook of an inet table passes everything but IPv4 and IPv6 unseen: rules about ARP belong in a netdev
//! table. `dup to` and `fwd to` also exist in netdev tables only.
//!
//! Not supported: tables with `dormant`, flowtables, verdict maps, elements with concatenated keys, named objects other
//! than counters, and reading back more of a rule than its counters.
//!
//! The formats follow linux/netfilter/nf_tables.h and net/netfilter/nf_tables_api.c.

mod batch;
mod changes;
mod dump;
mod error;
mod expressions;
mod kernel;
mod lookup;
mod matching;
mod objects;
mod socket;
mod statement;
mod table;
mod test;
mod translations;
mod value;

pub use batch::{Batch, Command};
pub(crate) use changes::Changes;
pub use dump::{BaseChainSeen, Counts, Ending, NamedCounter, RuleCounter, RuleInChain, TableSeen};
pub use error::NftError;
pub use lookup::RuleError;
pub use matching::{CtState, CtStatus, Field, Fragment, IpFields, Match, TcpFlag};
pub use objects::EncodeError;
pub use socket::NftSocket;
pub use statement::{Limit, Mss, NatPort, NatTarget, Per, Reject, Statement, Verdict};
pub use table::{
    Base, COMMENT_MAX, Chain, ChainType, Elements, Expr, Family, Hook, KeyPart, Policy, Rule, Set, Table, TableName,
};
pub use test::{Item, Test};
pub use translations::Translation;
pub use value::{
    AddrType, ArpOp, Datum, EtherAddr, EtherType, Icmp6Type, IcmpType, L4Proto, LinkKind, NamePrefix, NfProto,
};
