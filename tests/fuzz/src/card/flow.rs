//! Datagrams of one UDP flow.

/// Datagrams of one flow, which a card may join; one byte of the last is changed.
pub(super) struct Flow {
    ipv6: bool,
    fragment: u16,
    pub(super) count: u8,
    payload: usize,
    last: usize,
    port: u16,
    id: u16,
    pub(super) cut: u16,
    wrong_at: usize,
    wrong: u8,
}

impl Flow {
    pub(super) fn decode(b: u16, c: u32, d: u64) -> Self {
        let [flags, count, wrong_at, wrong, cut_low, cut_high, last_low, last_high] = d.to_le_bytes();
        let [p0, p1, i0, i1] = c.to_le_bytes();
        let payload = usize::from(b % 2000);
        Self {
            ipv6: flags & 1 != 0,
            fragment: if flags & 2 == 0 { 0x4000 } else { 0 },
            count: count % 12 + 1,
            payload,
            last: payload.saturating_sub(usize::from(u16::from_le_bytes([last_low, last_high]) % 64)),
            port: u16::from_le_bytes([p0, p1]),
            id: u16::from_le_bytes([i0, i1]),
            cut: u16::from_le_bytes([cut_low, cut_high]),
            wrong_at: wrong_at.into(),
            wrong,
        }
    }

    /// The `nth` of them, with a virtio header that leaves the checksum to the device.
    pub(super) fn frame(&self, nth: u8) -> Vec<u8> {
        let is_last = nth + 1 == self.count;
        let payload = if is_last { self.last } else { self.payload };
        let network = if self.ipv6 { 40 } else { 20 };
        let udp_len = u16::try_from(8 + payload).expect("short").to_be_bytes();
        let mut packet = vec![0; network + 8 + payload];
        if self.ipv6 {
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&udp_len);
            packet[6..8].copy_from_slice(&[17, 64]);
        } else {
            packet[0] = 0x45;
            let len = u16::try_from(packet.len()).expect("short");
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            packet[4..6].copy_from_slice(&self.id.wrapping_add(nth.into()).to_be_bytes());
            packet[6..8].copy_from_slice(&self.fragment.to_be_bytes());
            packet[8..10].copy_from_slice(&[64, 17]);
        }
        packet[network - 8..network].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        if !self.ipv6 {
            let checksum = !sum(&packet[..network], 0);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        packet[network..network + 2].copy_from_slice(&self.port.to_be_bytes());
        packet[network + 4..network + 6].copy_from_slice(&udp_len);
        let addresses = if self.ipv6 { 8..40 } else { 12..20 };
        let pseudo = sum(&packet[addresses], 17 + u32::from(u16::from_be_bytes(udp_len)));
        packet[network + 6..network + 8].copy_from_slice(&pseudo.to_be_bytes());
        let start = u8::try_from(14 + network).expect("short");
        let mut frame = vec![1, 0, 0, 0, 0, 0, start, 0, 6, 0, 0, 0];
        frame.extend([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
        frame.extend(if self.ipv6 { [0x86, 0xdd] } else { [8, 0] });
        frame.extend(packet);
        if is_last && let Some(byte) = frame.get_mut(self.wrong_at) {
            *byte ^= self.wrong;
        }
        frame
    }
}

/// The ones' complement sum of 16-bit words (RFC 1071), from `start` on.
fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = bytes.chunks(2).fold(start, |sum, word| sum + u32::from(word[0]) * 256 + u32::from(word[1]));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}
