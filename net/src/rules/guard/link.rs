//! Frames that no guest sends to the switch it is behind, guarded or not.
//!
//! A bridge without a spanning tree forwards BPDUs (`br_handle_frame`, net/bridge/br_input.c), so a guest's reach the
//! physical switch, which moves its spanning tree or shuts the host's port down. The bridge's own guard
//! (`IFLA_BRPORT_GUARD`) is no help: it acts only where the bridge has a spanning tree itself, and then disables the
//! port, by which a guest could cut itself off for good. So these frames are dropped and counted, and the port stays
//! up. The groups of link-local protocols that are not listed here (01:80:c2:00:00:01 to :0f: pause frames, LACP,
//! 802.1X, LLDP) are the bridge's own matter: it forwards none unless `group_fwd_mask` says so.
//!
//! Tags: a bridge that filters VLANs looks at the first one only. Behind a first tag of VLAN 0, or of the port's own
//! VLAN, a second one comes out of an untagged port as the only one: a guest of one VLAN would speak in another.

use super::drop_as;
use crate::kernel::nft::{EtherAddr, EtherType, Match, Rule, Test};

/// Reasons for drops: the names of the counters.
pub(crate) const BPDU: &str = "bpdu";
pub(crate) const TAGGED: &str = "tagged";

/// Multicast groups of the protocols by which switches configure each other.
const SWITCHES: [EtherAddr; 5] = [
    // Spanning trees of customers' bridges and of providers' (IEEE 802.1Q table 8-1).
    EtherAddr([0x01, 0x80, 0xc2, 0, 0, 0x00]),
    EtherAddr([0x01, 0x80, 0xc2, 0, 0, 0x08]),
    // MVRP, by which a port asks for VLANs (IEEE 802.1Q table 10-1).
    EtherAddr([0x01, 0x80, 0xc2, 0, 0, 0x21]),
    // Cisco's: CDP, VTP, DTP, UDLD and PAgP; spanning trees of single VLANs.
    EtherAddr([0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcc]),
    EtherAddr([0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcd]),
];

/// EtherTypes of tags: IEEE 802.1Q, 802.1ad, and the predecessor of the latter.
const TAGS: [EtherType; 3] = [EtherType::VLAN, EtherType::PROVIDER_VLAN, EtherType(0x9100)];

/// Drops frames that only switches send to each other.
pub(crate) fn no_bpdu() -> Rule {
    drop_as(Rule::new().with(Match::EtherDaddr(Test::any(SWITCHES))), BPDU)
}

/// Drops frames with a second tag. The kernel has removed the first before frames come to a chain.
pub(crate) fn no_second_tag() -> Rule {
    drop_as(Rule::new().with(Match::Protocol(Test::any(TAGS))), TAGGED)
}

/// Drops frames with any tag, also one of VLAN 0, which only carries a priority (IEEE 802.1Q 6.9).
pub(crate) fn no_tag() -> Rule {
    drop_as(Rule::new().with(Match::EtherType(Test::any(TAGS))), TAGGED)
}
