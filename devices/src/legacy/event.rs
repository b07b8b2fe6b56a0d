//! Requests of a guest to the machine as a whole, and their receiver.

/// A request of the guest that ends or restarts the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineEvent {
    /// Entered the soft-off state.
    PowerOff,
    /// Reset the machine.
    Reset(ResetLine),
    /// Reported that its kernel panicked.
    Panicked,
    /// Wrote this code to the debug-exit port.
    Exit(u8),
}

/// The register through which a guest resets the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetLine {
    /// The command port of the keyboard controller, 0x64.
    Keyboard,
    /// The chipset's reset control register, 0xCF9.
    Chipset,
    /// The reset register that the FADT names.
    Acpi,
    /// The same register, written by the code at the real-mode reset vector.
    Vector,
}

/// Where devices report [`MachineEvent`]s. The VMM implements it.
///
/// Called by vCPU threads in the middle of the guest's write, also by several at once and more than once: the guest
/// runs on until the VMM stops it, so the first event decides and the implementation keeps it. It must not block.
pub trait Events: Send + Sync {
    /// Takes note of `event`.
    fn raise(&self, event: MachineEvent);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Remembers every event.
    #[derive(Default)]
    pub(in crate::legacy) struct Recorder(Mutex<Vec<MachineEvent>>);

    impl Recorder {
        pub(in crate::legacy) fn new() -> Arc<Self> {
            Arc::default()
        }

        pub(in crate::legacy) fn seen(&self) -> Vec<MachineEvent> {
            self.0.lock().unwrap().clone()
        }
    }

    impl Events for Recorder {
        fn raise(&self, event: MachineEvent) {
            self.0.lock().unwrap().push(event);
        }
    }
}
