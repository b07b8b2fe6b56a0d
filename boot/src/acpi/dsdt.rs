//! DSDT: the devices that a guest cannot find by itself.
//!
//! PCI root bridge, serial port, clock, power button with its event device, pvpanic, the soft-off state, and
//! the addresses that belong to the board. The virtio devices are found on the PCI bus; the table of interrupt
//! pins (`_PRT`) is for drivers that leave MSI-X off.

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::Platform;
use crate::layout::{self, Ports, Window};
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, Device, EISAName, Equal, IO, If, Interrupt, Memory32Fixed, Method, Name,
    Notify, Package, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

/// Revision 2 makes AML integers 64 bits wide.
const REVISION: u8 = 2;
const HEADER_BYTES: u32 = 36;

/// `_STA`: present, enabled, shown, working.
const STATUS_OK: u8 = 0x0F;
/// "The power button was pressed" (ACPI 6.5, 4.8.3.2.2).
const BUTTON_PRESSED: u8 = 0x80;

/// The table.
pub(super) fn build(platform: &Platform<'_>) -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", HEADER_BYTES, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    // Byte by byte into the table would sum it up again for each byte.
    let mut aml = Vec::new();
    let system_bus: [&dyn Aml; 7] =
        [&PciRoot { mmio64: platform.mmio64 }, &Serial, &Clock, &PowerButton, &EventDevice, &Pvpanic, &Board];
    Scope::new(Path::new("\\_SB_"), system_bus.to_vec()).to_aml_bytes(&mut aml);
    soft_off().to_aml_bytes(&mut aml);
    dsdt.append_slice(&aml);
    dsdt
}

/// `\_S5`: the value of SLP_TYP for power-off (ACPI 6.5, 7.4.2).
fn soft_off() -> Name {
    Name::new(Path::new("\\_S5_"), &Package::new(vec![&layout::SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO]))
}

/// Host bridge of PCI segment 0 with the windows that it forwards (PCI Firmware 3.3, 4).
struct PciRoot {
    mmio64: Option<Window>,
}

impl Aml for PciRoot {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let buses = AddressSpace::new_bus_number(0, u16::from(layout::PCI_LAST_BUS));
        let config = io(layout::PCI_CONFIG);
        let mmio32 = AddressSpace::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            layout::below_4g(layout::PCI_MMIO32.base),
            layout::below_4g(layout::PCI_MMIO32.end() - 1),
            None,
        );
        let mmio64 = self.mmio64.map(|window| {
            AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, window.base, window.end() - 1, None)
        });
        let mut resources: Vec<&dyn Aml> = vec![&buses, &config, &mmio32];
        if let Some(mmio64) = &mmio64 {
            resources.push(mmio64);
        }
        let routes: Vec<_> = (1..PCI_DEVICES).map(route).collect();
        let routes = routes.iter().map(|route| Package::new(route.iter().map(|part| part as &dyn Aml).collect()));
        let routes: Vec<_> = routes.collect();
        Device::new(
            Path::new("PCI0"),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
                &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
                &Name::new(Path::new("_SEG"), &ZERO),
                &Name::new(Path::new("_UID"), &ZERO),
                &Name::new(Path::new("_BBN"), &ZERO),
                &Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources)),
                &Name::new(Path::new("_PRT"), &Package::new(routes.iter().map(|route| route as &dyn Aml).collect())),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// Device numbers of a PCI bus.
const PCI_DEVICES: u8 = 32;
/// In an address of `_PRT`: any function of the device.
const ANY_FUNCTION: u32 = 0xFFFF;
/// In an entry of `_PRT`: pin INTA#.
const PIN_INTA: u32 = 0;
/// In an entry of `_PRT`: the last field is a global system interrupt.
const NO_LINK_DEVICE: u32 = 0;

/// The entry of `_PRT` for pin INTA# of a device (ACPI 6.5, 6.2.13). It says neither trigger nor polarity: what PCI has
/// is meant, level triggered and active low.
fn route(device: u8) -> [u32; 4] {
    [u32::from(device) << 16 | ANY_FUNCTION, PIN_INTA, NO_LINK_DEVICE, layout::intx_gsi(device)]
}

/// 16550A.
struct Serial;

impl Aml for Serial {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Device::new(
            Path::new("COM1"),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
                &Name::new(Path::new("_UID"), &ZERO),
                &resources(vec![&io(layout::SERIAL), &edge(layout::SERIAL_GSI)]),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// CMOS clock, without the interrupt that it would need for alarms.
struct Clock;

impl Aml for Clock {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Device::new(
            Path::new("RTC_"),
            vec![&Name::new(Path::new("_HID"), &EISAName::new("PNP0B00")), &resources(vec![&io(layout::RTC)])],
        )
        .to_aml_bytes(sink);
    }
}

/// Control-method power button (ACPI 6.5, 4.8.3.2.2).
struct PowerButton;

impl Aml for PowerButton {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let hid = Name::new(Path::new("_HID"), &EISAName::new("PNP0C0C"));
        Device::new(Path::new("PWRB"), vec![&hid]).to_aml_bytes(sink);
    }
}

