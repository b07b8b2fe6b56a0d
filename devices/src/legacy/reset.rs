//! The machine's own reset register: one port, whose value says who resets.
//!
//! The FADT names it with one value, and the code that the VMM leaves at the real-mode reset vector writes another.

use crate::bus::BusDevice;
use crate::legacy::event::{Events, MachineEvent, ResetLine};
use std::sync::Arc;

/// Length in ports.
pub const PORTS: u64 = 1;

/// The value that the FADT names.
pub const BY_ACPI: u8 = 1;
/// The value that the code at the reset vector writes.
pub const BY_VECTOR: u8 = 2;

/// The device. Other values do nothing; reads return all ones.
pub struct ResetRegister {
    events: Arc<dyn Events>,
}

impl ResetRegister {
    /// Reports resets to `events`.
    pub fn new(events: Arc<dyn Events>) -> Self {
        Self { events }
    }
}

impl BusDevice for ResetRegister {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        match data.first() {
            Some(&BY_ACPI) => self.events.raise(MachineEvent::Reset(ResetLine::Acpi)),
            Some(&BY_VECTOR) => self.events.raise(MachineEvent::Reset(ResetLine::Vector)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::event::tests::Recorder;

    #[test]
    fn value_tells_who_resets() {
        let events = Recorder::new();
        let device = ResetRegister::new(events.clone());

        device.write(0, &[BY_ACPI]);
        device.write(0, &[BY_VECTOR]);

        assert_eq!(events.seen(), [ResetLine::Acpi, ResetLine::Vector].map(MachineEvent::Reset));
    }

    #[test]
    fn other_values_and_reads_do_nothing() {
        let events = Recorder::new();
        let device = ResetRegister::new(events.clone());
        let mut data = [0];

        device.write(0, &[0]);
        device.write(0, &[0xfe]);
        device.read(0, &mut data);

        assert_eq!((data, events.seen()), ([0xff], vec![]));
    }
}
