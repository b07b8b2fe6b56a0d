//! The objects that minivmm has on a host: makes, inspects and removes each. Knows no step and no plan.

pub(crate) mod bridge;
pub(crate) mod conntrack;
pub(crate) mod docker;
pub(crate) mod forwarding;
pub(crate) mod lock;
pub(crate) mod macvtap;
pub(crate) mod mirror;
pub(crate) mod ovs;
pub(crate) mod ports;
pub(crate) mod rates;
pub(crate) mod tap;
pub(crate) mod uplink;
