//! Which received frames the guest wants (virtio 1.3 5.1.6.5.1 to 5.1.6.5.3): modes, address tables, VLANs.
//!
//! Owned by the control queue, which changes it, and copied by each receive queue when [`Shared`] says that it has
//! changed: the data path compares one number and takes no lock.

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU32, Ordering};
use std::sync::PoisonError;

/// Addresses kept of each table; a guest that sets more gets all frames of that kind, as virtio 1.3 5.1.6.5.2.1 allows.
const MAX_ADDRESSES: usize = 64;

/// Bytes of a frame that decide: destination, and the VLAN tag behind the source.
pub(super) const HEAD_LEN: usize = 16;

/// Words in the set of VLAN identifiers, of which there are 4096.
const VLAN_WORDS: usize = 4096 / 64;

/// Ethernet type of an 802.1Q tag.
const VLAN_TAG: [u8; 2] = [0x81, 0x00];

/// A receive mode of VIRTIO_NET_CTRL_RX, by its command number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Everything.
    Promiscuous,
    /// All multicast.
    AllMulticast,
    /// All unicast.
    AllUnicast,
    /// No multicast.
    NoMulticast,
    /// No unicast.
    NoUnicast,
    /// No broadcast.
    NoBroadcast,
}

impl Mode {
    /// Every mode at the place of its command number.
    const BY_COMMAND: [Self; 6] = [
        Self::Promiscuous,
        Self::AllMulticast,
        Self::AllUnicast,
        Self::NoMulticast,
        Self::NoUnicast,
        Self::NoBroadcast,
    ];

    /// The mode that a command switches; the last four belong to VIRTIO_NET_F_CTRL_RX_EXTRA.
    pub(super) fn from_command(command: u8) -> Option<Self> {
        Self::BY_COMMAND.get(usize::from(command)).copied()
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A table of addresses, or everything if the guest set more than there is room for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Table {
    addresses: Vec<[u8; 6]>,
    all: bool,
}

impl Table {
    fn set(&mut self, addresses: &[[u8; 6]]) {
        self.all = addresses.len() > MAX_ADDRESSES;
        self.addresses.clear();
        if !self.all {
            self.addresses.extend_from_slice(addresses);
        }
    }

    fn has(&self, address: &[u8]) -> bool {
        self.all || self.addresses.iter().any(|a| a == address)
    }
}

/// The frames that the guest wants to receive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filter {
    mac: [u8; 6],
    modes: u8,
    unicast: Table,
    multicast: Table,
    /// One bit for each VLAN; `None` while VLANs are not filtered.
    vlans: Option<Box<[u64; VLAN_WORDS]>>,
}

impl Filter {
    /// Everything, as after reset; the guest narrows it down. With `filter_vlans`, once it has left the promiscuous
    /// mode, tagged frames only of the VLANs it adds.
    pub(super) fn new(mac: [u8; 6], filter_vlans: bool) -> Self {
        Self {
            mac,
            modes: Mode::Promiscuous.bit(),
            unicast: Table::default(),
            multicast: Table::default(),
            vlans: filter_vlans.then(|| Box::new([0; VLAN_WORDS])),
        }
    }

    /// Switches a mode. Returns true: all of them can be.
    pub(super) fn set_mode(&mut self, mode: Mode, on: Switch) -> bool {
        match on {
            Switch::On => self.modes |= mode.bit(),
            Switch::Off => self.modes &= !mode.bit(),
        }
        true
    }

    /// The card's own address from now on. Returns true.
    pub(super) fn set_mac(&mut self, mac: [u8; 6]) -> bool {
        self.mac = mac;
        true
    }

    /// The further addresses from now on. Returns true: what there is no room for lets everything in.
    pub(super) fn set_tables(&mut self, unicast: &[[u8; 6]], multicast: &[[u8; 6]]) -> bool {
        self.unicast.set(unicast);
        self.multicast.set(multicast);
        true
    }

