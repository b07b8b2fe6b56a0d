//! Messages from the keeper to the VMM, and the descriptors that they carry.
//!
//! One message is one packet of a `SOCK_SEQPACKET` pair: JSON, and for a card its descriptors as `SCM_RIGHTS`
//! (unix(7)). A card has at most 133; the kernel passes up to 253 at once. The VMM sends nothing; it ends the session
//! by closing its end.
#![allow(unsafe_code)] // Received descriptors come as numbers.

use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};

use super::NotKept;
use crate::error::{KeeperError, Report};
use crate::identity::mac::MacAddr;
use crate::kernel::link::LinkState;
use crate::services::ServiceSpec;
use crate::spec::{OffloadList, QUEUES_MAX};

/// Timeout for the keeper's next message, in seconds. Set-up takes a millisecond; this covers a host that is starting
/// hundreds of VMs, and bounds the wait for a kernel that hangs.
pub const REPLY_TIMEOUT_S: i64 = 30;

/// Size limit of a message. The longest is a teardown report: a line for each step that failed.
const MESSAGE_BYTES: usize = 64 * 1024;

/// Descriptors that a receiver has room for: a queue's two each, an address listener, a claim, the services' socket, a
/// program and its map.
const FDS_MAX: usize = 2 * QUEUES_MAX as usize + 5;

/// A message from the keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// A card is ready; its descriptors come along.
    Port(Box<PortHeader>),
    /// All cards are ready. The descriptor that keeps the VM's nftables alive comes along, if there are some.
    Ready(Timing),
    /// A card's link has changed.
    Link {
        /// The card.
        card: usize,
        /// Its state.
        state: LinkState,
    },
    /// Other machines have used addresses of a card's guest; the counts are totals.
    Conflicts {
        /// The card.
        card: usize,
        /// With its MAC address.
        macs: u64,
        /// With an IP address of it.
        addresses: u64,
    },
    /// The MTU that a card's services should announce to its guest from now on.
    Mtu {
        /// The card.
        card: usize,
        /// The MTU in bytes.
        mtu: u16,
    },
    /// All promises that are not kept at present.
    NotKept(Vec<NotKept>),
    /// The ports cannot be made; everything is undone.
    Failed(Report),
    /// Teardown is over, with these failures.
    Stopped(Vec<Report>),
}

/// A port without its descriptors: those of the tap, those of vhost-net, an address listener, a claim, the services'
/// socket, a steering program and its map.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PortHeader {
    pub(crate) tap_name: String,
    pub(crate) bridge: Option<String>,
    pub(crate) mac: MacAddr,
    pub(crate) mtu: u16,
    /// Offloads that are left to the tap.
    pub(crate) offload: OffloadList,
    /// Chains of other programs that have rules for it.
    pub(crate) foreign_rules: Vec<String>,
    /// Number of descriptors that are queues of the tap.
    pub(crate) queues: usize,
    /// Number of vhost-net instances that follow: one for each queue, or none.
    pub(crate) vhosts: usize,
    /// Number of address listeners that follow: one or none.
    pub(crate) address_listeners: usize,
    /// Number of claims on the interface that follow: one or none.
    pub(crate) claims: usize,
    /// Services whose socket comes next, if the card has some.
    pub(crate) service: Option<ServiceHeader>,
}

/// Services without their socket.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ServiceHeader {
    /// The configuration that they announce.
    pub(crate) spec: ServiceSpec,
    /// The alias of the card's tap.
    pub(crate) alias: String,
}

/// Duration of each phase of the keeper's start, in microseconds. The first begins with the fork; each ends where the
/// next begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Detaching from the VMM and connecting to the kernel.
    pub connect_us: u64,
    /// Waiting for other keepers and reading the host's facts.
    pub survey_us: u64,
    /// Planning.
    pub plan_us: u64,
    /// Changing the host.
    pub apply_us: u64,
}

