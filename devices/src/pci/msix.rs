//! MSI-X: the table, the pending bits and masking (PCI 3.0 6.8.2).
//!
//! A vector is *routed* while MSI-X is enabled and neither the function nor the vector is masked. What comes while it
//! is not routed is held by the [`MsiVector`] and shows in the pending bits.

use crate::irq::{MsiMessage, MsiVector};
use std::sync::Arc;

/// Capability ID.
pub const CAPABILITY: u8 = 0x11;
/// Bytes of one table entry.
pub const ENTRY_SIZE: u64 = 16;
/// Message control, upper byte: MSI-X enable and function mask.
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
/// The bits of the capability that a guest can write: the two above.
pub const CONTROL_WRITABLE: [u8; 2] = (ENABLE | FUNCTION_MASK).to_le_bytes();
/// Offset of the vector control word in an entry and its only bit.
const VECTOR_CONTROL: usize = 12;
const VECTOR_MASKED: u8 = 1;

/// Address bits 1:0 are zero, vector control has one bit, the rest is free.
const ENTRY_WRITABLE: [u8; 16] = {
    let mut mask = [0xff; 16];
    mask[0] = 0xfc;
    mask[VECTOR_CONTROL] = VECTOR_MASKED;
    mask[13] = 0;
    mask[14] = 0;
    mask[15] = 0;
    mask
};

struct Entry {
    bytes: [u8; 16],
    vector: Arc<dyn MsiVector>,
    routed: Option<MsiMessage>,
}

impl Entry {
    fn masked(&self) -> bool {
        self.bytes[VECTOR_CONTROL] & VECTOR_MASKED != 0
    }

    fn message(&self) -> MsiMessage {
        let [a0, a1, a2, a3, a4, a5, a6, a7, d0, d1, d2, d3, ..] = self.bytes;
        MsiMessage {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            data: u32::from_le_bytes([d0, d1, d2, d3]),
        }
    }

    fn update(&mut self, deliverable: bool) {
        let wanted = (deliverable && !self.masked()).then(|| self.message());
        if wanted == self.routed {
            return;
        }
        match self.vector.route(wanted) {
            Ok(()) => self.routed = wanted,
            Err(err) => log::warn!("Cannot route an MSI-X vector: {err}"),
        }
    }
}

/// The MSI-X state of one function.
pub struct Msix {
    entries: Vec<Entry>,
    control: u16,
}

impl Msix {
    /// A table with an entry for each of `vectors`, all masked as after reset.
    pub fn new(vectors: &[Arc<dyn MsiVector>]) -> Self {
        let entry = |vector: &Arc<dyn MsiVector>| {
            let mut bytes = [0; 16];
            bytes[VECTOR_CONTROL] = VECTOR_MASKED;
            Entry { bytes, vector: vector.clone(), routed: None }
        };
        Self { entries: vectors.iter().map(entry).collect(), control: 0 }
    }

    /// Returns whether the guest has enabled MSI-X.
    pub fn enabled(&self) -> bool {
        self.control & ENABLE != 0
    }

    /// Takes over the message control word after a guest wrote it.
    pub fn set_control(&mut self, control: u16) {
        if !self.enabled() && control & ENABLE != 0 {
            self.entries.iter().for_each(|e| e.vector.clear());
        }
        self.control = control;
        let deliverable = self.deliverable();
        self.entries.iter_mut().for_each(|e| e.update(deliverable));
    }

