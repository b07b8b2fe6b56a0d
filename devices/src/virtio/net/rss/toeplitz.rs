//! The Toeplitz hash: for every bit that is set in the input, the 32 bits of the key that begin at the same place, all
//! added modulo two.
//!
//! A key becomes a table of what each four bits of input add, so a byte costs two look-ups. A table by bytes would
//! halve the look-ups and take 36 KiB for each key, more than the first cache has.

/// Longest input in bytes: two IPv6 addresses and two ports.
pub(in crate::virtio::net) const MAX_INPUT: usize = 36;

/// Places of four bits in the longest input.
pub(in crate::virtio::net) const NIBBLES: usize = 2 * MAX_INPUT;

/// Values that four bits can have.
pub(in crate::virtio::net) const VALUES: usize = 16;

/// Bytes of key that the longest input uses.
const KEY_LEN: usize = MAX_INPUT + 4;

/// A key, prepared for hashing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toeplitz {
    /// The addend of each value of four bits; the first are the upper ones of the first byte.
    added: Box<[[u32; VALUES]; NIBBLES]>,
}

impl Toeplitz {
    /// Prepares `key`. Where it is too short for an input its bits count as zero, and bytes past the 40th are not used.
    pub fn new(key: &[u8]) -> Self {
        let mut bytes = [0; KEY_LEN + 1];
        let len = key.len().min(KEY_LEN);
        bytes[..len].copy_from_slice(&key[..len]);
        let mut added = Box::new([[0; VALUES]; NIBBLES]);
        for (place, values) in added.iter_mut().enumerate() {
            let windows: [u32; 4] = std::array::from_fn(|bit| window(&bytes, place * 4 + bit));
            for (value, sum) in values.iter_mut().enumerate() {
                let set = (0..4).filter(|bit| value & 8 >> bit != 0);
                *sum = set.fold(0, |sum, bit| sum ^ windows[bit]);
            }
        }
        Self { added }
    }

    /// The hash of `input`, of which at most the first 36 bytes count.
    pub fn hash(&self, input: &[u8]) -> u32 {
        let (pairs, _) = self.added.as_chunks::<2>();
        pairs
            .iter()
            .zip(input)
            .fold(0, |sum, ([upper, lower], byte)| sum ^ upper[usize::from(byte >> 4)] ^ lower[usize::from(byte & 0xf)])
    }

    /// The addends of each four bits of input, in order.
    pub(in crate::virtio::net) fn words(&self) -> impl Iterator<Item = u32> {
        self.added.iter().flatten().copied()
    }
}

/// The 32 bits of `key` that begin at bit `at`.
fn window(key: &[u8; KEY_LEN + 1], at: usize) -> u32 {
    let five = (0..5).fold(0, |bits, i| bits << 8 | u64::from(key[at / 8 + i]));
    let [_, _, _, _, window @ ..] = (five >> (8 - at % 8)).to_be_bytes();
    u32::from_be_bytes(window)
}
