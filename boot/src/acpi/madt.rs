//! MADT: one entry per vCPU, and the I/O APIC (ACPI 6.5, 5.2.12).

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout;
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::{Aml, AmlSink};
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

/// Processor local x2APIC structure (ACPI 6.5, 5.2.12.12), which acpi_tables lacks.
#[repr(C)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct ProcessorLocalX2Apic {
    kind: u8,
    length: u8,
    reserved: U16,
    x2apic_id: U32,
    flags: U32,
    processor_uid: U32,
}

impl ProcessorLocalX2Apic {
    const KIND: u8 = 9;
    const LENGTH: u8 = 16;
    const ENABLED: u32 = 1;
}

const _: () = assert!(size_of::<ProcessorLocalX2Apic>() == ProcessorLocalX2Apic::LENGTH as usize);

impl Aml for ProcessorLocalX2Apic {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.as_bytes());
    }
}

/// The table. The place in `apic_ids` is the processor's UID.
pub(super) fn build(apic_ids: &[u32]) -> MADT {
    let lapic = LocalInterruptController::Address(layout::below_4g(layout::LAPIC.base));
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, lapic);
    for (uid, apic_id) in (0u32..).zip(apic_ids.iter().copied()) {
        // 255 is the broadcast id of the old APIC, and the first that only x2APIC can name.
        match (u8::try_from(uid), u8::try_from(apic_id)) {
            (Ok(uid), Ok(apic_id)) if apic_id < u8::MAX => {
                madt.add_structure(ProcessorLocalApic::new(uid, apic_id, EnabledStatus::Enabled));
            }
            _ => madt.add_structure(ProcessorLocalX2Apic {
                kind: ProcessorLocalX2Apic::KIND,
                length: ProcessorLocalX2Apic::LENGTH,
                reserved: U16::ZERO,
                x2apic_id: U32::new(apic_id),
                flags: U32::new(ProcessorLocalX2Apic::ENABLED),
                processor_uid: U32::new(uid),
            }),
        }
    }
    madt.add_structure(IoApic::new(0, layout::below_4g(layout::IOAPIC.base), 0));
    madt
}

#[cfg(test)]
mod tests {
    use super::super::tests::table;
    use crate::Platform;

    /// Kind and bytes of each structure in the MADT.
    fn structures(apic_ids: &[u32]) -> Vec<(u8, Vec<u8>)> {
        let madt = table(&Platform { apic_ids, mmio64: None }, "APIC");
        let mut rest = &madt[44..];
        let mut structures = Vec::new();
        while let [kind, length, ..] = *rest {
            let (structure, behind) = rest.split_at(usize::from(length));
            structures.push((kind, structure.to_vec()));
            rest = behind;
        }
        structures
    }

    #[test]
    fn boot_cpu_is_first_and_the_io_apic_last() {
        let structures = structures(&[0, 1, 4]);
        assert_eq!(structures[0], (0, vec![0, 8, 0, 0, 1, 0, 0, 0]));
        assert_eq!(structures[2], (0, vec![0, 8, 2, 4, 1, 0, 0, 0]));
        assert_eq!(structures[3], (1, vec![1, 12, 0, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0]));
    }

    #[test]
    fn apic_ids_from_255_use_x2apic_structures() {
        let structures = structures(&[0, 254, 255, 0x1_0000]);
        let kinds: Vec<u8> = structures.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [0, 0, 9, 9, 1]);
        assert_eq!(structures[3].1, [9, 16, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 3, 0, 0, 0]);
    }
}
