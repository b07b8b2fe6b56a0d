//! The socket that owns tables, and its exchange with the kernel.
//!
//! The kernel processes a request inside `sendto`, and its answers wait in the socket when that returns. So nothing
//! here blocks, and a missing answer is an error, not a wait.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, sendto, setsockopt, socket,
    sockopt,
};

use super::batch::Batch;
use super::error::NftError;
use super::kernel::msg::NFNL_SUBSYS_NFTABLES;
use super::objects::{EncodeError, Object};
use crate::kernel::netlink::{Attrs, Head, Message, Writer, messages};

/// A connection to nf_tables of the network namespace that it was opened in. Tables created through it live as long as
/// it does.
#[derive(Debug)]
pub struct NftSocket {
    fd: OwnedFd,
    next_seq: u32,
}

/// Room for one answer: the kernel's own are at most 32 KiB, and only the head of a refusal is read.
const RECEIVE_BYTES: usize = 64 * 1024;

/// Most answers read before giving up on the kernel: one for each message of the largest batch that it accepts.
const ANSWERS_MAX: usize = 1 << 20;

/// Attempts to read a list that changes meanwhile.
const DUMP_ATTEMPTS: usize = 10;

/// Free space that the kernel wants in the send buffer beyond a batch.
const SEND_RESERVE: usize = 64 * 1024;

/// Receive buffer bytes per message of a batch: the kernel charges an acknowledgement by its memory.
const ACK_BYTES: usize = 1024;

/// An answer to a message of a batch.
struct Answer {
    seq: u32,
    errno: i32,
}

