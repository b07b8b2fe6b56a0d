//! System calls and netlink, behind safe and typed faces. Knows no VM, no plan and no step.

pub mod link;
pub mod nft;

pub(crate) mod bpf;
pub(crate) mod cbpf;
pub(crate) mod ethtool;
pub(crate) mod mount;
pub(crate) mod netlink;
pub(crate) mod netlink_filter;
pub(crate) mod packet;
pub(crate) mod random;
pub(crate) mod routes;
pub(crate) mod rtnl;
pub(crate) mod sysctl;
pub(crate) mod tun;
pub(crate) mod vlan;
