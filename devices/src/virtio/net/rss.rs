//! Receive-side scaling and hash reports (virtio 1.3 5.1.6.4.3, 5.1.6.5.7): which receive queue a frame belongs to, by
//! a hash of its flow.
//!
//! Where it can, the kernel steers: a program attached to the tap does the same computation before it chooses a queue
//! ([`mod@program`], [`steering`]), and nothing is computed here unless the driver wants the hash reported. Where it
//! cannot, the worker that receives a frame of another queue passes it on ([`inbox`]).
//!
//! ```text
//!   control queue --RSS_CONFIG--> Shared --copied on change--> Hasher of each receive queue
//!                        '------> Steering: words in a map that the kernel's program reads
//! ```
//!
//! Not supported: hashing inside of tunnels, several RSS contexts.

mod dissect;
mod hasher;
mod inbox;
mod program;
mod settings;
mod steering;
mod toeplitz;

pub use program::{Program, program};
pub use steering::Steering;
pub use toeplitz::Toeplitz;

pub(super) use hasher::{Hasher, Receiving, Shared, Verdict};
pub(super) use settings::{HashSettings, RssSettings};

use dissect::Types;

/// Longest key in bytes: what virtio 1.3 5.1.4.2 wants a device to take at least, and the longest flow needs.
pub(super) const MAX_KEY_LEN: u8 = 40;

/// Longest indirection table: what virtio 1.3 5.1.4.2 wants a device to take at least, and Linux takes at most.
pub(super) const MAX_TABLE_LEN: u16 = 128;

/// The hash types that are served, as the driver reads them in the configuration space.
pub(super) fn supported_hash_types() -> u32 {
    Types::ALL.bits()
}

#[cfg(test)]
pub(super) mod tests;
