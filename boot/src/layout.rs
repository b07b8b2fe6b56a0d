//! The guest's physical address map and port map, in one place.
//!
//! Both sides of the machine read these constants: this crate writes them into the tables that the guest
//! reads, and `vmm` hands the same ones to the devices. Const assertions at the end of the file prove that
//! nothing overlaps, so a change that would break the map does not compile.
//!
//! ```text
//! 0                 GDT, PVH start info, zero page, page tables, command line (all free to reuse after boot)
//! 0xA_0000          legacy hole, not given to the guest
//! 0xE_0000          ACPI tables, RSDP first (where a BIOS would leave it)
//! 0xF_8000          SMBIOS tables
//! 0xF_FFF0          the reset vector
//! 0x10_0000         RAM: kernel, initrd
//! 0xC000_0000       PCI window for 32-bit BARs             (RAM above 3 GiB continues at 4 GiB)
//! 0xE000_0000       ECAM
//! 0xFEC0_0000       I/O APIC
//! 0xFEE0_0000       local APIC
//! 0xFFFB_C000       pages that KVM needs for itself on some processors
//! 0x1_0000_0000     RAM above 3 GiB
//! after the RAM     PCI window for 64-bit BARs
//! ```

use vm_memory::GuestAddress;

/// Bytes in a page.
pub const PAGE_SIZE: u64 = 4096;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A span of guest physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First address.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
}

impl Window {
    /// First address behind the window. Windows of this crate end below 2^64, so this cannot overflow.
    pub const fn end(&self) -> u64 {
        self.base + self.size
    }

    const fn is_apart_from(&self, other: &Window) -> bool {
        self.end() <= other.base || other.end() <= self.base
    }
}

/// The word in the BIOS data area that says what kind of boot a reset is to be. Linux writes it before each reset
/// (`native_machine_emergency_restart` in its `arch/x86/kernel/reboot.c`) and neither reads it nor uses the page
/// otherwise.
pub const RESET_MARK: Window = Window { base: 0x472, size: 2 };
/// The mark's value at the start, which no kernel writes: it tells a reset that Linux asked for from any other.
pub const RESET_MARK_AT_START: u16 = 0x4D56;
/// The mark's value before a warm boot.
pub const RESET_MARK_WARM: u16 = 0x1234;
/// GDT of the boot vCPU.
pub const GDT: Window = Window { base: 0x500, size: 0x100 };
/// PVH start info, its module list and its memory map.
pub const PVH_START_INFO: Window = Window { base: 0x6000, size: PAGE_SIZE };
/// `struct boot_params` of the Linux boot protocol.
pub const ZERO_PAGE: Window = Window { base: 0x7000, size: PAGE_SIZE };
/// Stack of the boot vCPU until the kernel switches to its own; `rsp` starts at its end.
pub const BOOT_STACK: Window = Window { base: 0x8000, size: PAGE_SIZE };
/// Identity page tables for the 64-bit entry: PML4, PDPT, and four page directories for 4 GiB in 2 MiB pages.
pub const PAGE_TABLES: Window = Window { base: 0x9000, size: 6 * PAGE_SIZE };
/// The kernel command line with its terminating zero.
pub const CMDLINE: Window = Window { base: 0x2_0000, size: 64 * KIB };
/// Conventional memory. The guest gets all of it as RAM; what lies there at reset it may overwrite.
pub const LOW_RAM: Window = Window { base: 0, size: 640 * KIB };
/// ACPI tables. The BIOS area, so that a guest that looks for the RSDP by scanning finds it.
pub const ACPI: Window = Window { base: 0xE_0000, size: 96 * KIB };
/// The end of the BIOS area, which is not the guest's to use.
pub const BIOS: Window = Window { base: ACPI.end(), size: HIGH_RAM_BASE - ACPI.end() };
/// SMBIOS tables, the entry point first: Linux looks for it from 0xF_0000 on.
pub const SMBIOS: Window = Window { base: BIOS.base, size: BIOS.size - RESET_VECTOR.size };
/// Where a processor that is reset to real mode begins: F000:FFF0, which is FFFF:0. Linux jumps there as its last
/// resort.
pub const RESET_VECTOR: Window = Window { base: 0xF_FFF0, size: 16 };
/// Where ordinary RAM begins. No kernel may be loaded below.
pub const HIGH_RAM_BASE: u64 = MIB;