impl NftSocket {
    /// Opens the connection.
    ///
    /// # Errors
    /// [`NftError::Open`]: a kernel without nf_tables, or no permission to open sockets. Without CAP_NET_ADMIN opening
    /// succeeds, and all else fails.
    pub fn open() -> Result<Self, NftError> {
        let open = || -> nix::Result<OwnedFd> {
            let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK);
            let fd = socket(AddressFamily::Netlink, kind, flags, SockProtocol::NetlinkNetFilter)?;
            bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
            Ok(fd)
        };
        Ok(Self { fd: open().map_err(|errno| NftError::Open(errno.into()))?, next_seq: 1 })
    }

    /// Another descriptor of the connection: its tables live as long as either is open.
    pub(crate) fn share(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Makes all changes of a batch, or none.
    ///
    /// # Errors
    /// [`NftError::Refused`] with the first object that the kernel does not accept. On any error nothing has changed.
    pub fn apply(&mut self, batch: &Batch) -> Result<(), NftError> {
        if batch.commands.is_empty() {
            return Ok(());
        }
        // The last message before the end of the batch.
        self.transact(batch.encode(self.next_seq)?, 2)
    }

    /// Has the kernel check all changes of a batch without making them. It loads the modules that they need.
    ///
    /// # Errors
    /// As those of [`NftSocket::apply`].
    pub fn check(&mut self, batch: &Batch) -> Result<(), NftError> {
        if batch.commands.is_empty() {
            return Ok(());
        }
        self.transact(batch.encode_check(self.next_seq)?, 1)
    }

    /// Sends messages numbered from the next one on. The `last` one from the end has to be answered.
    fn transact(&mut self, messages: (Vec<u8>, Vec<Object<'_>>), last: u32) -> Result<(), NftError> {
        let (bytes, objects) = messages;
        let first_seq = self.next_seq;
        self.next_seq = self.next_seq.wrapping_add(u32::try_from(objects.len()).unwrap_or(u32::MAX));
        // Too small a buffer shows as an error below.
        let _ = setsockopt(&self.fd, sockopt::SndBufForce, &(bytes.len() + SEND_RESERVE));
        let _ = setsockopt(&self.fd, sockopt::RcvBufForce, &(objects.len() * ACK_BYTES + RECEIVE_BYTES));
        self.send(&bytes)?;
        let answers = self.answers()?;
        if let Some(refusal) = answers.iter().find(|answer| answer.errno != 0) {
            let idx = usize::try_from(refusal.seq.wrapping_sub(first_seq)).unwrap_or(usize::MAX);
            let object = objects.get(idx).unwrap_or(&Object::Transaction).to_string();
            return Err(NftError::Refused { object, source: io::Error::from_raw_os_error(refusal.errno) });
        }
        let last = first_seq.wrapping_add(u32::try_from(objects.len()).unwrap_or(u32::MAX)).wrapping_sub(last);
        if answers.iter().any(|answer| answer.seq == last) { Ok(()) } else { Err(NftError::Silent) }
    }

    /// Asks for a list and gives `each` the family and the attributes of every entry. `body` writes the selection.
    pub(super) fn dump<T>(
        &mut self,
        kind: u16,
        family: u8,
        body: impl Fn(&mut Writer),
        each: impl Fn(u8, Attrs<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NftError> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(list) = self.ask(kind, libc::NLM_F_DUMP, family, &body, &each)? {
                return Ok(list);
            }
        }
        Err(NftError::Changing)
    }

    /// Asks for one object and gives `read` its attributes; none if it does not exist.
    pub(super) fn get<T>(
        &mut self,
        kind: u16,
        family: u8,
        body: impl Fn(&mut Writer),
        read: impl Fn(Attrs<'_>) -> Option<T>,
    ) -> Result<Option<T>, NftError> {
        match self.ask(kind, libc::NLM_F_ACK, family, body, |_, attrs| read(attrs)) {
            Ok(found) => Ok(found.into_iter().flatten().next()),
            Err(NftError::Exchange(error)) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The kernel's answers to a request with these flags, up to the end of the list; none if the list changed
    /// meanwhile.
    fn ask<T>(
        &mut self,
        kind: u16,
        flags: i32,
        family: u8,
        body: impl Fn(&mut Writer),
        each: impl Fn(u8, Attrs<'_>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, NftError> {
        let seq = self.next_seq;
        self.next_seq = self.next_seq.wrapping_add(1);
        let flags = u16::try_from(flags).unwrap_or_default();
        let kind = NFNL_SUBSYS_NFTABLES << 8 | kind;
        let mut writer = Writer::default();
        writer.message(Head { kind, flags, seq, family, res_id: 0 }, body);
        writer.check().map_err(EncodeError::from)?;
        self.send(writer.bytes())?;
        let (mut list, mut consistent) = (Vec::new(), true);
        let mut buffer = vec![0; RECEIVE_BYTES];
        for _ in 0..ANSWERS_MAX {
            let Some(received) = self.receive(&mut buffer)? else { return Err(NftError::Silent) };
            for message in messages(received).filter(|message| message.seq == seq) {
                consistent &= i32::from(message.flags) & libc::NLM_F_DUMP_INTR == 0;
                match errno_of(&message) {
                    Some(0) => return Ok(consistent.then_some(list)),
                    Some(libc::EINTR) => consistent = false,
                    Some(errno) => return Err(NftError::Exchange(io::Error::from_raw_os_error(errno))),
                    None => list.extend(each(message.family(), message.attrs())),
                }
            }
        }
        Err(NftError::Silent)
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NftError> {
        let sent = sendto(self.fd.as_raw_fd(), bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty());
        sent.map(drop).map_err(|errno| NftError::Exchange(errno.into()))
    }

    /// All pending answers. If the kernel had to drop some, the remaining ones.
    fn answers(&self) -> Result<Vec<Answer>, NftError> {
        let mut answers = Vec::new();
        let mut buffer = vec![0; RECEIVE_BYTES];
        for _ in 0..ANSWERS_MAX {
            match self.receive(&mut buffer) {
                Ok(Some(received)) => answers.extend(
                    messages(received)
                        .filter_map(|message| Some(Answer { seq: message.seq, errno: errno_of(&message)? })),
                ),
                Ok(None) => break,
                Err(NftError::Exchange(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(answers)
    }

    /// The next pending datagram from the kernel.
    fn receive<'b>(&self, buffer: &'b mut [u8]) -> Result<Option<&'b [u8]>, NftError> {
        loop {
            match recvfrom::<NetlinkAddr>(self.fd.as_raw_fd(), buffer) {
                // Messages from other senders are ignored.
                Ok((_, Some(sender))) if sender.pid() != 0 => {}
                Ok((len, _)) => return Ok(Some(buffer.get(..len).unwrap_or_default())),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(NftError::Exchange(errno.into())),
            }
        }
    }
}

/// The code in an acknowledgement, a refusal or the end of a list, 0 for success; nothing for other messages.
fn errno_of(message: &Message<'_>) -> Option<i32> {
    let kind = i32::from(message.kind);
    if kind != libc::NLMSG_ERROR && kind != libc::NLMSG_DONE {
        return None;
    }
    let code = message.body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
    Some(code.checked_neg().unwrap_or(libc::EIO))
}
