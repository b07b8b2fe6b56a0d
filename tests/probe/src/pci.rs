//! PCI functions of bus 0: configuration accesses by both mechanisms, base address registers, capabilities.
//!
//! Sections are of the PCI Local Bus Specification 3.0 and, for ECAM, the PCI Express Base Specification.

use core::sync::atomic::{AtomicU64, Ordering};
use crate::acpi::Ecam;
use crate::{cpu, paging};

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

/// Registers of the type 0 header (6.1).
pub(crate) mod reg {
    pub(crate) const VENDOR: u16 = 0x00;
    pub(crate) const DEVICE: u16 = 0x02;
    pub(crate) const COMMAND: u16 = 0x04;
    pub(crate) const STATUS: u16 = 0x06;
    pub(crate) const REVISION: u16 = 0x08;
    pub(crate) const CLASS: u16 = 0x0a;
    pub(crate) const HEADER_TYPE: u16 = 0x0e;
    pub(crate) const BAR0: u16 = 0x10;
    pub(crate) const SUBSYSTEM: u16 = 0x2c;
    pub(crate) const CAPABILITIES: u16 = 0x34;
    pub(crate) const INTERRUPT_LINE: u16 = 0x3c;
    pub(crate) const INTERRUPT_PIN: u16 = 0x3d;
}

/// Bits of the command register (6.2.2).
pub(crate) mod command {
    pub(crate) const MEMORY: u16 = 1 << 1;
    pub(crate) const MASTER: u16 = 1 << 2;
    pub(crate) const INTX_OFF: u16 = 1 << 10;
}

/// Base address registers of a type 0 header.
pub(crate) const BARS: u8 = 6;

/// How configuration space is reached.
#[derive(Clone, Copy)]
pub(crate) enum Mechanism {
    /// Ports 0xcf8 and 0xcfc.
    Cf8,
    /// The memory-mapped window.
    Ecam(u64),
}

/// One function on bus 0.
#[derive(Clone, Copy)]
pub(crate) struct Function {
    /// Device number << 3 | function number.
    pub(crate) devfn: u8,
    /// The mechanism its accesses use.
    pub(crate) via: Mechanism,
}

macro_rules! config_access {
    ($read:ident, $write:ident, $int:ty, $in:ident, $out:ident, $mmio_read:ident, $mmio_write:ident, $mask:literal) => {
        /// Reads a register of this width at an offset aligned to it.
        pub(crate) fn $read(self, offset: u16) -> $int {
            match self.via {
                Mechanism::Cf8 => {
                    self.select(offset);
                    cpu::$in(CONFIG_DATA + (offset & $mask))
                }
                Mechanism::Ecam(base) => cpu::$mmio_read(self.ecam_address(base, offset)),
            }
        }

        /// Writes a register of this width at an offset aligned to it.
        pub(crate) fn $write(self, offset: u16, value: $int) {
            match self.via {
                Mechanism::Cf8 => {
                    self.select(offset);
                    cpu::$out(CONFIG_DATA + (offset & $mask), value);
                }
                Mechanism::Ecam(base) => cpu::$mmio_write(self.ecam_address(base, offset), value),
            }
        }
    };
}

impl Function {
    config_access!(read8, write8, u8, in8, out8, read8, write8, 3);
    config_access!(read16, write16, u16, in16, out16, read16, write16, 2);
    config_access!(read32, write32, u32, in32, out32, read32, write32, 0);

    /// The same function through another mechanism.
    pub(crate) fn through(self, via: Mechanism) -> Self {
        Self { via, ..self }
    }

    /// Returns whether something answers at this number.
    pub(crate) fn present(self) -> bool {
        self.read16(reg::VENDOR) != 0xffff
    }

    /// Runs `f` with some command bits cleared and restores them.
    pub(crate) fn without_command<T>(self, bits: u16, f: impl FnOnce() -> T) -> T {
        let before = self.read16(reg::COMMAND);
        self.write16(reg::COMMAND, before & !bits);
        let result = f();
        self.write16(reg::COMMAND, before);
        result
    }

    /// Capabilities as (id, offset), at most 48: more do not fit into 192 bytes (6.7).
    pub(crate) fn capabilities(self) -> impl Iterator<Item = (u8, u16)> {
        let mut next = self.read8(reg::CAPABILITIES);
        core::iter::from_fn(move || {
            let offset = u16::from(next & !3);
            (offset >= 0x40).then(|| {
                next = self.read8(offset + 1);
                (self.read8(offset), offset)
            })
        })
        .take(48)
    }

