//! Takes over the descriptors of a tap that another program opened, which stays.

use std::fmt;
use std::io;
use std::os::fd::RawFd;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::host::tap::Tap;
use crate::kernel::link::index_of;
use crate::kernel::tun::{self, TapKind};

/// Take over the descriptors of an open tap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AdoptTap {
    /// The card they are for.
    pub card: usize,
    /// The tap's name.
    pub tap: String,
    /// The descriptors in queue order.
    pub fds: Vec<RawFd>,
}

impl Kind for AdoptTap {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        let mut queues = Vec::new();
        for fd in &self.fds {
            let queue = made.inherited.get(fd).map_or_else(
                || Err(io::Error::from_raw_os_error(libc::EBADF)),
                |queue| tun::adopt(queue).and_then(|()| queue.try_clone()),
            );
            queues.push(queue.map_err(|source| Error::AdoptTap { tap: self.tap.clone(), source })?);
        }
        let here = queues.first().is_some_and(tun::is_in_our_namespace);
        let index = if here { index_of(&self.tap).ok() } else { None };
        made.taps.insert(self.card, Tap { name: self.tap.clone(), index, kind: TapKind::Tap, fds: queues });
        Ok(())
    }

    async fn undo(&self, made: &mut Applied) -> Result<(), Error> {
        made.taps.remove(&self.card);
        Ok(())
    }

    fn undo_text(&self) -> String {
        "close it".to_owned()
    }
}

impl fmt::Display for AdoptTap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { card, tap, fds } = self;
        write!(f, "take over tap {tap} through {} descriptors for card {card}", fds.len())
    }
}
