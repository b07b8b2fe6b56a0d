//! ACPI power on a hardware-reduced platform: the sleep registers, and the power button.
//!
//! The guest powers off by writing the sleep control register (ACPI 6.5 4.8.3.7). The host asks for it with one edge on
//! the interrupt of the generic event device, whose `_EVT` method notifies the power button and reads no register.

use crate::bus::BusDevice;
use crate::irq::IrqLine;
use crate::legacy::byte_ports;
use crate::legacy::event::{Events, MachineEvent};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Length in ports: sleep control at offset 0, sleep status at offset 1.
pub const PORTS: u64 = 2;

const SLEEP_CONTROL: u64 = 0;
const SLEEP_STATUS: u64 = 1;

/// Sleep control bits 4:2, SLP_TYP.
const SLP_TYP_SHIFT: u8 = 2;
const SLP_TYP_MASK: u8 = 0b111 << SLP_TYP_SHIFT;
/// Sleep control bit 5, SLP_EN: write-only.
const SLP_EN: u8 = 1 << 5;
/// The SLP_TYP of soft off. The DSDT's `_S5` must say the same.
pub const SLP_TYP_S5: u8 = 5;

/// The sleep control and sleep status registers.
///
/// Soft off is the only state: other values of SLP_TYP are kept and do nothing, as no other `_Sx` object is declared.
/// Since the machine never sleeps, it never wakes, and WAK_STS in the status register stays 0.
pub struct SleepRegisters {
    /// SLP_TYP as last written. Relaxed: nothing else depends on it.
    control: AtomicU8,
    events: Arc<dyn Events>,
}

impl SleepRegisters {
    /// Reports power-off to `events`.
    pub fn new(events: Arc<dyn Events>) -> Self {
        Self { control: AtomicU8::new(0), events }
    }

    fn write_control(&self, value: u8) {
        let slp_typ = value & SLP_TYP_MASK;
        self.control.store(slp_typ, Ordering::Relaxed);
        if value & SLP_EN != 0 && slp_typ == SLP_TYP_S5 << SLP_TYP_SHIFT {
            self.events.raise(MachineEvent::PowerOff);
        }
    }
}

impl BusDevice for SleepRegisters {
    fn read(&self, offset: u64, data: &mut [u8]) {
        byte_ports::read(offset, data, |port| match port {
            SLEEP_CONTROL => self.control.load(Ordering::Relaxed),
            SLEEP_STATUS => 0,
            _ => 0xff,
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        byte_ports::write(offset, data, |port, value| {
            if port == SLEEP_CONTROL {
                self.write_control(value);
            }
        });
    }
}

/// The power button. The guest decides what it means; Linux with a running init powers off.
pub struct PowerButton {
    line: Arc<dyn IrqLine>,
}

impl PowerButton {
    /// A button on `line`, the interrupt of the generic event device.
    pub fn new(line: Arc<dyn IrqLine>) -> Self {
        Self { line }
    }

    /// Presses the button once.
    ///
    /// # Errors
    /// If the host cannot deliver the interrupt.
    pub fn press(&self) -> io::Result<()> {
        self.line.raise()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::event::tests::Recorder;

    #[test]
    fn slp_en_with_type_5_powers_off() {
        let events = Recorder::new();
        let device = SleepRegisters::new(events.clone());

        device.write(0, &[SLP_TYP_S5 << 2 | SLP_EN]);

        assert_eq!(events.seen(), [MachineEvent::PowerOff]);
    }

    #[test]
    fn type_without_enable_and_other_types_do_nothing() {
        let events = Recorder::new();
        let device = SleepRegisters::new(events.clone());

        device.write(0, &[SLP_TYP_S5 << 2]);
        device.write(0, &[3 << 2 | SLP_EN]);
        device.write(1, &[SLP_TYP_S5 << 2 | SLP_EN]);

        assert_eq!(events.seen(), []);
    }

    #[test]
    fn enable_reads_back_as_zero_and_status_stays_clear() {
        let device = SleepRegisters::new(Recorder::new());
        let mut data = [0xff; 2];

        device.write(0, &[3 << 2 | SLP_EN, 0x80]);
        device.read(0, &mut data);

        assert_eq!(data, [3 << 2, 0]);
    }
}
