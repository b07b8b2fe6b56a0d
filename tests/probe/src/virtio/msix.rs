//! MSI-X as the driver sees it: capability, table, pending bits (PCI Local Bus Specification 3.0, 6.8.2).

use crate::cpu;
use crate::interrupts;
use crate::pci::{Function, halves};

const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
const MASKED: u32 = 1;

/// Where a function's MSI-X structures are.
#[derive(Clone, Copy)]
pub(crate) struct Msix {
    function: Function,
    /// Offset of the capability in configuration space.
    pub(crate) capability: u16,
    /// Number of table entries.
    pub(crate) entries: u16,
    /// Physical address of the table.
    pub(crate) table: u64,
    /// BAR of the table.
    pub(crate) table_bar: u8,
    /// Offset of the table in its BAR.
    pub(crate) table_offset: u32,
    /// Physical address of the pending bits.
    pub(crate) pending: u64,
    /// BAR of the pending bits.
    pub(crate) pending_bar: u8,
    /// Offset of the pending bits in their BAR.
    pub(crate) pending_offset: u32,
}

/// The message control register's enable and mask bits.
#[derive(Clone, Copy)]
pub(crate) enum Control {
    /// MSI-X off.
    Off,
    /// On, every entry masked.
    FunctionMasked,
    /// On.
    On,
}

impl Msix {
    /// Reads the capability.
    pub(crate) fn locate(function: Function, capability: u16) -> Self {
        let place = |register: u16| {
            let value = function.read32(capability + register);
            let bar = value.to_le_bytes()[0] & 7;
            (bar, value & !7, function.bar_address(bar) + u64::from(value & !7))
        };
        let (table_bar, table_offset, table) = place(4);
        let (pending_bar, pending_offset, pending) = place(8);
        let entries = (function.read16(capability + 2) & 0x7ff) + 1;
        Self { function, capability, entries, table, table_bar, table_offset, pending, pending_bar, pending_offset }
    }

    /// Address of a table entry: message address low, high, data, vector control.
    pub(crate) fn entry(&self, idx: u16) -> u64 {
        self.table + 16 * u64::from(idx)
    }

    /// Points an entry at this CPU, counter `counter` of `interrupts`, unmasked.
    pub(crate) fn route(&self, idx: u16, counter: usize) {
        let entry = self.entry(idx);
        let [low, high] = halves(interrupts::message_address());
        cpu::write32(entry + 12, MASKED);
        cpu::write32(entry, low);
        cpu::write32(entry + 4, high);
        cpu::write32(entry + 8, interrupts::message_data(counter));
        cpu::write32(entry + 12, 0);
    }

    /// Masks an entry.
    pub(crate) fn mask(&self, idx: u16) {
        cpu::write32(self.entry(idx) + 12, MASKED);
    }

    /// Unmasks an entry.
    pub(crate) fn unmask(&self, idx: u16) {
        cpu::write32(self.entry(idx) + 12, 0);
    }

    /// Returns whether an entry's pending bit is set.
    pub(crate) fn is_pending(&self, idx: u16) -> bool {
        cpu::read32(self.pending + 4 * u64::from(idx / 32)) >> (idx % 32) & 1 != 0
    }

    /// Sets the message control register.
    pub(crate) fn control(&self, control: Control) {
        let bits = match control {
            Control::Off => 0,
            Control::FunctionMasked => ENABLE | FUNCTION_MASK,
            Control::On => ENABLE,
        };
        self.function.write16(self.capability + 2, bits);
    }
}
