//! Uplinks whose addresses move to a bridge: programs that expect the addresses on the interface.

use std::fs;
use std::path::Path;

use super::Finding;
use crate::facts::{Facts, Link};
use crate::spec::{NetSpec, Switch};

/// Looks at the uplinks of these cards, below `root`.
pub(super) fn look(root: &Path, cards: &[NetSpec], facts: &Facts) -> Vec<Finding> {
    let moving = cards.iter().filter_map(|card| match card {
        NetSpec::Bridge(spec) if spec.uplink.move_addresses == Switch::On => spec.uplink.uplink.as_ref(),
        _ => None,
    });
    let links = moving.filter_map(|name| facts.link(name.as_str()));
    links.flat_map(|link| [lifetime(link, facts), managed(root, link)].into_iter().flatten()).collect()
}

/// An address that expires unless a program renews it.
fn lifetime(link: &Link, facts: &Facts) -> Option<Finding> {
    let seconds = facts.uplink(link)?.lifetime_s?;
    Some(Finding::warning(
        "uplink",
        format!("An address of {} expires in {seconds} s unless it is renewed", link.name),
        "a DHCP client does not receive its server's answers on the port of a bridge, and the host loses the address if \
         a VM runs for longer",
        format!(
            "have a bridge with that DHCP client made at boot, and use it with --net bridge=NAME; or give {} a permanent \
             address",
            link.name
        ),
    ))
}

/// A program that restores its own configuration.
fn managed(root: &Path, link: &Link) -> Option<Finding> {
    let networkd = fs::read_to_string(root.join("run/systemd/netif/links").join(link.index.to_string()));
    let networkd = networkd.is_ok_and(|text| text.lines().any(|line| line.starts_with("NETWORK_FILE=/")));
    let manager = fs::read_to_string(root.join("run/NetworkManager/devices").join(link.index.to_string()));
    let manager = manager.is_ok_and(|text| text.lines().any(|line| line.starts_with("connection-uuid=")));
    let who = if networkd {
        "systemd-networkd"
    } else if manager {
        "NetworkManager"
    } else {
        return None;
    };
    Some(Finding::warning(
        "uplink",
        format!("{who} has configured {}", link.name),
        "it may put the addresses back on the interface while the bridge has them, and the host answers on neither",
        format!("have {who} make a bridge on {}, and use it with --net bridge=NAME", link.name),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;
    use crate::facts::{BridgeFact, UplinkFact};

    fn facts(lifetime_s: Option<u32>) -> Facts {
        let link = Link {
            index: 7,
            name: "eth1".to_owned(),
            kind: None,
            mac: None,
            mtu: 1500,
            master: None,
            lower: None,
            peer: None,
            up: true,
            group: 0,
            alias: None,
            macvlan: None,
            tun: None,
            bridge: BridgeFact::default(),
        };
        let fact = UplinkFact { link: 7, lifetime_s, ..UplinkFact::default() };
        Facts { links: vec![link], uplinks: vec![fact], ..Facts::default() }
    }

    #[test]
    fn leases_and_managers_are_warned_of_where_addresses_move() {
        let root = tempfile::tempdir().unwrap();
        let flag = |text: &str| vec![text.parse::<NetSpec>().unwrap()];
        let moving = flag("bridge=br0,create=on,uplink=eth1,move-addresses=on");
        assert_eq!(look(root.path(), &moving, &facts(None)), []);
        let links = root.path().join("run/systemd/netif/links");
        fs::create_dir_all(&links).unwrap();
        fs::write(links.join("7"), "ADMIN_STATE=configured\nNETWORK_FILE=/etc/systemd/network/eth.network\n").unwrap();
        let found = look(root.path(), &moving, &facts(Some(600)));
        let texts: Vec<&str> = found.iter().map(|finding| finding.what.as_str()).collect();
        assert_eq!(
            texts,
            ["An address of eth1 expires in 600 s unless it is renewed", "systemd-networkd has configured eth1"]
        );
        assert!(found.iter().all(|finding| finding.level == Level::Warning));
        assert_eq!(look(root.path(), &flag("bridge=br0,create=on,uplink=eth1"), &facts(Some(600))), []);
    }
}