/// End of the RAM below 4 GiB: the 1 GiB hole behind it holds the devices.
pub const RAM_BELOW_4G_END: u64 = 3 * GIB;
/// Where RAM continues behind the hole.
pub const RAM_ABOVE_4G_BASE: u64 = 4 * GIB;

/// 32-bit PCI memory window.
pub const PCI_MMIO32: Window = Window { base: RAM_BELOW_4G_END, size: 512 * MIB };
/// Last bus of the PCI segment; the first is 0.
pub const PCI_LAST_BUS: u8 = 0;
/// PCI Express enhanced configuration space: 1 MiB for each bus.
pub const ECAM: Window = Window { base: 0xE000_0000, size: (PCI_LAST_BUS as u64 + 1) * MIB };
/// I/O APIC registers.
pub const IOAPIC: Window = Window { base: 0xFEC0_0000, size: PAGE_SIZE };
/// Pins of the I/O APIC, global system interrupts 0 to 23.
pub const IOAPIC_PINS: u32 = 24;
/// Local APIC registers.
pub const LAPIC: Window = Window { base: 0xFEE0_0000, size: PAGE_SIZE };
/// The page for `KVM_SET_IDENTITY_MAP_ADDR`.
pub const KVM_IDENTITY_MAP: Window = Window { base: 0xFFFB_C000, size: PAGE_SIZE };
/// The three pages for `KVM_SET_TSS_ADDR`.
pub const KVM_TSS: Window = Window { base: 0xFFFB_D000, size: 3 * PAGE_SIZE };

/// A range of x86 I/O ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// First port.
    pub base: u16,
    /// Number of ports.
    pub count: u8,
}

impl Ports {
    const fn is_apart_from(&self, other: &Ports) -> bool {
        self.base as u32 + self.count as u32 <= other.base as u32
            || other.base as u32 + other.count as u32 <= self.base as u32
    }
}

/// 16550A serial port, the guest's `ttyS0`.
pub const SERIAL: Ports = Ports { base: 0x3F8, count: 8 };
/// Interrupt of [`SERIAL`], edge triggered.
pub const SERIAL_GSI: u32 = 4;
/// CMOS real-time clock: index and data. It has no interrupt: alarms are not emulated.
pub const RTC: Ports = Ports { base: 0x70, count: 2 };
/// The CMOS byte that holds the century; the FADT names it.
pub const RTC_CENTURY: u8 = 0x32;
/// 8254 timer, of which nothing but channel 2 is emulated.
pub const PIT: Ports = Ports { base: 0x40, count: 4 };
/// i8042 keyboard controller, of which nothing but the reset line is emulated; 0x61 is the timer's.
pub const I8042: Ports = Ports { base: 0x60, count: 5 };
/// PCI configuration mechanism 1: address at +0, data at +4. The byte at +1 is the chipset's reset control register.
pub const PCI_CONFIG: Ports = Ports { base: 0xCF8, count: 8 };
/// pvpanic: the guest says that it has panicked.
pub const PVPANIC: Ports = Ports { base: 0x505, count: 1 };
/// Debug exit: the guest ends the VM with a code of its choice.
pub const DEBUG_EXIT: Ports = Ports { base: 0xF4, count: 4 };
/// ACPI sleep registers of hardware-reduced machines (ACPI 6.5, 4.8.3.7): control, then status.
pub const SLEEP: Ports = Ports { base: 0x600, count: 2 };
/// The sleep control register.
pub const SLEEP_CONTROL: u16 = SLEEP.base;
/// The sleep status register.
pub const SLEEP_STATUS: u16 = SLEEP.base + 1;
/// The machine's own reset register. Which value it gets tells who resets.
pub const RESET: Ports = Ports { base: 0x602, count: 1 };
/// The value for [`RESET`] that the FADT names.
pub const RESET_BY_ACPI: u8 = 1;
/// The value that the code at [`RESET_VECTOR`] writes to [`RESET`].
pub const RESET_BY_VECTOR: u8 = 2;
/// SLP_TYP of the soft-off state in `\_S5`.
pub const SLEEP_TYPE_S5: u8 = 5;
/// The value that powers the guest off when it writes it to [`SLEEP_CONTROL`]: SLP_TYP in bits 2 to 4, SLP_EN in bit 5.
pub const SLEEP_CONTROL_S5: u8 = (SLEEP_TYPE_S5 << 2) | (1 << 5);
/// Interrupt of the generic event device, edge triggered: one pulse is one press of the power button.
/// It carries nothing else, so there is no event register to read.
pub const POWER_BUTTON_GSI: u32 = 5;
/// Global system interrupts of the PCI devices' pins: the pins of the I/O APIC that no legacy device has.
pub const INTX_FIRST_GSI: u32 = 16;
/// How many there are. Level triggered; devices share them in turn.
pub const INTX_GSIS: u32 = IOAPIC_PINS - INTX_FIRST_GSI;

