//! The parts of the machine that differ from guest to guest. The rest is fixed in [`crate::layout`].

use crate::layout::Window;

/// The variable part of the machine, for the ACPI tables.
#[derive(Clone, Copy, Debug)]
pub struct Platform<'a> {
    /// APIC ids of all vCPUs as CPUID tells them, the boot vCPU first.
    pub apic_ids: &'a [u32],
    /// PCI window for 64-bit BARs, from [`crate::layout::window64`].
    pub mmio64: Option<Window>,
}
