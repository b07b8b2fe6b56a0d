//! The invariants of a card that a tame program drives.

use super::{NET_F_CTRL_VQ, NET_F_MULTI, QUEUES, Session, TX};
use crate::driver::{BUFFERS, NEEDS_RESET, RUNNING, avail, table, used};
use crate::machine::Rest;
use vm_memory::{Bytes, GuestAddress};

impl Session<'_> {
    /// Lets the device work, and looks at what it did.
    pub(in crate::card) fn work(&mut self) {
        let rest = self.machine.settle();
        if !self.tame {
            // It may have been told to feed itself.
            return;
        }
        assert_eq!(rest, Rest::Reached, "a device that has nothing to do rests");
        for queue in 0..QUEUES {
            self.read_used(queue);
        }
        let now = self.lowest();
        // All but the used rings, which end with the page.
        let mut kept = 0;
        for queue in 0..=QUEUES {
            let end = if queue < QUEUES { used(queue) } else { BUFFERS };
            let range = kept..usize::try_from(end).expect("small");
            kept = usize::try_from(table(queue + 1)).expect("small");
            assert!(
                now[range.clone()] == self.low[range.clone()],
                "the device wrote in {range:x?}, which was not given to it"
            );
        }
    }

    fn read_used(&mut self, queue: u16) {
        let idx = self.read_u16(used(queue) + 2);
        let known = &mut self.queues[usize::from(queue)];
        if known.size == 0 {
            return;
        }
        let new = idx.wrapping_sub(known.used_seen);
        assert!(new <= known.size || known.jumped, "{new} used entries at once in queue {queue}");
        while known.used_seen != idx {
            let at = used(queue) + 4 + 8 * u64::from(known.used_seen % known.size);
            let head: u32 = self.machine.mem.read_obj(GuestAddress(at)).expect("guest memory");
            let count =
                u16::try_from(head).ok().and_then(|head| known.outstanding.get_mut(&head)).filter(|count| **count > 0);
            match count {
                Some(count) => *count -= 1,
                None => assert!(known.jumped, "queue {queue} used head {head}, which was not available"),
            }
            known.used_seen = known.used_seen.wrapping_add(1);
        }
    }

    /// Returns whether the available index of a transmit queue that has nothing left to do is further ahead than the
    /// ring is long.
    pub(in crate::card) fn overruns(&self, queue: u16) -> bool {
        let known = &self.queues[usize::from(queue)];
        let at_rest = self.tame && queue == TX && self.net.status() == RUNNING && !self.machine.net_ports[0].full();
        let ahead = self.read_u16(avail(queue) + 2).wrapping_sub(self.read_u16(used(queue) + 2));
        at_rest && known.size != 0 && ahead > known.size
    }

    /// After a kick of a transmit or control queue: either everything is used, or the driver has been told that it
    /// broke something, or a frame waits for room.
    pub(in crate::card) fn all_was_served(&self, queue: u16) {
        let known = &self.queues[usize::from(queue)];
        let ctrl = if self.features & NET_F_MULTI == 0 { 2 } else { QUEUES - 1 };
        let served = queue == TX || queue == ctrl && self.features & NET_F_CTRL_VQ != 0;
        if !self.tame || !served || known.size == 0 || self.net.status() != RUNNING {
            return;
        }
        if queue == TX && self.machine.net_ports[0].full() {
            return;
        }
        let (available, served) = (self.read_u16(avail(queue) + 2), self.read_u16(used(queue) + 2));
        assert_eq!(available, served, "queue {queue} is broken or has something left, and the driver is not told");
        assert_eq!(self.net.status() & NEEDS_RESET, 0);
    }
}
