//! Taps of cards: created, or opened if they exist.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use crate::kernel::link::index_of;
use crate::kernel::tun::{self, QueueMode, TapKind};
use crate::spec::IfName;

/// A tap of a card.
#[derive(Debug)]
pub(crate) struct Tap {
    pub(crate) name: String,
    /// Its interface index; none if it may be in another namespace.
    pub(crate) index: Option<u32>,
    /// Its driver.
    pub(crate) kind: TapKind,
    /// Its queues, until they are handed over.
    pub(crate) fds: Vec<OwnedFd>,
}

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TapError {
    /// `/dev/net/tun`.
    #[error("Cannot open /dev/net/tun")]
    Device(#[source] io::Error),
    /// `TUNSETIFF` for a new tap.
    #[error("Cannot create a tap")]
    Create(#[source] io::Error),
    /// Another process has its only queue.
    #[error("Cannot open tap {name}: another process has it open")]
    Busy {
        /// The tap.
        name: IfName,
    },
    /// `TUNSETIFF` for a tap that exists.
    #[error("Cannot open tap {tap}")]
    Open {
        /// The tap.
        tap: String,
        /// The kernel's error.
        source: io::Error,
    },
}

/// Makes a tap and returns it with its interface number.
pub(crate) fn create(name: &str, queues: u16) -> Result<(Tap, u32), TapError> {
    let files = open_queues(queues)?;
    let name = tun::create(&files, name, QueueMode::for_queues(queues)).map_err(TapError::Create)?;
    let index = index_of(&name).map_err(TapError::Create)?;
    let fds = files.into_iter().map(OwnedFd::from).collect();
    Ok((Tap { name, index: Some(index), kind: TapKind::Tap, fds }, index))
}

/// Opens a tap that exists.
pub(crate) fn open(tap: &IfName, queues: u16, mode: QueueMode) -> Result<Tap, TapError> {
    let files = open_queues(queues)?;
    for file in &files {
        tun::attach(file, tap.as_str(), mode).map_err(|source| match source.raw_os_error() {
            // The survey sees the users of a multi-queue tap only.
            Some(libc::EBUSY) => TapError::Busy { name: tap.clone() },
            _ => TapError::Open { tap: tap.to_string(), source },
        })?;
    }
    let fds = files.into_iter().map(OwnedFd::from).collect();
    Ok(Tap { name: tap.to_string(), index: index_of(tap.as_str()).ok(), kind: TapKind::Tap, fds })
}

fn open_queues(queues: u16) -> Result<Vec<File>, TapError> {
    (0..queues).map(|_| tun::open_device()).collect::<io::Result<_>>().map_err(TapError::Device)
}
