//! The serial port between the guest's bus and the console's input.
//!
//! A guest that writes can wait inside the port until the console has room, and room is made by the control loop. So
//! the control loop must never wait for the port: it tries, and comes back later if a vCPU is inside.

use devices::bus::BusDevice;
use devices::legacy::serial::Serial;
use std::sync::{Mutex, PoisonError, TryLockError};

/// The port, with at most one caller inside.
pub(super) struct Port(Mutex<Serial>);

/// A vCPU is inside the port; come back later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Busy;

impl Port {
    pub(super) fn new(serial: Serial) -> Self {
        Self(Mutex::new(serial))
    }

    /// Gives `bytes` to the guest; returns how many the port took.
    pub(super) fn try_input(&self, bytes: &[u8]) -> Result<usize, Busy> {
        match self.0.try_lock() {
            Ok(serial) => Ok(serial.input(bytes)),
            Err(TryLockError::Poisoned(serial)) => Ok(serial.into_inner().input(bytes)),
            Err(TryLockError::WouldBlock) => Err(Busy),
        }
    }
}

impl BusDevice for Port {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
    }
}
