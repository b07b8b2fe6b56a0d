//! Messages between the VMM and the services: one packet of JSON each, with at most one descriptor.
#![expect(unsafe_code, reason = "received descriptors come as numbers")]

use net::services::ServiceSpec;
use nix::errno::Errno;
use nix::sys::socket::{self, ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Bytes of a message at most.
const MESSAGE_BYTES: usize = 16 * 1024;

/// A message of the VMM.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToServices {
    /// Answer the guest of a card: the socket comes along.
    Serve {
        card: usize,
        spec: Box<ServiceSpec>,
        /// The alias of the card's tap.
        alias: String,
    },
    /// Listen for the address of a card's guest: the socket comes along.
    Listen { card: usize },
    /// All has been said: begin. The descriptor that keeps the VM's nftables alive comes along, if there are some.
    Begin,
    /// Tell the guest of a card another MTU.
    Mtu { card: usize, mtu: u16 },
}

/// A message of the services.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromServices {
    /// The guest of a card has this address: it was given to it, or heard from it.
    Address { card: usize, ip: IpAddr },
}

impl ToServices {
    /// Sends this and a descriptor without waiting.
    ///
    /// # Errors
    /// If the services have ended, or their queue is full.
    pub(super) fn send(&self, link: BorrowedFd<'_>, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        send(link, &serde_json::to_vec(self)?, fd)
    }

    /// Waits for the next message and its descriptor.
    ///
    /// # Errors
    /// If the VMM has ended, or has sent something else.
    pub(super) fn receive(link: BorrowedFd<'_>) -> io::Result<(Self, Option<OwnedFd>)> {
        let (text, fd) = receive(link, MsgFlags::empty())?;
        Ok((serde_json::from_slice(&text)?, fd))
    }
}

impl FromServices {
    /// Sends this without waiting.
    ///
    /// # Errors
    /// If the VMM has ended, or its queue is full.
    pub(super) fn send(&self, link: BorrowedFd<'_>) -> io::Result<()> {
        send(link, &serde_json::to_vec(self)?, None)
    }

    /// The next message, if there is one.
    ///
    /// # Errors
    /// If the services have ended, or have sent something else.
    pub(super) fn receive(link: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        match receive(link, MsgFlags::MSG_DONTWAIT) {
            Ok((text, None)) => Ok(Some(serde_json::from_slice(&text)?)),
            Ok((_, Some(_))) => Err(ErrorKind::InvalidData.into()),
            Err(err) if err.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(err) => Err(err),
        }
    }
}

fn send(link: BorrowedFd<'_>, text: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let Some(fd) = fd else {
        // Processes that are confined may not call `sendmsg`.
        return Ok(socket::send(link.as_raw_fd(), text, flags).map(drop)?);
    };
    let rights = [ControlMessage::ScmRights(&[fd.as_raw_fd()])];
    Ok(sendmsg::<UnixAddr>(link.as_raw_fd(), &[IoSlice::new(text)], &rights, flags, None).map(drop)?)
}

fn receive(link: BorrowedFd<'_>, flags: MsgFlags) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut text = vec![0; MESSAGE_BYTES];
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let (bytes, fd) = loop {
        let mut slices = [IoSliceMut::new(&mut text)];
        let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<UnixAddr>(link.as_raw_fd(), &mut slices, Some(&mut control), flags) {
            Err(Errno::EINTR) => continue,
            result => result?,
        };
        let mut fd = None;
        for part in message.cmsgs()? {
            let ControlMessageOwned::ScmRights(numbers) = part else { continue };
            for number in numbers {
                // SAFETY: the kernel has just put this descriptor into our table and no other code knows its number.
                fd = Some(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
        if message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
            return Err(ErrorKind::InvalidData.into());
        }
        break (message.bytes, fd);
    };
    if bytes == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    text.truncate(bytes);
    Ok((text, fd))
}
