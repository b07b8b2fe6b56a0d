//! A ring that is polled: offers go out in batches, interrupts are off unless they are asked for, and a doorbell is
//! rung only if the device asks for it (virtio 1.3 2.7.7.2, 2.7.10).

use crate::cpu;
use crate::virtio::ring::{Ring, Used};

const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

/// One ring with its indexes.
pub(super) struct PolledQueue {
    ring: Ring,
    event_idx: bool,
    /// Available index as far as heads have been written, and as far as the device has been shown.
    written: u16,
    shown: u16,
    /// Used index as far as elements have been taken.
    taken: u16,
    /// Doorbells rung.
    pub(super) doorbells: u64,
}

impl PolledQueue {
    /// Takes over a fresh ring. `event_idx`: whether VIRTIO_F_EVENT_IDX was negotiated.
    pub(super) fn new(ring: Ring, event_idx: bool) -> Self {
        cpu::write16(ring.avail, if event_idx { 0 } else { AVAIL_NO_INTERRUPT });
        let queue = Self { ring, event_idx, written: 0, shown: 0, taken: 0, doorbells: 0 };
        queue.refuse_interrupts();
        queue
    }

    /// The ring.
    pub(super) fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Makes a head available; the device sees it after the next `show`.
    pub(super) fn offer(&mut self, head: u16) {
        cpu::write16(self.ring.avail + 4 + 2 * u64::from(self.written & (self.ring.size - 1)), head);
        self.written = self.written.wrapping_add(1);
    }

    /// Shows the device what was offered, and notifies it if it wants that.
    pub(super) fn show(&mut self) {
        let new = self.written.wrapping_sub(self.shown);
        if new == 0 {
            return;
        }
        cpu::write16(self.ring.avail + 2, self.written);
        // The index has to be out before the device's wish is read (2.7.13.4.1).
        cpu::fence();
        let wanted = if self.event_idx {
            let event = cpu::read16(self.ring.used + 4 + 8 * u64::from(self.ring.size));
            self.written.wrapping_sub(event).wrapping_sub(1) < new
        } else {
            cpu::read16(self.ring.used) & USED_NO_NOTIFY == 0
        };
        self.shown = self.written;
        if wanted {
            self.ring.kick();
            self.doorbells += 1;
        }
    }

    /// Hands every element that the device has returned to `each`, which gets the queue to offer it again.
    pub(super) fn take(&mut self, mut each: impl FnMut(&mut Self, Used)) {
        let end = cpu::read16(self.ring.used + 2);
        if end == self.taken {
            return;
        }
        while self.taken != end {
            let at = self.ring.used + 4 + 8 * u64::from(self.taken & (self.ring.size - 1));
            self.taken = self.taken.wrapping_add(1);
            each(self, Used { id: cpu::read32(at), len: cpu::read32(at + 4) });
        }
        self.refuse_interrupts();
    }

    /// Asks for an interrupt with the next element. Returns whether there is one already.
    pub(super) fn ask_for_interrupt(&self) -> bool {
        if self.event_idx {
            cpu::write16(self.ring.avail + 4 + 2 * u64::from(self.ring.size), self.taken);
        } else {
            cpu::write16(self.ring.avail, 0);
        }
        cpu::fence();
        cpu::read16(self.ring.used + 2) != self.taken
    }

    /// Asks for an interrupt at an index that has gone by: the device gets there after 65536 more elements.
    fn refuse_interrupts(&self) {
        if self.event_idx {
            cpu::write16(self.ring.avail + 4 + 2 * u64::from(self.ring.size), self.taken.wrapping_sub(1));
        }
    }
}
