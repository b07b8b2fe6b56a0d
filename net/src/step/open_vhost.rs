//! Opens the kernel's vhost-net: each opening is an instance, which serves one queue pair.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;

/// The device.
const VHOST: &str = "/dev/vhost-net";

/// Open the kernel's vhost-net.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OpenVhost {
    /// The card that it is for.
    pub card: usize,
    /// Queue pairs, each of which takes an instance of its own.
    pub queues: u16,
}

impl Kind for OpenVhost {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        let open = || Ok(OwnedFd::from(File::options().read(true).write(true).open(VHOST)?));
        let fds = (0..self.queues).map(|_| open()).collect::<io::Result<_>>().map_err(Error::OpenVhost)?;
        made.vhosts.insert(self.card, fds);
        Ok(())
    }

    async fn undo(&self, made: &mut Applied) -> Result<(), Error> {
        made.vhosts.remove(&self.card);
        Ok(())
    }

    fn undo_text(&self) -> String {
        "close it".to_owned()
    }
}

impl fmt::Display for OpenVhost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "open {VHOST} for {} queue pairs of card {}", self.queues, self.card)
    }
}