    /// Lets frames of `vlan` in, or keeps them out. Returns whether there is such a VLAN.
    pub(super) fn set_vlan(&mut self, vlan: u16, on: Switch) -> bool {
        let Some(vlans) = &mut self.vlans else { return false };
        let Some(word) = vlans.get_mut(usize::from(vlan / 64)) else { return false };
        let bit = 1 << (vlan % 64);
        match on {
            Switch::On => *word |= bit,
            Switch::Off => *word &= !bit,
        }
        true
    }

    /// Returns whether every frame is let in, so that none has to be looked at: the promiscuous mode comes before every
    /// other mode and before the VLANs (virtio 1.3 5.1.6.5.1.1). A guest that bridges has no other way to get the tags
    /// of others.
    pub(super) fn is_open(&self) -> bool {
        self.has(Mode::Promiscuous)
    }

    /// Returns whether the frame that begins with `head` is wanted.
    pub(super) fn accepts(&self, head: &[u8; HEAD_LEN]) -> bool {
        self.is_open() || (self.accepts_vlan(head) && self.accepts_destination(&head[..6]))
    }

    fn accepts_vlan(&self, head: &[u8; HEAD_LEN]) -> bool {
        let Some(vlans) = &self.vlans else { return true };
        if head[12..14] != VLAN_TAG {
            return true;
        }
        let vlan = usize::from(u16::from_be_bytes([head[14], head[15]]) & 0xfff);
        vlans[vlan / 64] & 1 << (vlan % 64) != 0
    }

    fn accepts_destination(&self, to: &[u8]) -> bool {
        if to == [0xff; 6] {
            !self.has(Mode::NoBroadcast)
        } else if to[0] & 1 != 0 {
            !self.has(Mode::NoMulticast) && (self.has(Mode::AllMulticast) || self.multicast.has(to))
        } else {
            let ours = to == self.mac || self.unicast.has(to);
            !self.has(Mode::NoUnicast) && (self.has(Mode::AllUnicast) || ours)
        }
    }

    fn has(&self, mode: Mode) -> bool {
        self.modes & mode.bit() != 0
    }
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

impl From<bool> for Switch {
    fn from(on: bool) -> Self {
        if on { Self::On } else { Self::Off }
    }
}

/// The filter as the control queue leaves it for the receive queues.
pub(super) struct Shared {
    /// Counts changes. Release after a change, Acquire before a copy.
    version: AtomicU32,
    filter: Mutex<Filter>,
}

impl Shared {
    /// A filter that has never changed.
    pub(super) fn new(filter: Filter) -> Self {
        Self { version: AtomicU32::new(0), filter: Mutex::new(filter) }
    }

    /// Changes the filter; `change` returns whether it did what was asked.
    pub(super) fn change(&self, change: impl FnOnce(&mut Filter) -> bool) -> bool {
        let done = change(&mut self.filter.lock().unwrap_or_else(PoisonError::into_inner));
        self.version.fetch_add(1, Ordering::Release);
        done
    }