    /// Sizes a base address register, leaving its value as it was. Memory decoding is off meanwhile (6.2.5.1).
    pub(crate) fn bar(self, idx: u8) -> Option<Bar> {
        let offset = reg::BAR0 + 4 * u16::from(idx);
        self.without_command(command::MEMORY, || {
            let low = self.read32(offset);
            self.write32(offset, u32::MAX);
            let low_mask = self.read32(offset);
            self.write32(offset, low);
            if low_mask == 0 || low_mask & 1 != 0 {
                return None;
            }
            let wide = low_mask >> 1 & 3 == 2;
            let (mut address, mut mask) = (u64::from(low & !0xf), u64::from(low_mask & !0xf) | 0xffff_ffff << 32);
            if wide {
                let high = self.read32(offset + 4);
                self.write32(offset + 4, u32::MAX);
                let high_mask = self.read32(offset + 4);
                self.write32(offset + 4, high);
                address |= u64::from(high) << 32;
                mask = mask & 0xffff_ffff | u64::from(high_mask) << 32;
            }
            Some(Bar { idx, address, size: (!mask).wrapping_add(1), wide, mask })
        })
    }

    /// Where a memory base address register points, without sizing it. 0 for I/O registers and indices past the last.
    pub(crate) fn bar_address(self, idx: u8) -> u64 {
        let offset = reg::BAR0 + 4 * u16::from(idx);
        if idx >= BARS {
            return 0;
        }
        match self.read32(offset) {
            low if low & 1 != 0 => 0,
            low if low >> 1 & 3 == 2 => u64::from(low & !0xf) | u64::from(self.read32(offset + 4)) << 32,
            low => u64::from(low & !0xf),
        }
    }

    /// Points a base address register somewhere else and makes that place accessible.
    pub(crate) fn move_bar(self, bar: Bar, address: u64) {
        paging::map(address);
        let offset = reg::BAR0 + 4 * u16::from(bar.idx);
        let [low, high] = halves(address);
        self.without_command(command::MEMORY, || {
            self.write32(offset, low);
            if bar.wide {
                self.write32(offset + 4, high);
            }
        });
    }

    fn select(self, offset: u16) {
        cpu::out32(CONFIG_ADDRESS, 1 << 31 | u32::from(self.devfn) << 8 | u32::from(offset & 0xfc));
    }

    fn ecam_address(self, base: u64, offset: u16) -> u64 {
        base + (u64::from(self.devfn) << 12) + u64::from(offset & 0xfff)
    }
}

/// A memory base address register.
#[derive(Clone, Copy)]
pub(crate) struct Bar {
    /// Index of its (lower) register.
    pub(crate) idx: u8,
    /// Where it points, 0 if it was never assigned.
    pub(crate) address: u64,
    /// Bytes, a power of two on a sound device.
    pub(crate) size: u64,
    /// True if it takes two registers.
    pub(crate) wide: bool,
    /// The writable address bits.
    pub(crate) mask: u64,
}

/// The low and the high half of an address.
pub(crate) fn halves(value: u64) -> [u32; 2] {
    let bytes = value.to_le_bytes();
    let half = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    [half(0), half(4)]
}

/// All functions of bus 0, with every memory BAR assigned and decoding on.
pub(crate) fn enumerate(ecam: Option<Ecam>) -> impl Iterator<Item = Function> {
    let via = ecam.filter(|e| e.buses.0 == 0).map_or(Mechanism::Cf8, |e| {
        paging::map(e.base);
        Mechanism::Ecam(e.base)
    });
    // Conventional access decides what exists, so that a wrong ECAM base shows up in the checks and not as an empty
    // machine.
    let function = |devfn| Function { devfn, via: Mechanism::Cf8 };
    (0..=u8::MAX)
        .step_by(8)
        .filter(move |&first| function(first).present())
        .flat_map(move |first| {
            let functions = if function(first).read8(reg::HEADER_TYPE) & 0x80 != 0 { 8 } else { 1 };
            (first..=u8::MAX).take(functions)
        })
        .map(function)
        .filter(|f| f.present())
        .map(move |f| f.through(via))
}

/// Where BARs go that firmware left unassigned: below the local APICs, above any RAM of the VMs that leave them so.
static NEXT_BAR: AtomicU64 = AtomicU64::new(0xd000_0000);

/// Assigns the function's unassigned BARs, makes all of them accessible and turns on decoding and bus mastering.
pub(crate) fn enable(function: Function) {
    let mut idx = 0;
    while idx < BARS {
        let Some(bar) = function.bar(idx) else {
            idx += 1;
            continue;
        };
        if bar.address == 0 {
            function.move_bar(bar, free_address(bar.size));
        }
        paging::map(bar.address);
        idx += if bar.wide { 2 } else { 1 };
    }
    let enabled = function.read16(reg::COMMAND) | command::MEMORY | command::MASTER;
    function.write16(reg::COMMAND, enabled);
}

/// A naturally aligned place that no BAR of this program's making uses.
pub(crate) fn free_address(size: u64) -> u64 {
    let start = NEXT_BAR.load(Ordering::Relaxed).next_multiple_of(size);
    NEXT_BAR.store(start + size, Ordering::Relaxed);
    start
}
