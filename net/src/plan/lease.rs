//! The address of a guest on a network of ours. It follows from the VM's name and the card; if a sibling has it, the
//! next free one is used. It is the same at every start unless a sibling has taken it meanwhile.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::identity::hash;
use crate::spec::Subnet;

/// The address of a VM's card; none if all are `taken`.
pub(crate) fn choose(vm: &str, card_idx: usize, subnet: Subnet, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let guests = u64::from(subnet.guests());
    let start = hash::of_card(vm, card_idx) % guests;
    let candidates = (0..guests).map(|idx| (start + idx) % guests);
    // Each is less than the number of guests, which is a u32.
    let mut candidates = candidates.filter_map(|index| subnet.guest(u32::try_from(index).unwrap_or(u32::MAX)));
    candidates.find(|address| !taken.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_the_same_address_every_time() {
        let subnet = "10.1.2.0/24".parse().unwrap();
        let address = choose("web", 0, subnet, &BTreeSet::new()).unwrap();
        assert_eq!(address, Ipv4Addr::new(10, 1, 2, 37));
        assert_ne!(choose("web", 1, subnet, &BTreeSet::new()), Some(address));
    }

    #[test]
    fn every_guest_has_an_address_of_its_own_until_all_are_taken() {
        let subnet: Subnet = "10.1.2.0/24".parse().unwrap();
        let mut taken = BTreeSet::new();
        for idx in 0..subnet.guests() {
            let address = choose(&format!("vm{idx}"), 0, subnet, &taken).unwrap();
            assert!(taken.insert(address));
            assert!(subnet.contains(address) && address != subnet.gateway() && address != subnet.broadcast());
        }
        assert_eq!(choose("late", 0, subnet, &taken), None);
    }
}
