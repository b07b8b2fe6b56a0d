//! A port that is closed: the reset that a TCP segment to it gets (RFC 9293 3.10.7.1). Nothing is remembered.

use super::frame::{Packet, Protocol, be16};

/// Octets of a header without options.
const HEADER_BYTES: usize = 20;

/// Control bits.
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// The destination port of a segment, and the segment that refuses it; none for what is no segment, or is a reset.
pub(super) fn reset(packet: &Packet<'_>) -> Option<(u16, Vec<u8>)> {
    let segment = packet.payload;
    let header = segment.first_chunk::<HEADER_BYTES>().filter(|_| packet.protocol == Protocol::Tcp)?;
    let data_at = usize::from(header[12] >> 4) * 4;
    let flags = header[13];
    let data = segment.get(data_at..).filter(|_| data_at >= HEADER_BYTES && flags & RST == 0)?;
    let number = |at: usize| header.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
    let (sequence, acknowledged, bits) = if flags & ACK != 0 {
        (number(8)?, 0, RST)
    } else {
        // What it occupies of the sequence space: its octets, and one for each of the two bits.
        let marks = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        let len = u32::try_from(data.len()).ok()?.wrapping_add(marks);
        (0, number(4)?.wrapping_add(len), RST | ACK)
    };
    let (source, destination) = (be16(segment, 0)?, be16(segment, 2)?);
    let mut reset = Vec::with_capacity(HEADER_BYTES);
    reset.extend(destination.to_be_bytes());
    reset.extend(source.to_be_bytes());
    reset.extend(sequence.to_be_bytes());
    reset.extend(acknowledged.to_be_bytes());
    reset.extend([0x50, bits, 0, 0, 0, 0, 0, 0]);
    Some((destination, reset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn segment(bits: u8, data: &[u8]) -> Vec<u8> {
        let head = [0x12, 0x34, 0, 53, 0, 0, 0x10, 0, 0, 0, 0x20, 0, 0x50, bits, 1, 0, 0, 0, 0, 0];
        [&head, data].concat()
    }

    fn answer(payload: &[u8]) -> Option<(u16, Vec<u8>)> {
        let address = [10, 9, 8, 7].into();
        let protocol = Protocol::Tcp;
        reset(&Packet { source_mac: [0; 6], source: address, destination: address, protocol, hops: 1, payload })
    }

    #[test]
    fn connection_is_refused() {
        let expected = [0, 53, 0x12, 0x34, 0, 0, 0, 0, 0, 0, 0x10, 1, 0x50, RST | ACK, 0, 0, 0, 0, 0, 0];
        assert_eq!(answer(&segment(SYN, &[])), Some((53, expected.to_vec())));
    }

    #[test]
    fn segment_of_a_connection_that_is_not_there_is_refused_where_it_stands() {
        let (_, reset) = answer(&segment(ACK, b"abc")).unwrap();
        assert_eq!((&reset[4..12], reset[13]), (&[0, 0, 0x20, 0, 0, 0, 0, 0][..], RST));
    }

    #[test]
    fn octets_are_acknowledged() {
        let (_, reset) = answer(&segment(SYN | FIN, b"abc")).unwrap();
        assert_eq!(reset[8..12], [0, 0, 0x10, 5]);
    }

    #[test]
    fn resets_and_what_is_cut_get_nothing() {
        let mut short = segment(SYN, &[]);
        short[12] = 0x60;
        for segment in [segment(RST, &[]), segment(RST | ACK, &[]), short, segment(SYN, &[])[..19].to_vec()] {
            assert_eq!(answer(&segment), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_get_a_reset_or_nothing(payload in vec(any::<u8>(), 0..100)) {
            prop_assert!(answer(&payload).is_none_or(|(_, reset)| reset.len() == HEADER_BYTES));
        }
    }
}
