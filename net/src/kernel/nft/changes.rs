//! Notifications of changes in nf_tables, in bounded reads.
//!
//! Container hosts change thousands of rules in a second. So the reader empties a small buffer and then pauses: the
//! kernel drops what does not fit meanwhile at no further cost, and reports the loss once.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::kernel::NFTA_TABLE_NAME;
use super::kernel::msg::*;
use crate::kernel::netlink::{Message, messages};
use crate::kernel::netlink_filter::{ATTR_HEAD_LEN, HEAD_LEN, KIND_AT, Line, To, attach};

/// Bit of `struct sockaddr_nl` for `NFNLGRP_NFTABLES` (linux/netfilter/nfnetlink.h).
const GROUPS: u32 = 1 << (7 - 1);

/// Room for notifications: some 200 rules. A start of a VM makes about 50.
const BUFFER_BYTES: usize = 256 * 1024;

/// Most messages of one read: the full buffer, and those that arrive while it is read.
const HELPING_MAX: usize = 1024;

/// Bytes of `struct nfgenmsg`.
const NFGEN_LEN: u32 = 4;

/// Room for one message.
const MESSAGE_BYTES: usize = 64 * 1024;

/// The socket.
#[derive(Debug)]
pub(crate) struct Changes {
    /// A netlink socket in the type of another, which tokio can wait for.
    socket: UnixStream,
    /// The name prefix of the tables to ignore.
    but: &'static str,
}

impl Changes {
    /// Listens from now on, except for tables whose names begin with `but`. In a tokio runtime, with CAP_NET_ADMIN.
    pub(crate) fn subscribe(but: &'static str) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
        // A smaller buffer only loses notifications sooner.
        let _ = setsockopt(&fd, sockopt::RcvBuf, &BUFFER_BYTES);
        if let Err(error) = attach(&fd, &program(but)) {
            log::debug!("Changes of tables {but}* are not filtered: {error}");
        }
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
        Ok(Self { socket: UnixStream::from_std(fd.into())?, but })
    }

    /// Waits until there is something to read.
    pub(crate) async fn ready(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Reads the pending notifications without waiting for more. Returns true if tables, chains or rules outside the
    /// ignored tables changed, or if notifications were lost.
    pub(crate) fn read(&self) -> io::Result<bool> {
        let mut relevant = false;
        let mut buffer = vec![0; MESSAGE_BYTES];
        for _ in 0..HELPING_MAX {
            let receive = || Ok(recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?);
            match self.socket.try_io(Interest::READABLE, receive) {
                Ok(len) => {
                    let bytes = buffer.get(..len).unwrap_or_default();
                    relevant |= messages(bytes).any(|message| is_relevant(&message, self.but));
                }
                // There is no more.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => relevant = true,
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(relevant)
    }
}

/// Drops notifications of tables whose names begin with `but`, and those of a new ruleset generation, which every
/// transaction sends. The messages of one transaction come together: a program that changes tables of these names
/// changes no others in the same transaction.
fn program(but: &str) -> Vec<Line> {
    let mut lines = vec![
        Line::Half(KIND_AT),
        Line::IfHalf(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN, To::Drop, To::Next),
        Line::Attr(HEAD_LEN + NFGEN_LEN, NFTA_TABLE_NAME),
        Line::IfOctet(0, To::Accept, To::Next),
    ];
    // A zero ends a name, and its attribute fills whole words: each comparison is within it if those before hold.
    let (words, rest) = but.as_bytes().as_chunks::<4>();
    let mut at = ATTR_HEAD_LEN;
    for word in words {
        lines.extend([Line::WordFromX(at), Line::IfText(*word, To::Next, To::Accept)]);
        at += 4;
    }
    for octet in rest {
        lines.extend([Line::OctetFromX(at), Line::IfOctet(*octet, To::Next, To::Accept)]);
        at += 1;
    }
    lines.push(Line::End(To::Drop));
    lines
}

/// Sets and their elements decide about packets, too, but not by default about all of them.
fn is_relevant(message: &Message<'_>, but: &str) -> bool {
    let kinds =
        [NFT_MSG_NEWTABLE, NFT_MSG_DELTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_DELCHAIN, NFT_MSG_NEWRULE, NFT_MSG_DELRULE];
    let of_nftables = message.kind >> 8 == NFNL_SUBSYS_NFTABLES && kinds.contains(&(message.kind & 0xff));
    // The table name has the same attribute number in all of them.
    of_nftables && message.attrs().text(NFTA_TABLE_NAME).is_none_or(|table| !table.starts_with(but))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::Writer;

    #[test]
    fn tables_chains_and_rules_of_others_are_relevant() {
        let says = |kind: u16, table: &str| {
            let mut writer = Writer::default();
            writer.text(NFTA_TABLE_NAME, table);
            let body = [&[2, 0, 0, 0], writer.bytes()].concat();
            is_relevant(&Message { kind: NFNL_SUBSYS_NFTABLES << 8 | kind, flags: 0, seq: 0, body: &body }, "minivmm-")
        };
        assert!(says(NFT_MSG_NEWRULE, "filter"));
        assert!(says(NFT_MSG_DELCHAIN, "minivm"));
        assert!(!says(NFT_MSG_NEWRULE, "minivmm-web"));
        assert!(!says(NFT_MSG_NEWSETELEM, "filter"));
    }
}
