//! The channel by which the services of a card learn that its network's MTU has changed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;

/// Tells the services of a card an MTU.
#[derive(Debug)]
pub struct MtuSender(UnixDatagram);

/// The services' end.
#[derive(Debug)]
pub struct MtuReceiver(UnixDatagram);

/// Both ends, for the services of one card.
///
/// # Errors
/// The host has no descriptors left.
pub fn mtu_channel() -> io::Result<(MtuSender, MtuReceiver)> {
    let (ours, theirs) = UnixDatagram::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    Ok((MtuSender(ours), MtuReceiver(theirs)))
}

impl MtuSender {
    /// Has the services announce this MTU, in bytes, from now on.
    ///
    /// # Errors
    /// The services have ended, or their queue is full.
    pub fn send(&self, mtu: u16) -> io::Result<()> {
        self.0.send(&mtu.to_ne_bytes()).map(drop)
    }
}

impl MtuReceiver {
    /// The last MTU that was sent since the last call.
    pub(super) fn latest(&self) -> Option<u16> {
        let mut latest = None;
        let mut bytes = [0; 2];
        while let Ok(len) = self.0.recv(&mut bytes)
            && len == bytes.len()
        {
            latest = Some(u16::from_ne_bytes(bytes));
        }
        latest
    }

    /// The descriptor, readable when there is one.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_several_counts() {
        let (sender, receiver) = mtu_channel().unwrap();
        assert_eq!(receiver.latest(), None);
        sender.send(1400).unwrap();
        sender.send(1300).unwrap();
        assert_eq!((receiver.latest(), receiver.latest()), (Some(1300), None));
    }
}
