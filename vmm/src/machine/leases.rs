//! Which cards have been given their addresses: told by the threads that answer DHCP, heard by the control loop.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The news of all cards.
pub(super) struct Leases {
    event: EventFd,
    /// By card: a guest that asks again and again takes no more room.
    acked: Mutex<BTreeMap<usize, Ipv4Addr>>,
}

impl Leases {
    /// # Errors
    /// If the host has no descriptor left.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?, acked: Mutex::default() })
    }

    /// A card's guest has been given `ip`.
    pub(super) fn report(&self, card: usize, ip: Ipv4Addr) {
        self.acked.lock().unwrap_or_else(PoisonError::into_inner).insert(card, ip);
        // A counter that is full is signalled all the same.
        let _ = self.event.write(1);
    }

    /// Readable when there is news.
    pub(super) fn event(&self) -> &EventFd {
        &self.event
    }

    /// The news, each once.
    pub(super) fn take(&self) -> BTreeMap<usize, Ipv4Addr> {
        // An empty counter answers EAGAIN.
        let _ = self.event.read();
        std::mem::take(&mut *self.acked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_is_heard_once_and_the_latest_of_each_card() {
        let leases = Leases::new().unwrap();
        let ip = |last| Ipv4Addr::new(10, 0, 0, last);

        leases.report(1, ip(1));
        leases.report(0, ip(2));
        leases.report(1, ip(3));

        assert_eq!(leases.take(), BTreeMap::from([(0, ip(2)), (1, ip(3))]));
        assert_eq!(leases.take(), BTreeMap::new());
        assert!(leases.event().read().is_err());
    }
}
