//! The debug-exit port: a guest ends the VM with a code of its own. For tests and bare-metal programs; Linux does not
//! know it.

use crate::bus::BusDevice;
use crate::legacy::event::{Events, MachineEvent};
use std::sync::Arc;

/// Length in ports. A program may write a byte, a word or a dword.
pub const PORTS: u64 = 4;

/// The device. A write of any width to its first port exits with the lowest byte; reads return all ones.
pub struct DebugExit {
    events: Arc<dyn Events>,
}

impl DebugExit {
    /// Reports codes to `events`.
    pub fn new(events: Arc<dyn Events>) -> Self {
        Self { events }
    }
}

impl BusDevice for DebugExit {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Some(&code)) = (offset, data.first()) {
            self.events.raise(MachineEvent::Exit(code));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::event::tests::Recorder;

    #[test]
    fn any_width_exits_with_the_low_byte() {
        let events = Recorder::new();
        let device = DebugExit::new(events.clone());

        device.write(0, &[7]);
        device.write(0, &[8, 1]);
        device.write(0, &[9, 1, 2, 3]);

        let codes = [7, 8, 9].map(MachineEvent::Exit);
        assert_eq!(events.seen(), codes);
    }

    #[test]
    fn other_ports_and_reads_do_nothing() {
        let events = Recorder::new();
        let device = DebugExit::new(events.clone());
        let mut data = [0; 4];

        device.write(1, &[7]);
        device.read(0, &mut data);

        assert_eq!((data, events.seen()), ([0xff; 4], vec![]));
    }
}