/// The global system interrupt of pin INTA# of the device with number `device` on the root bus.
pub const fn intx_gsi(device: u8) -> u32 {
    INTX_FIRST_GSI + device as u32 % INTX_GSIS
}

/// The RAM of a guest as base and length in bytes: all of it below the device hole, or split around the hole.
///
/// `vmm` makes one KVM memory slot of each. `mem_bytes` is not checked for sense; the caller has limits of its own.
pub fn ram_regions(mem_bytes: u64) -> Vec<(GuestAddress, u64)> {
    let below = mem_bytes.min(RAM_BELOW_4G_END);
    let mut regions = vec![(GuestAddress(0), below)];
    if mem_bytes > below {
        regions.push((GuestAddress(RAM_ABOVE_4G_BASE), mem_bytes - below));
    }
    regions
}

/// First address behind the RAM of a guest with `mem_bytes` of memory.
pub fn ram_end(mem_bytes: u64) -> u64 {
    if mem_bytes > RAM_BELOW_4G_END {
        RAM_ABOVE_4G_BASE.saturating_add(mem_bytes - RAM_BELOW_4G_END)
    } else {
        mem_bytes
    }
}

/// The largest 64-bit PCI window. Virtio BARs need KiBs; the rest is address space for later, and costs nothing.
const MMIO64_MAX_SIZE: u64 = 64 * GIB;
/// Alignment of the 64-bit PCI window, and the least that is worth announcing.
const MMIO64_ALIGN: u64 = GIB;
/// Address bits that four-level page tables of the guest kernel's direct map reach.
const MMIO64_MAX_PHYS_BITS: u8 = 46;

/// The 64-bit PCI window behind RAM that ends at `ram_end`, for a guest that sees `phys_bits` physical address bits.
///
/// It starts at the first GiB behind the RAM instead of at the top of the address space: that keeps it clear of the
/// HyperTransport hole of AMD processors below 1 TiB for every guest up to 900 GiB. `None` if there is no room.
pub fn window64(ram_end: u64, phys_bits: u8) -> Option<Window> {
    let limit = 1u64 << phys_bits.min(MMIO64_MAX_PHYS_BITS);
    let base = ram_end.max(RAM_ABOVE_4G_BASE).checked_next_multiple_of(MMIO64_ALIGN)?;
    let size = limit.checked_sub(base)?.min(MMIO64_MAX_SIZE);
    (size >= MMIO64_ALIGN).then_some(Window { base, size })
}

/// An address or a length below 4 GiB in the 32 bits that tables have for it.
pub(crate) const fn below_4g(value: u64) -> u32 {
    debug_assert!(value <= 0xFFFF_FFFF);
    (value & 0xFFFF_FFFF) as u32
}

