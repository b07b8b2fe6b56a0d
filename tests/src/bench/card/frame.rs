//! Frames as the host sends them: IPv4 with UDP, or one TCP super-frame, behind the virtio-net header (virtio 1.3
//! 5.1.6).

use super::tap::HEADER_BYTES;

/// The card under test.
pub(super) const CARD_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// The destination of the guest's frames in throughput runs.
pub(super) const SINK_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
/// The host's generator and echo.
pub(super) const PEER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x03];

/// Where a UDP frame's payload begins, counted from the virtio-net header.
pub(super) const PAYLOAD_AT: usize = HEADER_BYTES + 14 + 20 + 8;
/// Virtio, Ethernet, IP and TCP header.
pub(super) const HEADERS_BYTES: usize = HEADER_BYTES + 14 + 20 + 20;
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;

/// Sizes of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Bytes without the check sequence.
    pub(super) bytes: usize,
    /// Bytes of a TCP segment, 0 for single frames.
    pub(super) mss: u16,
    /// True if a datagram's checksum is left to the device, as Linux leaves it: then the card may join datagrams.
    pub(super) partial: bool,
    /// Frames that are queued at once: enough to take some milliseconds, and not too much memory.
    pub(super) depth: u64,
    /// Name for people.
    pub(super) name: &'static str,
}

impl Shape {
    /// The smallest frame of Ethernet, 64 bytes with its check sequence.
    pub(super) const SMALL: Self = Self { bytes: 60, mss: 0, partial: true, depth: 8192, name: "64" };
    /// The same, of which each has to travel alone.
    pub(super) const ALONE: Self = Self { partial: false, name: "64-alone", ..Self::SMALL };
    /// The largest frame of an ordinary network.
    pub(super) const FULL: Self = Self { bytes: 1514, mss: 0, partial: true, depth: 8192, name: "1500" };
    /// As many whole segments as fit into one IPv4 packet.
    pub(super) const GSO: Self = Self { bytes: 54 + 45 * 1448, mss: 1448, partial: true, depth: 1024, name: "64K-gso" };
}

/// Virtio, Ethernet, IP and TCP or UDP header of a frame from one peer to another.
pub(super) fn headers(from: [u8; 6], to: [u8; 6], shape: Shape, flow: u16) -> [u8; HEADERS_BYTES] {
    let mut bytes = [0; HEADERS_BYTES];
    let (virtio, ethernet) = bytes.split_at_mut(HEADER_BYTES);
    if shape.mss != 0 {
        virtio[..2].copy_from_slice(&[NEEDS_CSUM, GSO_TCPV4]);
        for (field, value) in virtio[2..].chunks_exact_mut(2).zip([54, shape.mss, 34, 16]) {
            field.copy_from_slice(&value.to_le_bytes());
        }
    }
    ethernet[..6].copy_from_slice(&to);
    ethernet[6..12].copy_from_slice(&from);
    ethernet[12] = 0x08;
    let ip = &mut ethernet[14..];
    let ip_len = u16::try_from(shape.bytes - 14).unwrap_or(u16::MAX);
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&ip_len.to_be_bytes());
    ip[8..10].copy_from_slice(&[64, if shape.mss == 0 { 17 } else { 6 }]);
    ip[12..20].copy_from_slice(&[10, 0, 0, 2, 10, 0, 0, 1]);
    let sum: u32 = ip[..20].chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let [_, _, high, low] = (!((sum & 0xffff) + (sum >> 16))).to_be_bytes();
    ip[10..12].copy_from_slice(&[high, low]);
    ip[20..22].copy_from_slice(&(1000 + flow).to_be_bytes());
    ip[22..24].copy_from_slice(&9_u16.to_be_bytes());
    if shape.mss == 0 {
        ip[24..26].copy_from_slice(&(ip_len - 20).to_be_bytes());
    } else {
        ip[32] = 0x50;
        ip[33] = 0x10;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ip_header_sums_up() {
        for shape in [Shape::SMALL, Shape::FULL, Shape::GSO] {
            let bytes = headers(PEER_MAC, CARD_MAC, shape, 7);
            let ip = &bytes[HEADER_BYTES + 14..][..20];
            let sum: u32 = ip.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "{}", shape.name);
        }
    }
}