/// Generic event device (ACPI 6.5, 5.6.9): turns the button's interrupt into its notification.
struct EventDevice;

impl Aml for EventDevice {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Device::new(
            Path::new("GED_"),
            vec![
                &Name::new(Path::new("_HID"), &"ACPI0013"),
                &Name::new(Path::new("_UID"), &ZERO),
                &resources(vec![&edge(layout::POWER_BUTTON_GSI)]),
                &Method::new(
                    Path::new("_EVT"),
                    1,
                    true,
                    vec![&If::new(
                        &Equal::new(&Arg(0), &layout::POWER_BUTTON_GSI),
                        vec![&Notify::new(&Path::new("PWRB"), &BUTTON_PRESSED)],
                    )],
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// pvpanic; Linux's driver looks for the name that QEMU gave it.
struct Pvpanic;

impl Aml for Pvpanic {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Device::new(
            Path::new("PEVT"),
            vec![
                &Name::new(Path::new("_HID"), &"QEMU0001"),
                &Name::new(Path::new("_STA"), &STATUS_OK),
                &resources(vec![&io(layout::PVPANIC)]),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// Addresses of the board. The debug-exit port is not among them: it lies in a range that Linux always claims.
///
/// Linux uses ECAM only where it is reserved here or in the memory map.
struct Board;

impl Aml for Board {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Device::new(
            Path::new("MBRD"),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
                &Name::new(Path::new("_UID"), &ZERO),
                &resources(vec![
                    &Memory32Fixed::new(true, layout::below_4g(layout::ECAM.base), layout::below_4g(layout::ECAM.size)),
                    &io(layout::SLEEP),
                    &io(layout::RESET),
                ]),
            ],
        )
        .to_aml_bytes(sink);
    }
}

fn resources(children: Vec<&dyn Aml>) -> Name {
    Name::new(Path::new("_CRS"), &ResourceTemplate::new(children))
}

fn io(ports: Ports) -> IO {
    IO::new(ports.base, ports.base, 1, ports.count)
}

/// An interrupt that the device consumes: edge triggered, active high, not shared.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

#[cfg(test)]
mod tests {
    use super::super::tests::table;
    use super::*;

    fn dsdt(mmio64: Option<Window>) -> Vec<u8> {
        table(&Platform { apic_ids: &[0], mmio64 }, "DSDT")
    }

    fn holds(bytes: &[u8], part: &[u8]) -> bool {
        bytes.windows(part.len()).any(|window| window == part)
    }

    #[test]
    fn soft_off_names_the_sleep_type_of_the_layout() {
        assert!(holds(&dsdt(None), &[b'_', b'S', b'5', b'_', 0x12, 0x07, 4, 0x0A, layout::SLEEP_TYPE_S5, 0, 0, 0]));
    }

    #[test]
    fn the_64_bit_window_is_told_if_there_is_one() {
        // QWord address space descriptor, memory, fixed at both ends, writable.
        let head = [0x8A, 43, 0, 0, 0x0C, 1];
        let base = (4u64 << 30).to_le_bytes();
        let last = (5u64 << 30).wrapping_sub(1).to_le_bytes();
        let descriptor = [&head[..], &[0; 8], &base, &last].concat();
        assert!(holds(&dsdt(Some(Window { base: 4 << 30, size: 1 << 30 })), &descriptor));
        assert!(!holds(&dsdt(None), &head));
    }

    #[test]
    fn the_event_device_has_the_power_buttons_interrupt() {
        // Extended interrupt descriptor: consumer, edge triggered, one interrupt.
        assert!(holds(&dsdt(None), &[0x89, 6, 0, 0b11, 1, 5, 0, 0, 0]));
        assert!(holds(&dsdt(None), b"ACPI0013"));
    }

    #[test]
    fn every_device_of_the_bus_has_an_interrupt_for_its_pin() {
        // Packages of four: address, zero, zero, interrupt.
        for (device, gsi) in [(1, 17), (8, 16), (31, 23)] {
            assert!(holds(&dsdt(None), &[4, 0x0C, 0xFF, 0xFF, device, 0, 0, 0, 0x0A, gsi]), "device {device}");
        }
        assert!(holds(&dsdt(None), b"_PRT"));
    }

    #[test]
    fn ecam_is_reserved_for_the_board() {
        let mut descriptor = vec![0x86, 9, 0, 1];
        descriptor.extend(layout::below_4g(layout::ECAM.base).to_le_bytes());
        descriptor.extend(layout::below_4g(layout::ECAM.size).to_le_bytes());
        assert!(holds(&dsdt(None), &descriptor));
    }
}
