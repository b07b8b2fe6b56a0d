//! VLANs of a bridge port: its memberships, and their rtnetlink form (`IFLA_BRIDGE_VLAN_INFO`, linux/if_bridge.h).
//!
//! The port forgets them when it leaves the bridge, so nothing has to be restored.

use std::fmt;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, LinkAttribute, LinkMessage};
use serde::Serialize;

use crate::spec::{VlanId, VlanList};

/// The VLANs of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PortVlans {
    /// The VLAN of untagged frames; without one they are dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub untagged: Option<VlanId>,
    /// The VLANs of tagged frames.
    #[serde(skip_serializing_if = "VlanList::is_empty")]
    pub tagged: VlanList,
    /// The bridge's default VLAN, if it has one that the port is to leave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leave: Option<u16>,
}

impl PortVlans {
    /// The message that makes `port` a member, for `RTM_SETLINK`.
    pub(crate) fn join_message(&self, port: u32) -> LinkMessage {
        let mut infos = Vec::new();
        for range in self.tagged.as_slice() {
            let (first, last) = (range.first.get(), range.last.get());
            if first == last {
                infos.push(info(BridgeVlanInfoFlags::empty(), first));
            } else {
                infos.push(info(BridgeVlanInfoFlags::RangeBegin, first));
                infos.push(info(BridgeVlanInfoFlags::RangeEnd, last));
            }
        }
        // Last, so that it holds for a VLAN that is tagged as well.
        let untagged =
            self.untagged.map(|id| info(BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged, id.get()));
        infos.extend(untagged);
        message(port, infos)
    }

    /// The message that takes `port` out of the bridge's default VLAN, for `RTM_DELLINK`.
    pub(crate) fn leave_message(&self, port: u32) -> Option<LinkMessage> {
        self.leave.map(|id| message(port, vec![info(BridgeVlanInfoFlags::empty(), id)]))
    }
}

impl fmt::Display for PortVlans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.untagged, self.tagged.is_empty()) {
            (Some(id), true) => write!(f, "untagged in VLAN {id}"),
            (Some(id), false) => write!(f, "untagged in VLAN {id} and tagged in {}", self.tagged),
            (None, _) => write!(f, "tagged in VLAN {}", self.tagged),
        }
    }
}

fn info(flags: BridgeVlanInfoFlags, vid: u16) -> AfSpecBridge {
    AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid })
}

fn message(port: u32, infos: Vec<AfSpecBridge>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = port;
    message.attributes.push(LinkAttribute::AfSpecBridge(infos));
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_core::Emitable;

    /// The bytes after the header of a message: `struct ifinfomsg` has 16 bytes.
    fn attributes(message: &LinkMessage) -> Vec<u8> {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        assert_eq!(bytes[0], 7, "AF_BRIDGE");
        assert_eq!(bytes[4..8], 9u32.to_ne_bytes(), "the port");
        bytes.split_off(16)
    }

    fn vlans(untagged: Option<&str>, tagged: &str) -> PortVlans {
        let tagged = if tagged.is_empty() { VlanList::default() } else { tagged.parse().unwrap() };
        PortVlans { untagged: untagged.map(|id| id.parse().unwrap()), tagged, leave: Some(1) }
    }

    /// An attribute of four bytes: flags and number.
    fn entry(flags: u16, id: u16) -> Vec<u8> {
        [8u16, 2, flags, id].into_iter().flat_map(u16::to_ne_bytes).collect()
    }

    fn nested(entries: &[Vec<u8>]) -> Vec<u8> {
        let inner = entries.concat();
        let length = u16::try_from(inner.len() + 4).unwrap();
        [length.to_ne_bytes().to_vec(), 26u16.to_ne_bytes().to_vec(), inner].concat()
    }

    #[test]
    fn untagged_vlan_is_the_ports_own() {
        assert_eq!(attributes(&vlans(Some("100"), "").join_message(9)), nested(&[entry(2 | 4, 100)]));
    }

    #[test]
    fn trunk_is_single_vlans_and_ranges_with_a_begin_and_an_end() {
        assert_eq!(
            attributes(&vlans(Some("30"), "10+100-110").join_message(9)),
            nested(&[entry(0, 10), entry(8, 100), entry(16, 110), entry(2 | 4, 30)])
        );
    }

    #[test]
    fn default_vlan_is_left() {
        let left = vlans(Some("100"), "").leave_message(9).unwrap();
        assert_eq!(attributes(&left), nested(&[entry(0, 1)]));
    }
}
