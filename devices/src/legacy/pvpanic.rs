//! pvpanic: the guest says that it panicked (QEMU's `docs/specs/pvpanic`, Linux `drivers/misc/pvpanic`).
//!
//! A guest that has a crash kernel loaded says so instead and dumps by itself. That report is accepted, so that such a
//! guest is left alone; the reset at the end of its dump is what the VMM hears of.

use crate::bus::BusDevice;
use crate::legacy::event::{Events, MachineEvent};
use std::sync::Arc;

/// Bit 0: the kernel panicked and the machine is of no more use.
const PANICKED: u8 = 1 << 0;
/// Bit 1: the kernel panicked and a crash kernel takes over.
const CRASH_LOADED: u8 = 1 << 1;

/// The device: one byte-wide port.
pub struct Pvpanic {
    events: Arc<dyn Events>,
}

impl Pvpanic {
    /// Reports panics to `events`.
    pub fn new(events: Arc<dyn Events>) -> Self {
        Self { events }
    }
}

impl BusDevice for Pvpanic {
    /// The events that can be reported.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(PANICKED | CRASH_LOADED);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data.first().is_some_and(|bits| bits & PANICKED != 0) {
            self.events.raise(MachineEvent::Panicked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::event::tests::Recorder;

    #[test]
    fn panicked_is_reported() {
        let events = Recorder::new();
        let device = Pvpanic::new(events.clone());

        device.write(0, &[PANICKED]);

        assert_eq!(events.seen(), [MachineEvent::Panicked]);
    }

    #[test]
    fn crash_kernel_and_unknown_bits_leave_the_guest_alone() {
        let events = Recorder::new();
        let device = Pvpanic::new(events.clone());

        device.write(0, &[CRASH_LOADED]);
        device.write(0, &[0xfc]);

        assert_eq!(events.seen(), []);
    }

    #[test]
    fn read_tells_what_can_be_reported() {
        let device = Pvpanic::new(Recorder::new());
        let mut data = [0];

        device.read(0, &mut data);

        assert_eq!(data, [3]);
    }
}
