//! The notifications about links, addresses and neighbours that the keeper of a VM needs: not those about the taps of
//! other VMs, each of which causes some thirty at start and at end.
//!
//! ```text
//! link       its own taps, and whatever is not called vmtap*, or is named by the plan
//! neighbour  learned by a bridge with the end of a MAC of its own; forgotten behind its own taps
//! address    deleted
//! ```

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsRawFd;

use crate::identity::mac::MacAddr;
use crate::kernel::netlink_filter::{ATTR_HEAD_LEN, HEAD_LEN, KIND_AT, Line, To, attach, if_any};
use crate::kernel::tun::TAP_PREFIX;
use crate::spec::IfName;

/// Messages of rtnetlink (linux/rtnetlink.h).
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;

/// The family and the link's index are at the same offsets in `struct ifinfomsg`, `ifaddrmsg` and `ndmsg`; the entry's
/// state is in the last.
const FAMILY_AT: u32 = HEAD_LEN;
const INDEX_AT: u32 = HEAD_LEN + 4;
const STATE_AT: u32 = HEAD_LEN + 8;

/// Bytes of `struct ifinfomsg` and `struct ndmsg`.
const LINK_LEN: u32 = 16;
const NEIGHBOUR_LEN: u32 = 12;

const IFLA_IFNAME: u16 = 3;
const NDA_LLADDR: u16 = 2;
const AF_BRIDGE: u8 = 7;
/// An entry for a port's own address (linux/neighbour.h).
const NUD_PERMANENT: u16 = 0x80;

/// The taps, MACs and interfaces of a VM.
#[derive(Clone, Debug, Default)]
pub(crate) struct Concern {
    /// Its taps.
    pub(crate) taps: BTreeSet<u32>,
    /// The addresses of its guest.
    pub(crate) macs: Vec<MacAddr>,
    /// Interfaces that its plan names.
    pub(crate) named: Vec<IfName>,
}

impl Concern {
    /// Limits a socket to these notifications from now on.
    pub(crate) fn attach_to(&self, socket: &impl AsRawFd) -> io::Result<()> {
        attach(socket, &self.program())
    }

    fn program(&self) -> Vec<Line> {
        // One of them may be a tap of another VM.
        let may_be_tap = |name: &IfName| name.as_str().as_bytes().starts_with(&TAP_PREFIX);
        let of_others = if self.named.iter().any(may_be_tap) { To::Accept } else { To::Drop };
        let name_at = |offset| ATTR_HEAD_LEN + offset;
        let mut lines = vec![
            Line::Half(KIND_AT),
            Line::IfHalf(RTM_NEWLINK, To::Label("link"), To::Next),
            Line::IfHalf(RTM_DELLINK, To::Label("link"), To::Next),
            Line::IfHalf(RTM_NEWNEIGH, To::Label("learned"), To::Next),
            Line::IfHalf(RTM_DELNEIGH, To::Label("forgotten"), To::Next),
            Line::IfHalf(RTM_NEWADDR, To::Drop, To::Accept),
            Line::Label("link"),
            Line::Word(INDEX_AT),
        ];
        lines.extend(if_any(&self.taps, To::Accept));
        let [first @ .., last] = TAP_PREFIX;
        lines.extend([
            Line::Attr(HEAD_LEN + LINK_LEN, IFLA_IFNAME),
            Line::IfOctet(0, To::Accept, To::Next),
            // A name ends with a zero, so another octet follows each nonzero one.
            Line::WordFromX(name_at(0)),
            Line::IfText(first, To::Next, To::Accept),
            Line::OctetFromX(name_at(4)),
            Line::IfOctet(last, of_others, To::Accept),
            Line::Label("learned"),
            Line::Octet(FAMILY_AT),
            Line::IfOctet(AF_BRIDGE, To::Next, To::Drop),
            Line::Half(STATE_AT),
            Line::IfHalf(NUD_PERMANENT, To::Drop, To::Next),
            Line::Attr(HEAD_LEN + NEIGHBOUR_LEN, NDA_LLADDR),
            Line::IfOctet(0, To::Drop, To::Next),
            Line::HalfFromX(ATTR_HEAD_LEN + 4),
        ]);
        lines.extend(self.macs.iter().map(|mac| {
            let [.., fifth, sixth] = mac.octets();
            Line::IfHalf(u16::from_ne_bytes([fifth, sixth]), To::Accept, To::Next)
        }));
        lines.extend([
            Line::End(To::Drop),
            Line::Label("forgotten"),
            Line::Octet(FAMILY_AT),
            Line::IfOctet(AF_BRIDGE, To::Next, To::Drop),
            Line::Word(INDEX_AT),
        ]);
        lines.extend(if_any(&self.taps, To::Accept));
        lines.push(Line::End(To::Drop));
        lines
    }
}
