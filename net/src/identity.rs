//! The names that minivmm gives on a host: of a VM, of its taps and networks, of its addresses. Knows no interface and no kernel.

pub mod alias;
pub mod mac;
pub mod runtime_dir;

pub(crate) mod hash;
