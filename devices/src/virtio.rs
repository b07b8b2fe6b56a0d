//! virtio 1.3 devices, in three roles that never mix: the *device* ([`device`]) knows what it does, the *transport*
//! knows how a driver negotiates with it, the *backend* (`Disk` for a block device, `FramePort` for a card) knows where
//! bytes come from.

mod alarm;
pub mod blk;
pub mod chain;
pub mod device;
mod host_map;
pub mod interrupt;
pub mod iovec;
pub mod net;
mod payoff;
pub mod pci;
pub mod request_queue;
pub mod ring;
pub mod rng;
#[cfg(test)]
mod small_scope;
mod split;
#[cfg(test)]
pub(crate) mod test_driver;
pub mod threads;
pub mod transport;
pub mod worker;