const fn all_windows_apart(windows: &[Window]) -> bool {
    let mut i = 0;
    while i < windows.len() {
        let mut j = i + 1;
        while j < windows.len() {
            if !windows[i].is_apart_from(&windows[j]) {
                return false;
            }
            j += 1;
        }
        i += 1;
    }
    true
}

const fn all_ports_apart(ports: &[Ports]) -> bool {
    let mut i = 0;
    while i < ports.len() {
        let mut j = i + 1;
        while j < ports.len() {
            if !ports[i].is_apart_from(&ports[j]) {
                return false;
            }
            j += 1;
        }
        i += 1;
    }
    true
}

const BOOT_DATA: [Window; 7] = [RESET_MARK, GDT, PVH_START_INFO, ZERO_PAGE, BOOT_STACK, PAGE_TABLES, CMDLINE];

const _: () = {
    assert!(all_windows_apart(&BOOT_DATA));
    let mut i = 0;
    while i < BOOT_DATA.len() {
        assert!(BOOT_DATA[i].end() <= LOW_RAM.end());
        i += 1;
    }
    assert!(all_windows_apart(&[
        LOW_RAM,
        ACPI,
        BIOS,
        Window { base: HIGH_RAM_BASE, size: RAM_BELOW_4G_END - HIGH_RAM_BASE },
        PCI_MMIO32,
        ECAM,
        IOAPIC,
        LAPIC,
        KVM_IDENTITY_MAP,
        KVM_TSS,
        Window { base: RAM_ABOVE_4G_BASE, size: GIB },
    ]));
    assert!(KVM_TSS.end() < RAM_ABOVE_4G_BASE);
    assert!(all_ports_apart(&[SERIAL, RTC, PIT, I8042, PCI_CONFIG, PVPANIC, DEBUG_EXIT, SLEEP, RESET]));
    assert!(SERIAL_GSI != POWER_BUTTON_GSI);
    assert!(SERIAL_GSI < IOAPIC_PINS && POWER_BUTTON_GSI < IOAPIC_PINS);
    assert!(SMBIOS.end() == RESET_VECTOR.base && RESET_VECTOR.end() == BIOS.end());
    assert!(SMBIOS.base >= 0xF_0000 && SMBIOS.base.is_multiple_of(16));
    // The ACPI specification wants the RSDP on a 16-byte boundary of the BIOS area; a page keeps the tables simple.
    assert!(ACPI.base.is_multiple_of(PAGE_SIZE));
    assert!(PAGE_TABLES.base.is_multiple_of(PAGE_SIZE));
    // MCFG tells only the base of bus 0; a base that is not a multiple of the size would shift the buses.
    assert!(ECAM.base.is_multiple_of(ECAM.size));
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_memory_is_one_region() {
        assert_eq!(ram_regions(64 * MIB), [(GuestAddress(0), 64 * MIB)]);
        assert_eq!(ram_end(64 * MIB), 64 * MIB);
    }

    #[test]
    fn three_gib_end_exactly_at_the_hole() {
        assert_eq!(ram_regions(3 * GIB), [(GuestAddress(0), 3 * GIB)]);
        assert_eq!(ram_end(3 * GIB), 3 * GIB);
    }

    #[test]
    fn six_gib_continue_behind_the_hole() {
        assert_eq!(ram_regions(6 * GIB), [(GuestAddress(0), 3 * GIB), (GuestAddress(4 * GIB), 3 * GIB)]);
        assert_eq!(ram_end(6 * GIB), 7 * GIB);
    }

    #[test]
    fn window64_follows_the_ram_and_fits_the_address_bits() {
        assert_eq!(window64(64 * MIB, 40), Some(Window { base: 4 * GIB, size: 64 * GIB }));
        assert_eq!(window64(7 * GIB + 5, 36), Some(Window { base: 8 * GIB, size: 56 * GIB }));
    }

    #[test]
    fn window64_without_room_is_none() {
        assert_eq!(window64(64 * GIB, 36), None);
        assert_eq!(window64(0, 32), None);
        assert_eq!(window64(u64::MAX, 52), None);
    }
}