impl Reply {
    /// Sends this message with its descriptors.
    pub(crate) fn send(&self, socket: BorrowedFd<'_>, fds: &[OwnedFd]) -> Result<(), KeeperError> {
        self.send_with(socket, fds, MsgFlags::empty())
    }

    /// Sends this message without blocking. Returns false if the socket has no room.
    pub(crate) fn try_send(&self, socket: BorrowedFd<'_>) -> Result<bool, KeeperError> {
        match self.send_with(socket, &[], MsgFlags::MSG_DONTWAIT) {
            Err(KeeperError::Exchange(error)) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            result => result.map(|()| true),
        }
    }

    fn send_with(&self, socket: BorrowedFd<'_>, fds: &[OwnedFd], flags: MsgFlags) -> Result<(), KeeperError> {
        let text = serde_json::to_vec(self).map_err(|_| KeeperError::Protocol)?;
        let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let control = if numbers.is_empty() { &[][..] } else { &rights[..] };
        sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(&text)], control, flags | MsgFlags::MSG_NOSIGNAL, None)
            .map_err(|errno| KeeperError::Exchange(errno.into()))?;
        Ok(())
    }

    /// Waits for the next message and its descriptors. Returns none if the other end is closed.
    pub(crate) fn receive(socket: BorrowedFd<'_>) -> Result<Option<(Self, Vec<OwnedFd>)>, KeeperError> {
        Self::receive_with(socket, MsgFlags::empty())
    }

    /// [`receive`](Self::receive) without waiting. Fails with [`KeeperError::Silent`] if there is no message.
    pub(crate) fn try_receive(socket: BorrowedFd<'_>) -> Result<Option<(Self, Vec<OwnedFd>)>, KeeperError> {
        Self::receive_with(socket, MsgFlags::MSG_DONTWAIT)
    }

    fn receive_with(socket: BorrowedFd<'_>, flags: MsgFlags) -> Result<Option<(Self, Vec<OwnedFd>)>, KeeperError> {
        let mut text = vec![0; MESSAGE_BYTES];
        let mut control = nix::cmsg_space!([RawFd; FDS_MAX]);
        let mut slices = [IoSliceMut::new(&mut text)];
        let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = loop {
            match recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
                // The kernel tells once, before all that was said, that the other end was closed with something unread:
                // a keeper that refuses its request may end before the VMM is entrusted to it.
                Err(Errno::EINTR | Errno::ECONNRESET) => slices = [IoSliceMut::new(&mut text)],
                Err(Errno::EAGAIN) => return Err(KeeperError::Silent { seconds: REPLY_TIMEOUT_S }),
                result => break result.map_err(|errno| KeeperError::Exchange(errno.into()))?,
            }
        };
        let mut fds = Vec::new();
        for part in message.cmsgs().map_err(|_| KeeperError::Protocol)? {
            let ControlMessageOwned::ScmRights(numbers) = part else { continue };
            for number in numbers {
                // SAFETY: the kernel has just put this descriptor into our table and no other code knows its number.
                fds.push(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
        let bytes = message.bytes;
        if message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
            return Err(KeeperError::Protocol);
        }
        if bytes == 0 {
            return Ok(None);
        }
        let reply = serde_json::from_slice(&text[..bytes]).map_err(|_| KeeperError::Protocol)?;
        Ok(Some((reply, fds)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, send, socketpair};
    use std::os::fd::AsFd;

    #[test]
    fn refusal_of_a_keeper_that_has_left_a_message_unread_arrives() {
        let (vmm, keeper) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        send(vmm.as_raw_fd(), b"vmm", MsgFlags::empty()).unwrap();
        Reply::Stopped(Vec::new()).send(keeper.as_fd(), &[]).unwrap();
        drop(keeper);

        assert!(matches!(Reply::receive(vmm.as_fd()), Ok(Some((Reply::Stopped(_), _)))));
        assert!(matches!(Reply::receive(vmm.as_fd()), Ok(None)));
    }
}
