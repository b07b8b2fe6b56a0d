//! The reset line of the i8042 keyboard controller, and nothing else of it.
//!
//! Ports 0x60 to 0x64. Linux' `reboot=k` waits until status bit 1 (input buffer full) is clear, then writes 0xfe to the
//! command port. Status therefore reads 0: ready, nothing to fetch. There is no keyboard, which the FADT must say
//! (IAPC_BOOT_ARCH without the 8042 flag): a kernel that looks for one all the same waits half a second for an answer
//! to its first command.

use crate::bus::BusDevice;
use crate::legacy::byte_ports::{self, lock};
use crate::legacy::event::{Events, MachineEvent, ResetLine};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use vm_superio::{I8042Device, Trigger};

/// Length in ports, from the data port on. The ports between data and command belong to no device.
pub const PORTS: u64 = 5;

const DATA: u64 = 0;
const COMMAND: u64 = 4;

/// The device.
pub struct I8042 {
    core: Mutex<I8042Device<Pulse>>,
}

impl I8042 {
    /// Reports resets to `events`.
    pub fn new(events: Arc<dyn Events>) -> Self {
        Self { core: Mutex::new(I8042Device::new(Pulse(events))) }
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut core = lock(&self.core);
        byte_ports::read(offset, data, |port| match port {
            DATA => core.read(0),
            COMMAND => core.read(4),
            _ => 0xff,
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut core = lock(&self.core);
        byte_ports::write(offset, data, |port, value| {
            if port == COMMAND {
                let Ok(()) = core.write(4, value);
            }
        });
    }
}

struct Pulse(Arc<dyn Events>);

impl Trigger for Pulse {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.raise(MachineEvent::Reset(ResetLine::Keyboard));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::event::tests::Recorder;

    #[test]
    fn reset_command_resets() {
        let events = Recorder::new();
        let device = I8042::new(events.clone());

        device.write(COMMAND, &[0xfe]);

        assert_eq!(events.seen(), [MachineEvent::Reset(ResetLine::Keyboard)]);
    }

    #[test]
    fn other_commands_and_the_data_port_do_nothing() {
        let events = Recorder::new();
        let device = I8042::new(events.clone());

        device.write(COMMAND, &[0xaa]);
        device.write(DATA, &[0xfe]);
        device.write(DATA, &[0xfe; 4]);

        assert_eq!(events.seen(), []);
    }

    #[test]
    fn status_is_ready_and_empty() {
        let device = I8042::new(Recorder::new());
        let mut data = [0xaa; 5];

        device.read(DATA, &mut data);

        assert_eq!(data, [0, 0xff, 0xff, 0xff, 0]);
    }
}