    /// Reads the table at `offset`; zero past its end.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.locate(at).map_or(0, |(entry, i)| self.entries[entry].bytes[i]);
        }
    }

    /// Writes the table at `offset`; dropped past its end.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        let deliverable = self.deliverable();
        let mut touched = None;
        for (at, new) in (offset..).zip(data) {
            let Some((entry, i)) = self.locate(at) else {
                continue;
            };
            let byte = &mut self.entries[entry].bytes[i];
            *byte = *byte & !ENTRY_WRITABLE[i] | new & ENTRY_WRITABLE[i];
            if touched.is_some_and(|t| t != entry) {
                self.entries[entry - 1].update(deliverable);
            }
            touched = Some(entry);
        }
        if let Some(entry) = touched {
            self.entries[entry].update(deliverable);
        }
    }

    /// Reads the pending bits at `offset`; zero past their end.
    pub fn read_pba(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            let first = usize::try_from(at.saturating_mul(8)).unwrap_or(usize::MAX);
            *byte = (0..8)
                .filter(|bit| self.entries.get(first.saturating_add(*bit)).is_some_and(pending))
                .fold(0, |bits, bit| bits | 1 << bit);
        }
    }

    /// Forgets what is being held: the device behind the vectors was reset.
    pub fn clear_pending(&self) {
        self.entries.iter().filter(|e| e.routed.is_none()).for_each(|e| e.vector.clear());
    }

    fn deliverable(&self) -> bool {
        self.enabled() && self.control & FUNCTION_MASK == 0
    }

    fn locate(&self, offset: u64) -> Option<(usize, usize)> {
        let entry = usize::try_from(offset / ENTRY_SIZE).ok()?;
        let byte = usize::try_from(offset % ENTRY_SIZE).ok()?;
        (entry < self.entries.len()).then_some((entry, byte))
    }
}

fn pending(entry: &Entry) -> bool {
    entry.routed.is_none() && entry.vector.pending()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::fake::FakeVector;

    const ON: u16 = ENABLE;

    fn table(vectors: usize) -> (Msix, Vec<Arc<FakeVector>>) {
        let fakes: Vec<_> = (0..vectors).map(|_| Arc::new(FakeVector::default())).collect();
        let vectors: Vec<Arc<dyn MsiVector>> = fakes.iter().map(|f| f.clone() as _).collect();
        (Msix::new(&vectors), fakes)
    }

    fn program(msix: &mut Msix, entry: u64, address: u64, data: u32) {
        msix.write_table(entry * ENTRY_SIZE, &address.to_le_bytes());
        msix.write_table(entry * ENTRY_SIZE + 8, &data.to_le_bytes());
        msix.write_table(entry * ENTRY_SIZE + 12, &0u32.to_le_bytes());
    }

    #[test]
    fn entries_start_masked() {
        let (msix, _) = table(1);
        let mut control = [0; 4];
        msix.read_table(12, &mut control);
        assert_eq!(u32::from_le_bytes(control), 1);
    }

    #[test]
    fn unmasked_entry_is_routed_once_enabled() {
        let (mut msix, fakes) = table(2);
        program(&mut msix, 1, 0xfee0_0000, 0x41);
        assert_eq!(fakes[1].routed(), None);
        msix.set_control(ON);
        assert_eq!(fakes[1].routed(), Some(MsiMessage { address: 0xfee0_0000, data: 0x41 }));
        assert_eq!(fakes[0].routed(), None);
        msix.set_control(ON | FUNCTION_MASK);
        assert_eq!(fakes[1].routed(), None);
    }

    #[test]
    fn signal_while_masked_is_pending_until_unmasked() {
        let (mut msix, fakes) = table(2);
        msix.set_control(ON);
        program(&mut msix, 1, 0xfee0_0000, 0x41);
        msix.write_table(ENTRY_SIZE + 12, &1u32.to_le_bytes());
        fakes[1].signal().unwrap();

        let mut pba = [0; 8];
        msix.read_pba(0, &mut pba);
        assert_eq!(u64::from_le_bytes(pba), 0b10);

        msix.write_table(ENTRY_SIZE + 12, &0u32.to_le_bytes());
        msix.read_pba(0, &mut pba);
        assert_eq!(u64::from_le_bytes(pba), 0);
    }

    #[test]
    fn reserved_bits_stay_zero() {
        let (mut msix, _) = table(1);
        msix.write_table(0, &[0xff; 16]);
        let mut entry = [0; 16];
        msix.read_table(0, &mut entry);
        assert_eq!(entry, ENTRY_WRITABLE);
    }

    #[test]
    fn access_past_the_end_is_harmless() {
        let (mut msix, _) = table(1);
        let mut data = [0xaa; 8];
        msix.read_table(1 << 40, &mut data);
        msix.write_table(16, &[0xff; 8]);
        msix.read_table(12, &mut data);
        assert_eq!(data, [1, 0, 0, 0, 0, 0, 0, 0]);
        msix.read_pba(1 << 40, &mut data);
        assert_eq!(data, [0; 8]);
    }
}
