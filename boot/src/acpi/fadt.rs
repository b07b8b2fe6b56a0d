//! FADT: hardware-reduced, with the reset and sleep registers (ACPI 6.5, 5.2.9).

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

/// `IAPC_BOOT_ARCH`, bit 2: no VGA. The clear bits matter too: no 8042 keyboard controller to probe (bit 1), MSI may be
/// used (bit 3), there is a CMOS clock (bit 5).
const VGA_NOT_PRESENT: u16 = 1 << 2;

/// The table, for a DSDT at `dsdt_addr`.
pub(super) fn build(dsdt_addr: u64) -> FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt_addr)
        .flag(Flags::Wbinvd)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // These two say that the buttons are devices in the DSDT, if anywhere, not fixed hardware.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = VGA_NOT_PRESENT.into();
    fadt.century = layout::RTC_CENTURY;
    fadt.reset_reg = byte_port(layout::RESET.base);
    fadt.reset_value = layout::RESET_BY_ACPI;
    fadt.sleep_control_reg = byte_port(layout::SLEEP_CONTROL);
    fadt.sleep_status_reg = byte_port(layout::SLEEP_STATUS);
    fadt.finalize()
}

fn byte_port(port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ONE_CPU, table, u32_at, u64_at};

    #[test]
    fn fadt_names_reset_and_sleep_registers() {
        let fadt = table(&ONE_CPU, "FACP");
        assert_eq!(fadt.len(), 276);
        assert_eq!(u32_at(&fadt, 112), (1 << 20) | (1 << 10) | (1 << 5) | (1 << 4) | 1);
        assert_eq!((fadt[116], u64_at(&fadt, 120), fadt[128]), (1, 0x602, 1));
        assert_eq!((fadt[244], u64_at(&fadt, 248)), (1, 0x600));
        assert_eq!((fadt[256], u64_at(&fadt, 260)), (1, 0x601));
    }

    #[test]
    fn fadt_says_cmos_clock_but_neither_keyboard_nor_vga() {
        let fadt = table(&ONE_CPU, "FACP");
        assert_eq!((fadt[109], fadt[110]), (0b100, 0));
        assert_eq!(fadt[108], 0x32);
    }
}
