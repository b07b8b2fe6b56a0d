//! Memory that the keeper releases once nothing has happened for a while.
//!
//! A look at the host leaves a heap of freed lists behind, and brings in code that is not needed until the next one.
//! The keepers of a host all look when one VM comes or goes, so they all release it afterwards.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Idle time before memory is released. Looks that put each other off are 100 ms apart.
const QUIET: Duration = Duration::from_millis(300);

/// Least pause between two times: it costs some 0.1 ms, now and when the memory is needed again.
const PAUSE: Duration = Duration::from_secs(3);

/// When to release memory.
#[derive(Debug)]
pub(super) struct Rest {
    due: Option<Instant>,
    not_before: Instant,
    /// The next event is only that memory was released.
    taken: bool,
    release_memory: fn(),
}

impl Rest {
    /// With the VMM's way to release memory.
    pub(super) fn new(release_memory: fn()) -> Self {
        Self { due: None, not_before: Instant::now(), taken: false, release_memory }
    }

    /// Notes that something has happened, whatever it was. To be called after [`take`](Self::take), too.
    pub(super) fn note(&mut self) {
        if !std::mem::take(&mut self.taken) {
            self.due = Some((Instant::now() + QUIET).max(self.not_before));
        }
    }

    /// Waits until nothing has happened for a while; for ever if nothing has since memory was released.
    pub(super) async fn due(&self) {
        match self.due {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// Releases memory.
    pub(super) fn take(&mut self) {
        (self.release_memory)();
        *self = Self { due: None, not_before: Instant::now() + PAUSE, taken: true, ..*self };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rest_is_due_after_an_event_and_not_after_itself() {
        let mut rest = Rest::new(|| {});
        rest.note();
        assert!(rest.due.is_some());
        rest.take();
        rest.note();
        assert_eq!(rest.due, None);
        rest.note();
        assert!(rest.due.is_some_and(|due| due > Instant::now() + QUIET), "only after the pause");
    }
}
