//! The chipset's reset control register (`RST_CNT` of Intel's ICH, port 0xCF9), which lies among the ports of the PCI
//! configuration mechanism: they take nothing but a whole dword there, so a byte at this port is the register's.
//!
//! Linux writes it with `reboot=p`: first what kind of reset (bit 1), then that it is to be (bit 2).

use crate::bus::BusDevice;
use crate::legacy::event::{Events, MachineEvent, ResetLine};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// The register's offset among the configuration ports, which begin at 0xCF8.
const RST_CNT: u64 = 1;

/// Reset the processor. It is not kept: it reads 0 after a reset.
const RST_CPU: u8 = 1 << 2;
/// The kind of reset: bit 1 a hard one, bit 3 with a power cycle. All are one here.
const KIND: u8 = 1 << 3 | 1 << 1;

/// The register, in front of the device that has the other ports.
pub struct ResetControl {
    behind: Arc<dyn BusDevice>,
    /// The kind as last written. Relaxed: nothing else depends on it.
    kind: AtomicU8,
    events: Arc<dyn Events>,
}

impl ResetControl {
    /// Passes on to `behind` all but what is the register's, and reports resets to `events`.
    pub fn new(behind: Arc<dyn BusDevice>, events: Arc<dyn Events>) -> Self {
        Self { behind, kind: AtomicU8::new(0), events }
    }
}

impl BusDevice for ResetControl {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data) {
            (RST_CNT, [value]) => *value = self.kind.load(Ordering::Relaxed),
            (_, data) => self.behind.read(offset, data),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (RST_CNT, [value]) => {
                self.kind.store(value & KIND, Ordering::Relaxed);
                if value & RST_CPU != 0 {
                    self.events.raise(MachineEvent::Reset(ResetLine::Chipset));
                }
            }
            _ => self.behind.write(offset, data),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::event::tests::Recorder;
    use std::sync::Mutex;

    /// Remembers what is written, and reads 0x55.
    #[derive(Default)]
    struct Behind(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Behind {
        fn read(&self, _offset: u64, data: &mut [u8]) {
            data.fill(0x55);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn register() -> (ResetControl, Arc<Behind>, Arc<Recorder>) {
        let (behind, events) = (Arc::new(Behind::default()), Recorder::new());
        (ResetControl::new(behind.clone(), events.clone()), behind, events)
    }

    #[test]
    fn cold_and_warm_resets_of_linux_reset() {
        for code in [0x0e, 0x06] {
            let (register, behind, events) = register();
            let mut value = [0xff];

            register.read(1, &mut value);
            register.write(1, &[value[0] | 2]);
            assert_eq!(events.seen(), []);
            register.write(1, &[value[0] | code]);

            assert_eq!(events.seen(), [MachineEvent::Reset(ResetLine::Chipset)]);
            assert!(behind.0.lock().unwrap().is_empty());
        }
    }

    #[test]
    fn kind_reads_back_and_the_reset_bit_does_not() {
        let (register, ..) = register();
        let mut value = [0xff];

        register.write(1, &[0xff]);
        register.read(1, &mut value);

        assert_eq!(value, [0x0a]);
    }

    #[test]
    fn other_widths_and_ports_are_those_of_the_device_behind() {
        let (register, behind, events) = register();
        let (mut dword, mut byte) = ([0; 4], [0; 1]);

        register.write(0, &[0xff; 4]);
        register.write(0, &[0xff]);
        register.write(1, &[0xff; 2]);
        register.read(0, &mut dword);
        register.read(4, &mut byte);

        assert_eq!(behind.0.lock().unwrap().len(), 3);
        assert_eq!((dword, byte, events.seen()), ([0x55; 4], [0x55], vec![]));
    }
}