    /// A number that differs after every change.
    pub(super) fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    /// The filter as it is now.
    pub(super) fn copy(&self) -> Filter {
        self.filter.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
    const BROADCAST: [u8; 6] = [0xff; 6];

    fn head(to: [u8; 6]) -> [u8; HEAD_LEN] {
        let mut head = [0; HEAD_LEN];
        head[..6].copy_from_slice(&to);
        head
    }

    fn tagged(vlan: u16) -> [u8; HEAD_LEN] {
        let mut head = head(MAC);
        head[12..14].copy_from_slice(&VLAN_TAG);
        head[14..].copy_from_slice(&(vlan | 0xe000).to_be_bytes());
        head
    }

    fn accepted(filter: &Filter) -> [bool; 4] {
        [MAC, OTHER, GROUP, BROADCAST].map(|to| filter.accepts(&head(to)))
    }

    fn narrow() -> Filter {
        let mut filter = Filter::new(MAC, false);
        filter.set_mode(Mode::Promiscuous, Switch::Off);
        filter
    }

    #[test]
    fn everything_is_let_in_after_reset() {
        let filter = Filter::new(MAC, false);
        assert!(filter.is_open());
        assert_eq!(accepted(&filter), [true; 4]);
    }

    #[test]
    fn without_promiscuous_only_own_address_and_broadcast() {
        assert_eq!(accepted(&narrow()), [true, false, false, true]);
    }

    #[test]
    fn tables_add_addresses_and_a_new_own_address_replaces_the_old() {
        let mut filter = narrow();
        filter.set_tables(&[OTHER], &[GROUP]);
        assert_eq!(accepted(&filter), [true; 4]);
        filter.set_tables(&[], &[]);
        filter.set_mac(OTHER);
        assert_eq!(accepted(&filter), [false, true, false, true]);
    }

    #[test]
    fn table_that_overflows_lets_all_of_its_kind_in() {
        let mut filter = narrow();
        filter.set_tables(&[], &vec![[1; 6]; MAX_ADDRESSES + 1]);
        assert_eq!(accepted(&filter), [true, false, true, true]);
    }

    #[test]
    fn every_mode_does_what_its_name_says() {
        for (mode, expected) in [
            (Mode::AllMulticast, [true, false, true, true]),
            (Mode::AllUnicast, [true, true, false, true]),
            (Mode::NoUnicast, [false, false, false, true]),
            (Mode::NoBroadcast, [true, false, false, false]),
        ] {
            let mut filter = narrow();
            filter.set_mode(mode, Switch::On);
            assert_eq!(accepted(&filter), expected, "{mode:?}");
        }
    }

    #[test]
    fn suppressed_kinds_stay_out_even_if_all_of_them_are_asked_for() {
        for (all, none, expected) in [
            (Mode::AllMulticast, Mode::NoMulticast, [true, false, false, true]),
            (Mode::AllUnicast, Mode::NoUnicast, [false, false, false, true]),
        ] {
            let mut filter = narrow();
            filter.set_mode(all, Switch::On);
            filter.set_mode(none, Switch::On);
            assert_eq!(accepted(&filter), expected, "{none:?}");
        }
    }

    #[test]
    fn promiscuous_comes_before_every_other_mode_and_before_the_vlans() {
        let mut filter = Filter::new(MAC, true);
        for mode in [Mode::NoMulticast, Mode::NoUnicast, Mode::NoBroadcast] {
            filter.set_mode(mode, Switch::On);
        }
        assert!(filter.is_open());
        assert_eq!(accepted(&filter), [true; 4]);
        assert!(filter.accepts(&tagged(100)));
        filter.set_mode(Mode::Promiscuous, Switch::Off);
        assert_eq!(accepted(&filter), [false; 4]);
        assert!(!filter.accepts(&tagged(100)));
    }

    #[test]
    fn only_added_vlans_and_untagged_frames_are_let_in() {
        let mut filter = Filter::new(MAC, true);
        filter.set_mode(Mode::Promiscuous, Switch::Off);
        assert!(filter.set_vlan(100, Switch::On));
        assert!(filter.accepts(&tagged(100)));
        assert!(!filter.accepts(&tagged(101)));
        assert!(filter.accepts(&head(MAC)));
        assert!(filter.set_vlan(100, Switch::Off));
        assert!(!filter.accepts(&tagged(100)));
        assert!(!filter.set_vlan(4096, Switch::On));
        assert!(!Filter::new(MAC, false).set_vlan(1, Switch::On));
    }

    #[test]
    fn commands_name_modes_by_number() {
        assert_eq!(Mode::from_command(0), Some(Mode::Promiscuous));
        assert_eq!(Mode::from_command(5), Some(Mode::NoBroadcast));
        assert_eq!(Mode::from_command(6), None);
    }
}
