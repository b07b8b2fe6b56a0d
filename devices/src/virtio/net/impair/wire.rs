//! How many bytes a frame has on the wire, once it is segmented.
//!
//! The length of the headers that each segment repeats is read from the frame, as the kernel does when it segments it:
//! `hdr_len` is a hint that a guest may have made up (virtio 1.3 5.1.6.2). Whoever counts by this hands on the very
//! bytes that it has read.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP, VIRTIO_NET_HDR_GSO_UDP_L4,
};

/// Most bytes of headers, without virtio's, that are looked at. Ethernet, IPv6 with a few extensions and TCP take less.
pub(super) const HEADERS_MAX: usize = 256;

/// Offsets of `gso_type` and `gso_size` in the virtio header.
const GSO_TYPE: usize = 1;
const GSO_SIZE: usize = 4;

const ETHERTYPE: usize = 12;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN_TAGS: [u16; 2] = [0x8100, 0x88a8];
const VLAN_TAG_BYTES: usize = 4;

const IPV6_HEADER: usize = 40;
/// Extension headers that have a length in units of 8 bytes behind the first: hop-by-hop, routing, destination options.
const IPV6_OPTIONS: [u8; 3] = [0, 43, 60];
const IPV6_FRAGMENT: u8 = 44;
const IPV6_FRAGMENT_BYTES: usize = 8;

const UDP_HEADER: usize = 8;
const TCP_HEADER_MIN: usize = 20;
const TCP_DATA_OFFSET: usize = 12;

/// Bytes on the wire of a frame of `len` bytes that begins with `start`, behind the virtio header `vnet`. None if it is
/// to be segmented and its headers are none that this knows.
pub(super) fn bytes(vnet: &[u8], start: &[u8], len: usize) -> Option<usize> {
    let kind = u32::from(vnet.get(GSO_TYPE).copied().unwrap_or(0)) & !VIRTIO_NET_HDR_GSO_ECN;
    let size = vnet.get(GSO_SIZE..GSO_SIZE + 2).map_or(0, |size| usize::from(u16::from_le_bytes([size[0], size[1]])));
    // The kernel refuses a size of 0.
    if kind == VIRTIO_NET_HDR_GSO_NONE || size == 0 {
        return Some(len);
    }
    let headers = segment_headers(start, kind)?;
    let segments = len.saturating_sub(headers).div_ceil(size).max(1);
    Some(len + (segments - 1) * headers)
}

/// Bytes of headers that every segment of a frame has.
fn segment_headers(start: &[u8], kind: u32) -> Option<usize> {
    let mut at = ETHERTYPE;
    while VLAN_TAGS.contains(&u16_at(start, at)?) {
        at += VLAN_TAG_BYTES;
    }
    let network = at + 2;
    let transport = match u16_at(start, at)? {
        IPV4 => network + usize::from(start.get(network)? & 0xf) * 4,
        IPV6 => behind_ipv6(start, network)?,
        _ => return None,
    };
    let headers = match kind {
        VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_TCPV6 => {
            transport + (usize::from(start.get(transport + TCP_DATA_OFFSET)? >> 4) * 4).max(TCP_HEADER_MIN)
        }
        VIRTIO_NET_HDR_GSO_UDP_L4 => transport + UDP_HEADER,
        // Fragments: only the first has the header of UDP.
        VIRTIO_NET_HDR_GSO_UDP => transport,
        _ => return None,
    };
    (headers <= HEADERS_MAX).then_some(headers)
}

/// Where the header behind IPv6 and its extensions begins.
fn behind_ipv6(start: &[u8], network: usize) -> Option<usize> {
    let (mut next, mut at) = (*start.get(network + 6)?, network + IPV6_HEADER);
    // Each turn goes on by 8 bytes at least, within `start`.
    loop {
        let len = match next {
            IPV6_FRAGMENT => IPV6_FRAGMENT_BYTES,
            option if IPV6_OPTIONS.contains(&option) => (usize::from(*start.get(at + 1)?) + 1) * 8,
            _ => return Some(at),
        };
        next = *start.get(at)?;
        at += len;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A virtio header that lies about `hdr_len`.
    fn vnet(kind: u32, size: u8) -> [u8; 12] {
        let mut vnet = [0; 12];
        (vnet[1], vnet[2], vnet[4]) = (kind.to_le_bytes()[0], 1, size);
        vnet
    }

    /// The start of a TCP frame with these tags and, for IPv6, this chain of headers behind the first.
    fn start(tags: &[u8], ethertype: [u8; 2], network: &[u8], tcp_words: u8) -> Vec<u8> {
        let mut tcp = [0; 20];
        tcp[TCP_DATA_OFFSET] = tcp_words << 4;
        [&[2; 12], tags, &ethertype, network, &tcp].concat()
    }

    fn ipv6(next: u8, extensions: &[u8]) -> Vec<u8> {
        let mut header = [0; 40];
        header[6] = next;
        [&header, extensions].concat()
    }

    #[test]
    fn headers_of_segments_are_those_of_the_frame_whatever_the_guest_says() {
        let ipv4 = |words: u8| [&[0x40 | words][..], &vec![0; usize::from(words) * 4 - 1]].concat();
        let (v4, v6) = (VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6);
        let options = [&[6, 1][..], &[0; 14]].concat();
        for (kind, start, headers) in [
            (v4, start(&[], [8, 0], &ipv4(5), 5), 54),
            (v4 | VIRTIO_NET_HDR_GSO_ECN, start(&[], [8, 0], &ipv4(15), 15), 134),
            (v4, start(&[0x81, 0, 0, 7, 0x88, 0xa8, 0, 8], [8, 0], &ipv4(5), 8), 74),
            // Shorter than a header of TCP can be.
            (v4, start(&[], [8, 0], &ipv4(5), 0), 54),
            (v6, start(&[], [0x86, 0xdd], &ipv6(6, &[]), 5), 74),
            (v6, start(&[], [0x86, 0xdd], &ipv6(60, &options), 5), 90),
            (VIRTIO_NET_HDR_GSO_UDP_L4, start(&[], [8, 0], &ipv4(5), 0), 42),
            (VIRTIO_NET_HDR_GSO_UDP, start(&[], [8, 0], &ipv4(5), 0), 34),
        ] {
            let len = headers + 80;
            assert_eq!(bytes(&vnet(kind, 8), &start, len), Some(len + 9 * headers), "{kind} {start:?}");
        }
    }

    #[test]
    fn frame_that_is_not_segmented_counts_as_it_is() {
        assert_eq!(bytes(&vnet(VIRTIO_NET_HDR_GSO_NONE, 8), &[], 1000), Some(1000));
        assert_eq!(bytes(&vnet(VIRTIO_NET_HDR_GSO_TCPV4, 0), &[], 1000), Some(1000));
    }

    #[test]
    fn headers_that_cannot_be_told_are_not_guessed() {
        let long = [&[60, 255][..], &[0; 300]].concat();
        for start in [start(&[], [0x88, 0x64], &[], 5), start(&[], [0x86, 0xdd], &ipv6(60, &long), 5), vec![0; 13]] {
            let start = &start[..start.len().min(HEADERS_MAX)];
            assert_eq!(bytes(&vnet(VIRTIO_NET_HDR_GSO_TCPV4, 8), start, 1000), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_number_that_is_not_less_than_the_frame(
            vnet in prop::array::uniform12(any::<u8>()),
            start in prop::collection::vec(any::<u8>(), 0..HEADERS_MAX),
            len in 0_usize..70_000,
        ) {
            prop_assert!(bytes(&vnet, &start, len).is_none_or(|bytes| bytes >= len));
        }
    }
}
