//! The cache mode, which a driver with VIRTIO_BLK_F_CONFIG_WCE switches while the disk is in use (virtio 1.3 5.2.5,
//! 5.2.6.2).
//!
//! ```text
//!   reset, features ---- FLUSH accepted ----> write-back <---- writeback 1 ---- write-through
//!                  \---- otherwise --> write-through        ---- writeback 0, all is made durable ---->
//! ```

use std::sync::atomic::{AtomicBool, Ordering};

/// When a write is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteMode {
    /// When the host has it; the driver flushes.
    Back,
    /// When it is durable.
    Through,
}

/// The mode, shared by the registers and the workers.
///
/// A worker looks at it after it has written. A write that still saw write-back was there before the switch, so that
/// making all durable after the switch leaves out none. Sequentially consistent, as the two sides write in turn what
/// the other reads.
pub(super) struct Cache(AtomicBool);

impl Cache {
    /// In this mode.
    pub(super) fn new(mode: WriteMode) -> Self {
        Self(AtomicBool::new(mode == WriteMode::Back))
    }

    /// The mode now.
    pub(super) fn mode(&self) -> WriteMode {
        if self.0.load(Ordering::SeqCst) { WriteMode::Back } else { WriteMode::Through }
    }

    /// Another mode from now on.
    pub(super) fn set(&self, mode: WriteMode) {
        self.0.store(mode == WriteMode::Back, Ordering::SeqCst);
    }
}
