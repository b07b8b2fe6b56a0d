//! Netlink messages and attributes, written and parsed (linux/netlink.h).
//!
//! Both directions are total: an attribute that is too long is remembered and refused at the end, and one that does not
//! parse ends its list. Lengths are in host byte order; the numbers of nftables are big-endian.

/// Bytes of `struct nlmsghdr`, `struct nfgenmsg` and `struct nlattr`.
pub(crate) const MESSAGE_HEADER_LEN: usize = 16;
const FAMILY_HEADER_LEN: usize = 4;
const ATTR_HEADER_LEN: usize = 4;

/// Messages and attributes start at multiples of this many bytes.
const ALIGN: usize = 4;

/// Flags in an attribute's type, which are not part of its number.
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_F_NET_BYTEORDER: u16 = 1 << 14;

/// The header fields of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    /// `nlmsg_type`.
    pub(crate) kind: u16,
    /// `nlmsg_flags` without NLM_F_REQUEST, which every message has.
    pub(crate) flags: u16,
    /// `nlmsg_seq`.
    pub(crate) seq: u32,
    /// `nfgen_family`.
    pub(crate) family: u8,
    /// `res_id`: the subsystem that a batch is for.
    pub(crate) res_id: u16,
}

/// Messages being written.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
    too_long: bool,
}

/// An attribute with more than 65535 bytes.
#[derive(Debug, thiserror::Error)]
#[error("A netlink attribute has more than 65535 bytes")]
pub struct TooLong;

impl Writer {
    /// Appends a message with the attributes that `body` writes.
    pub(crate) fn message(&mut self, head: Head, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        let flags = head.flags | NLM_F_REQUEST;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&head.kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&head.seq.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[head.family, 0]);
        self.bytes.extend_from_slice(&head.res_id.to_be_bytes());
        body(self);
        match u32::try_from(self.bytes.len() - start) {
            Ok(len) => self.patch(start, &len.to_ne_bytes()),
            Err(_) => self.too_long = true,
        }
    }

    /// Appends an attribute with these bytes.
    pub(crate) fn attr(&mut self, kind: u16, payload: &[u8]) {
        self.wrap(kind, |writer| writer.bytes.extend_from_slice(payload));
    }

    /// Appends an attribute that holds attributes.
    pub(crate) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        self.wrap(kind | NLA_F_NESTED, body);
    }

    /// Appends a 32-bit number.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// Appends a 64-bit number.
    pub(crate) fn be64(&mut self, kind: u16, value: u64) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// Appends a string with a terminating zero byte.
    pub(crate) fn text(&mut self, kind: u16, text: &str) {
        self.wrap(kind, |writer| {
            writer.bytes.extend(text.bytes().take_while(|byte| *byte != 0));
            writer.bytes.push(0);
        });
    }

    /// Appends encoded attributes.
    pub(crate) fn raw(&mut self, attributes: &[u8]) {
        self.bytes.extend_from_slice(attributes);
    }

    /// Appends the attributes of another writer.
    pub(crate) fn append(&mut self, other: &Self) {
        self.bytes.extend_from_slice(&other.bytes);
        self.too_long |= other.too_long;
    }

    /// Refuses if an attribute so far was too long.
    pub(crate) fn check(&self) -> Result<(), TooLong> {
        if self.too_long { Err(TooLong) } else { Ok(()) }
    }

    /// The bytes written so far.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn wrap(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        body(self);
        match u16::try_from(self.bytes.len() - start) {
            Ok(len) => self.patch(start, &len.to_ne_bytes()),
            Err(_) => self.too_long = true,
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
    }

    fn patch(&mut self, at: usize, bytes: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }
}

/// `NLM_F_REQUEST`.
const NLM_F_REQUEST: u16 = 1;

/// A received message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    /// `nlmsg_type`.
    pub(crate) kind: u16,
    /// `nlmsg_flags`.
    pub(crate) flags: u16,
    /// `nlmsg_seq`.
    pub(crate) seq: u32,
    /// The bytes after `struct nlmsghdr`.
    pub(crate) body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The protocol family of an nftables message.
    pub(crate) fn family(&self) -> u8 {
        self.body.first().copied().unwrap_or_default()
    }

    /// The attributes of an nftables message.
    pub(crate) fn attrs(&self) -> Attrs<'a> {
        Attrs(self.body.get(FAMILY_HEADER_LEN..).unwrap_or_default())
    }
}

/// The messages in a received datagram. The last one may be incomplete: a refusal carries the refused message, which
/// may be cut off.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let (header, rest) = bytes.split_first_chunk::<MESSAGE_HEADER_LEN>()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let len = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let body_len = len.checked_sub(MESSAGE_HEADER_LEN)?;
        let body = rest.get(..body_len).unwrap_or(rest);
        bytes = bytes.get(len.next_multiple_of(ALIGN)..).unwrap_or_default();
        let (kind, flags) = (u16::from_ne_bytes([k0, k1]), u16::from_ne_bytes([f0, f1]));
        Some(Message { kind, flags, seq: u32::from_ne_bytes([s0, s1, s2, s3]), body })
    })
}

