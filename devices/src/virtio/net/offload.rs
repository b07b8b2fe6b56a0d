//! Offloads: what the tap can do, as feature bits of the card and as the flags of TUNSETOFFLOAD.
//!
//! The names follow the guest: `GUEST_*` is what a guest may be *given* (frames from the tap with a partial checksum or
//! larger than the MTU), `HOST_*` what it may *send*. The kernel accepts from us whatever it could give us.

use std::ops::{BitAnd, BitOr};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO,
    VIRTIO_NET_F_HOST_USO,
};

/// A set of `TUN_F_*` flags (include/uapi/linux/if_tun.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads(u32);

impl Offloads {
    /// Nothing: whole frames with complete checksums.
    pub const NONE: Self = Self(0);
    /// Partial checksums; the others need it.
    pub const CSUM: Self = Self(0x01);
    /// TCP over IPv4 larger than the MTU.
    pub const TSO4: Self = Self(0x02);
    /// TCP over IPv6 larger than the MTU.
    pub const TSO6: Self = Self(0x04);
    /// TCP segments with ECN bits.
    pub const ECN: Self = Self(0x08);
    /// UDP to be fragmented.
    pub const UFO: Self = Self(0x10);
    /// UDP over IPv4 to be segmented.
    pub const USO4: Self = Self(0x20);
    /// UDP over IPv6 to be segmented. The kernel wants it set together with USO4.
    pub const USO6: Self = Self(0x40);

    /// Everything.
    pub const ALL: Self = Self(0x7f);

    /// The offloads of taps, most able first: USO came with Linux 6.2, UFO left and came back.
    pub const CANDIDATES: [Self; 4] = {
        let tcp = 0x0f;
        [Self(tcp | 0x70), Self(tcp | 0x10), Self(tcp), Self(0x01)]
    };

    /// Returns whether all of `other` is in this set.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The flags as TUNSETOFFLOAD takes them.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// The feature bits that a card on such a tap can serve, in both directions.
    pub fn features(self) -> u64 {
        let pairs = [
            (Self::CSUM, bit(VIRTIO_NET_F_CSUM) | bit(VIRTIO_NET_F_GUEST_CSUM)),
            (Self::TSO4, bit(VIRTIO_NET_F_HOST_TSO4) | bit(VIRTIO_NET_F_GUEST_TSO4)),
            (Self::TSO6, bit(VIRTIO_NET_F_HOST_TSO6) | bit(VIRTIO_NET_F_GUEST_TSO6)),
            (Self::ECN, bit(VIRTIO_NET_F_HOST_ECN) | bit(VIRTIO_NET_F_GUEST_ECN)),
            (Self::UFO, bit(VIRTIO_NET_F_HOST_UFO) | bit(VIRTIO_NET_F_GUEST_UFO)),
            (
                Self::USO4 | Self::USO6,
                bit(VIRTIO_NET_F_HOST_USO) | bit(VIRTIO_NET_F_GUEST_USO4) | bit(VIRTIO_NET_F_GUEST_USO6),
            ),
        ];
        pairs.iter().filter(|(offload, _)| self.has(*offload)).fold(0, |bits, (_, features)| bits | features)
    }

    /// The offloads for a guest that accepted `features`, or asked for them at run time. USO needs both its bits, ECN
    /// needs TSO, and everything needs partial checksums (virtio 1.3 5.1.3.1): the kernel refuses anything else.
    pub fn for_guest(features: u64) -> Self {
        let pairs = [
            (VIRTIO_NET_F_GUEST_TSO4, Self::TSO4),
            (VIRTIO_NET_F_GUEST_TSO6, Self::TSO6),
            (VIRTIO_NET_F_GUEST_UFO, Self::UFO),
        ];
        if features & bit(VIRTIO_NET_F_GUEST_CSUM) == 0 {
            return Self::NONE;
        }
        let set = pairs.iter().filter(|(f, _)| features & bit(*f) != 0).fold(Self::CSUM, |set, (_, o)| set | *o);
        let tso = set & (Self::TSO4 | Self::TSO6) != Self::NONE;
        let set = if tso && features & bit(VIRTIO_NET_F_GUEST_ECN) != 0 { set | Self::ECN } else { set };
        let uso = bit(VIRTIO_NET_F_GUEST_USO4) | bit(VIRTIO_NET_F_GUEST_USO6);
        if features & uso == uso { set | Self::USO4 | Self::USO6 } else { set }
    }

    /// Returns whether a guest with this set can be given frames larger than the MTU.
    pub fn large_frames(self) -> bool {
        self & (Self::TSO4 | Self::TSO6 | Self::UFO | Self::USO4 | Self::USO6) != Self::NONE
    }
}

impl BitOr for Offloads {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Offloads {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// The feature bits that VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET may name (virtio 1.3 5.1.6.5.6).
pub(super) const GUEST_FEATURES: u64 = bit(VIRTIO_NET_F_GUEST_CSUM)
    | bit(VIRTIO_NET_F_GUEST_TSO4)
    | bit(VIRTIO_NET_F_GUEST_TSO6)
    | bit(VIRTIO_NET_F_GUEST_ECN)
    | bit(VIRTIO_NET_F_GUEST_UFO)
    | bit(VIRTIO_NET_F_GUEST_USO4)
    | bit(VIRTIO_NET_F_GUEST_USO6);

pub(super) const fn bit(feature: u32) -> u64 {
    1 << feature
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_without_partial_checksums_gets_nothing() {
        assert_eq!(Offloads::for_guest(bit(VIRTIO_NET_F_GUEST_TSO4)), Offloads::NONE);
    }

    #[test]
    fn ecn_needs_tso() {
        let csum_ecn = bit(VIRTIO_NET_F_GUEST_CSUM) | bit(VIRTIO_NET_F_GUEST_ECN);
        assert_eq!(Offloads::for_guest(csum_ecn), Offloads::CSUM);
        assert!(Offloads::for_guest(csum_ecn | bit(VIRTIO_NET_F_GUEST_TSO6)).has(Offloads::ECN));
    }

    #[test]
    fn uso_needs_both_bits() {
        let csum = bit(VIRTIO_NET_F_GUEST_CSUM);
        assert_eq!(Offloads::for_guest(csum | bit(VIRTIO_NET_F_GUEST_USO4)), Offloads::CSUM);
        let both = csum | bit(VIRTIO_NET_F_GUEST_USO4) | bit(VIRTIO_NET_F_GUEST_USO6);
        assert!(Offloads::for_guest(both).has(Offloads::USO4 | Offloads::USO6));
    }

    #[test]
    fn everything_a_tap_can_do_is_offered_and_comes_back() {
        for able in Offloads::CANDIDATES {
            assert_eq!(Offloads::for_guest(able.features()), able);
        }
    }
}
