//! Hashes of names: stable across releases, and evenly spread.

/// FNV-1a, 64 bit: offset basis and prime.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// The hash of some bytes.
pub(crate) fn of_bytes<'a>(bytes: impl Iterator<Item = &'a u8>) -> u64 {
    let hash = bytes.fold(FNV_OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME));
    // FNV's high bits mix badly for short inputs: fold them over the low ones.
    hash ^ (hash >> 40)
}

/// The hash of a VM's card.
pub(crate) fn of_card(vm: &str, card_idx: usize) -> u64 {
    // The length separates name and index: ("a1", 1) and ("a", 11) are different inputs.
    let fields = [vm.len().to_le_bytes(), card_idx.to_le_bytes()];
    of_bytes(fields.iter().flatten().chain(vm.as_bytes()))
}
