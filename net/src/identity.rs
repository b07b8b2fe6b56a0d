//! The identity of a VM on a host: its name, the labels of its taps and networks, its MAC addresses. It knows no
//! interface and makes no netlink call.

pub mod alias;
pub mod mac;
pub mod runtime_dir;

pub(crate) mod hash;
pub(crate) mod unix_sockets;
