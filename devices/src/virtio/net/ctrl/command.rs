//! Bytes become a command of the control queue (virtio 1.3 5.1.6.5), or a refusal.

use crate::virtio::net::coalesce::Request;
use crate::virtio::net::filter::{Mode, Switch};
use crate::virtio::net::rss::{HashSettings, RssSettings};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET,
    VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_HASH_CONFIG, VIRTIO_NET_CTRL_MQ_RSS_CONFIG,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_CTRL_NOTF_COAL, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_VLAN,
    VIRTIO_NET_CTRL_VLAN_ADD, VIRTIO_NET_CTRL_VLAN_DEL, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_MQ, VIRTIO_NET_F_RSS,
};

/// A command that the driver gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::virtio::net) enum Command {
    /// Switch a receive mode, 5.1.6.5.1.
    Mode(Mode, Switch),
    /// Receive frames to these unicast and multicast addresses as well, 5.1.6.5.2.
    Tables(Vec<[u8; 6]>, Vec<[u8; 6]>),
    /// Use this address, 5.1.6.5.2.
    Mac([u8; 6]),
    /// Receive frames of this VLAN, or not, 5.1.6.5.3.
    Vlan(u16, Switch),
    /// Use this many queue pairs from now on, 5.1.6.5.5.
    Pairs(u16),
    /// The guest has announced itself, 5.1.6.5.4.
    Announced,
    /// Choose receive queues by hash, 5.1.6.5.7.1.
    Rss(RssSettings),
    /// Choose receive queues automatically and report this hash, 5.1.6.5.6.4.
    Hash(HashSettings),
    /// Give the guest only these offloads, as feature bits, 5.1.6.5.6.
    GuestOffloads(u64),
    /// Hold interrupts back, or say how they are held back, 5.1.6.5.7.
    Coalescing(Request),
}

impl Command {
    /// Reads a command; `None` if it is unknown, short or long.
    pub(in crate::virtio::net) fn parse(bytes: &[u8]) -> Option<Self> {
        let (&class, rest) = bytes.split_first()?;
        let (&command, data) = rest.split_first()?;
        match (u32::from(class), u32::from(command)) {
            (VIRTIO_NET_CTRL_RX, _) => match data {
                [on @ 0..=1] => Some(Self::Mode(Mode::from_command(command)?, Switch::from(*on == 1))),
                _ => None,
            },
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) => {
                let (unicast, data) = read_table(data)?;
                let (multicast, data) = read_table(data)?;
                data.is_empty().then_some(Self::Tables(unicast, multicast))
            }
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => Some(Self::Mac(data.try_into().ok()?)),
            (VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD) => Some(Self::Vlan(read_u16(data)?, Switch::On)),
            (VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_DEL) => Some(Self::Vlan(read_u16(data)?, Switch::Off)),
            (VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK) => data.is_empty().then_some(Self::Announced),
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => Some(Self::Pairs(read_u16(data)?)),
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_RSS_CONFIG) => Some(Self::Rss(RssSettings::parse(data)?)),
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_HASH_CONFIG) => Some(Self::Hash(HashSettings::parse(data)?)),
            (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
                Some(Self::GuestOffloads(u64::from_le_bytes(data.try_into().ok()?)))
            }
            (VIRTIO_NET_CTRL_NOTF_COAL, _) => Request::parse(command.into(), data).map(Self::Coalescing),
            _ => None,
        }
    }

    /// Bytes of the result that stands before the acknowledgement.
    pub(super) fn result_len(&self) -> u32 {
        match self {
            Self::Coalescing(Request::Get(_)) => 8,
            _ => 0,
        }
    }

    /// The feature that has to be negotiated for this command.
    pub(super) fn feature(&self) -> u32 {
        match self {
            Self::Mode(Mode::Promiscuous | Mode::AllMulticast, _) | Self::Tables(..) => VIRTIO_NET_F_CTRL_RX,
            Self::Mode(..) => VIRTIO_NET_F_CTRL_RX_EXTRA,
            Self::Mac(_) => VIRTIO_NET_F_CTRL_MAC_ADDR,
            Self::Vlan(..) => VIRTIO_NET_F_CTRL_VLAN,
            Self::Announced => VIRTIO_NET_F_GUEST_ANNOUNCE,
            Self::Pairs(_) => VIRTIO_NET_F_MQ,
            Self::Rss(_) => VIRTIO_NET_F_RSS,
            Self::Hash(_) => VIRTIO_NET_F_HASH_REPORT,
            Self::GuestOffloads(_) => VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
            Self::Coalescing(request) => request.feature(),
        }
    }
}

fn read_u16(data: &[u8]) -> Option<u16> {
    Some(u16::from_le_bytes(data.try_into().ok()?))
}

/// A count and that many addresses; and what follows them.
fn read_table(data: &[u8]) -> Option<(Vec<[u8; 6]>, &[u8])> {
    let (count, rest) = data.split_first_chunk()?;
    let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
    let (addresses, rest) = rest.split_at_checked(count.checked_mul(6)?)?;
    Some((addresses.as_chunks().0.to_vec(), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_by_class_and_command() {
        assert_eq!(Command::parse(&[4, 0, 2, 1]), Some(Command::Pairs(0x102)));
        let offloads = Command::parse(&[5, 0, 2, 0, 0, 0, 0, 0, 0, 0x80]);
        assert_eq!(offloads, Some(Command::GuestOffloads(0x8000_0000_0000_0002)));
    }

    #[test]
    fn filter_commands_are_read() {
        assert_eq!(Command::parse(&[0, 1, 1]), Some(Command::Mode(Mode::AllMulticast, Switch::On)));
        assert_eq!(Command::parse(&[3, 0]), Some(Command::Announced));
        assert_eq!(Command::parse(&[2, 1, 100, 0]), Some(Command::Vlan(100, Switch::Off)));
        assert_eq!(Command::parse(&[1, 1, 2, 0, 0, 0, 0, 9]), Some(Command::Mac([2, 0, 0, 0, 0, 9])));
        let tables = [1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 9, 0, 0, 0, 0];
        assert_eq!(Command::parse(&tables), Some(Command::Tables(vec![[2, 0, 0, 0, 0, 9]], Vec::new())));
    }

    #[test]
    fn tables_that_lie_about_their_length_are_refused() {
        for tail in [&[][..], &[0, 0, 0, 0], &[0xff; 4], &[1, 0, 0, 0, 1, 2, 3, 4, 5], &[0, 0, 0, 0, 0, 0, 0, 0, 1]] {
            assert_eq!(Command::parse(&[&[1, 0], tail].concat()), None, "{tail:?}");
        }
    }

    #[test]
    fn short_long_and_unknown_commands_are_refused() {
        for bytes in [
            &[][..],
            &[4],
            &[4, 0],
            &[4, 0, 1],
            &[4, 0, 1, 0, 0],
            &[4, 1, 1, 0],
            &[9, 0, 1, 0],
            &[0, 0, 2],
            &[0, 6, 1],
            &[3, 1],
            &[3, 0, 0],
        ] {
            assert_eq!(Command::parse(bytes), None, "{bytes:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_command_or_a_refusal(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..32)) {
            let _ = Command::parse(&bytes);
        }
    }
}