/// A list of attributes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Attrs<'a>(&'a [u8]);

impl<'a> Attrs<'a> {
    /// The payload of the first attribute with that number.
    pub(crate) fn find(self, kind: u16) -> Option<&'a [u8]> {
        self.into_iter().find(|(found, _)| *found == kind).map(|(_, payload)| payload)
    }

    /// The list in the first attribute with that number; empty without one.
    pub(crate) fn list(self, kind: u16) -> Attrs<'a> {
        Attrs(self.find(kind).unwrap_or_default())
    }

    /// A 32-bit number.
    pub(crate) fn be32(self, kind: u16) -> Option<u32> {
        self.find(kind)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// A 64-bit number.
    pub(crate) fn be64(self, kind: u16) -> Option<u64> {
        self.find(kind)?.try_into().ok().map(u64::from_be_bytes)
    }

    /// A string.
    pub(crate) fn text(self, kind: u16) -> Option<&'a str> {
        let payload = self.find(kind)?;
        let len = payload.iter().position(|byte| *byte == 0).unwrap_or(payload.len());
        std::str::from_utf8(payload.get(..len)?).ok()
    }
}

impl<'a> IntoIterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);
    type IntoIter = AttrIter<'a>;

    fn into_iter(self) -> AttrIter<'a> {
        AttrIter(self.0)
    }
}

/// The attributes of a list with their numbers.
#[derive(Debug)]
pub(crate) struct AttrIter<'a>(&'a [u8]);

impl<'a> Iterator for AttrIter<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let [l0, l1, k0, k1] = *self.0.first_chunk::<ATTR_HEADER_LEN>()?;
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let payload = self.0.get(ATTR_HEADER_LEN..len)?;
        self.0 = self.0.get(len.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & !(NLA_F_NESTED | NLA_F_NET_BYTEORDER), payload))
    }
}

/// An attribute's payload as a list.
impl<'a> From<&'a [u8]> for Attrs<'a> {
    fn from(payload: &'a [u8]) -> Self {
        Self(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Head = Head { kind: 0x0a06, flags: 0x400, seq: 7, family: 1, res_id: 10 };

    #[test]
    fn attributes_are_padded_to_four_bytes_and_count_without_the_padding() {
        let mut writer = Writer::default();
        writer.text(3, "ab");
        assert_eq!(writer.bytes(), [7, 0, 3, 0, b'a', b'b', 0, 0]);
    }

    #[test]
    fn numbers_are_big_endian() {
        let mut writer = Writer::default();
        writer.be32(1, 0x0102_0304);
        writer.be64(2, 5);
        assert_eq!(writer.bytes(), [8, 0, 1, 0, 1, 2, 3, 4, 12, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
    }

    #[test]
    fn a_nest_counts_what_it_holds_with_padding() {
        let mut writer = Writer::default();
        writer.nest(4, |nest| nest.attr(1, &[9]));
        assert_eq!(writer.bytes(), [12, 0, 4, 0x80, 5, 0, 1, 0, 9, 0, 0, 0]);
    }

    #[test]
    fn a_message_has_its_length_and_is_a_request() {
        let mut writer = Writer::default();
        writer.message(HEAD, |message| message.attr(1, &[1, 2, 3, 4]));
        let expected = [28, 0, 0, 0, 6, 0x0a, 1, 4, 7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 10, 8, 0, 1, 0, 1, 2, 3, 4];
        assert_eq!(writer.bytes(), expected);
    }

    #[test]
    fn a_text_ends_at_a_zero_byte() {
        let mut writer = Writer::default();
        writer.text(1, "a\0b");
        assert_eq!(writer.bytes(), [6, 0, 1, 0, b'a', 0, 0, 0]);
    }

    #[test]
    fn the_longest_attribute_is_written_and_a_longer_one_refused() {
        let mut writer = Writer::default();
        writer.attr(1, &[0; 65531]);
        assert!(writer.check().is_ok());
        writer.attr(1, &[0; 65532]);
        assert!(writer.check().is_err());
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut writer = Writer::default();
        writer.message(HEAD, |message| {
            message.text(1, "name");
            message.nest(2, |nest| nest.be64(3, 1 << 40));
        });
        let message = messages(writer.bytes()).next().unwrap();
        assert_eq!((message.kind, message.seq, message.family()), (0x0a06, 7, 1));
        assert_eq!(message.attrs().text(1), Some("name"));
        assert_eq!(message.attrs().list(2).be64(3), Some(1 << 40));
    }

    #[test]
    fn a_cut_off_attribute_ends_the_list() {
        let bytes = [5, 0, 1, 0, 9, 0, 0, 0, 9, 0, 2, 0, 1];
        assert_eq!(Attrs(&bytes).into_iter().count(), 1);
    }

    #[test]
    fn lengths_below_the_header_end_the_list() {
        assert_eq!(Attrs(&[3, 0, 1, 0]).into_iter().count(), 0);
        assert_eq!(messages(&[15; 16]).count(), 1);
        assert_eq!(messages(&[0; 32]).count(), 0);
    }
}
