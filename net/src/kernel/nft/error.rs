//! Errors of nftables, and what a user can do about them.

use std::io;

use super::objects::EncodeError;

/// nftables expressions that are modules of their own: how a rule with one reads, and the module. The first match is
/// named.
const NFT_EXPRESSIONS: [(&str, &str); 13] = [
    ("fib ", "nft_fib_inet (CONFIG_NFT_FIB_INET)"),
    ("masquerade", "nft_masq (CONFIG_NFT_MASQ)"),
    ("redirect", "nft_redir (CONFIG_NFT_REDIR)"),
    ("dnat ", "nft_nat (CONFIG_NFT_NAT)"),
    ("snat ", "nft_nat (CONFIG_NFT_NAT)"),
    ("reject", "nft_reject_inet or nft_reject_netdev (CONFIG_NFT_REJECT)"),
    ("ct count", "nft_connlimit (CONFIG_NFT_CONNLIMIT)"),
    ("limit rate", "nft_limit (CONFIG_NFT_LIMIT)"),
    ("dup to", "nft_dup_netdev (CONFIG_NFT_DUP_NETDEV)"),
    ("fwd to", "nft_fwd_netdev (CONFIG_NFT_FWD_NETDEV)"),
    ("ct ", "nft_ct (CONFIG_NFT_CT)"),
    ("log", "nft_log (CONFIG_NFT_LOG)"),
    ("update @", "nf_tables with sets that time out (CONFIG_NF_TABLES)"),
];

/// nftables chains and tables that are modules of their own, by how they read.
const NFT_PLACES: [(&str, &str); 6] = [
    ("chain prerouting of table inet", "nft_chain_nat (CONFIG_NFT_NAT)"),
    ("chain output of table inet", "nft_chain_nat (CONFIG_NFT_NAT)"),
    ("chain postrouting of table inet", "nft_chain_nat (CONFIG_NFT_NAT)"),
    ("table bridge", "nft_meta_bridge (CONFIG_NF_TABLES_BRIDGE)"),
    (
        "table netdev",
        "nf_tables with CONFIG_NF_TABLES_NETDEV and CONFIG_NETFILTER_INGRESS, unless the tap has gone meanwhile",
    ),
    ("table inet", "nf_tables with CONFIG_NF_TABLES_INET"),
];

/// The reason why the kernel's packet filter could not be changed or read.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// No socket.
    #[error("Cannot open an nf_tables socket")]
    Open(#[source] io::Error),
    /// The batch holds an object that cannot be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// An error of the socket.
    #[error("Cannot exchange messages with nf_tables")]
    Exchange(#[source] io::Error),
    /// The kernel refused; nothing has changed.
    #[error("The kernel refuses {object}")]
    Refused {
        /// The refused object, as text.
        object: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The kernel did not answer a request.
    #[error("The kernel has not answered a request to nf_tables")]
    Silent,
    /// Other programs change the ruleset faster than it can be read.
    #[error("The nftables ruleset changes while it is being read")]
    Changing,
}

impl NftError {
    /// True if the kernel refused because this user may not change the packet filter.
    pub(crate) fn is_forbidden(&self) -> bool {
        let (Self::Open(source) | Self::Exchange(source) | Self::Refused { source, .. }) = self else { return false };
        matches!(source.raw_os_error(), Some(libc::EPERM | libc::EACCES))
    }

    /// True if the kernel lacks tables with an owner, as before Linux 5.12: it refuses the flag, and with it the whole
    /// batch.
    pub(crate) fn has_no_owners(&self) -> bool {
        let Self::Refused { object, source } = self else { return false };
        object.starts_with("table ") && matches!(source.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
    }

    /// The hint for the user: the missing part of the kernel if it refuses a part of a table.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Refused { object, source } => match source.raw_os_error()? {
                // An expression or chain type that the kernel does not know and has no module for.
                libc::ENOENT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT => Some(format!(
                    "the kernel of this host lacks {}: load it with modprobe, or boot a kernel that has it, as those \
                     of distributions do",
                    module_of(object)
                )),
                libc::EBUSY | libc::EEXIST => {
                    Some("another program changes nftables at the same moment: try again".to_owned())
                }
                errno => out_of_memory(errno),
            },
            Self::Open(source) => match source.raw_os_error()? {
                libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT => no_nftables(),
                _ => None,
            },
            Self::Exchange(source) => match source.raw_os_error()? {
                libc::EINVAL | libc::EOPNOTSUPP => no_nftables(),
                errno => out_of_memory(errno),
            },
            Self::Encode(_) | Self::Silent | Self::Changing => None,
        }
    }
}

/// The module that provides an nftables object.
fn module_of(object: &str) -> &'static str {
    let rule = object.strip_prefix("rule '").and_then(|rest| rest.rsplit_once("' of chain "));
    let expression = rule.and_then(|(rule, _)| NFT_EXPRESSIONS.iter().find(|(words, _)| rule.contains(words)));
    let module = expression.or_else(|| NFT_PLACES.iter().find(|(words, _)| object.contains(words)));
    module.map_or("a module of nf_tables", |(_, module)| module)
}

fn no_nftables() -> Option<String> {
    Some("the kernel of this host has no nftables: modprobe nf_tables (CONFIG_NF_TABLES)".to_owned())
}

/// The hint if the kernel has no room for the rules. It also says so by the errno of too many open files.
fn out_of_memory(errno: i32) -> Option<String> {
    matches!(errno, libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS)
        .then(|| "the kernel is out of memory for nftables: free some, or use fewer rules".to_owned())
}
