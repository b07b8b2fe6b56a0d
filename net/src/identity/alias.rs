//! The aliases of the links that minivmm makes (`IFLA_IFALIAS`, `alias` in `ip link`), which name their owner.
//!
//! ```text
//! tap        minivmm vm=web card=0 mode=nat net=default ip4=10.1.2.3
//! bridge     minivmm mode=nat net=default forward=2,5
//! bridge     minivmm uplink=eth1 moved=on
//! ```
//!
//! An alias belongs to its link and vanishes with it, whichever process dies first, so that no file can be left behind.
//! Any user can read it. Its words are `key=value` in any order; unknown ones are skipped, so that later releases can
//! add some.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Serialize, Serializer};

/// Device group (`ip link show group 28022`) of the bridges and macvtaps that minivmm made. The message that creates
/// the link sets it, so our links can be told from others at any moment. An alias is easier to read, but takes a second
/// message; it is set as well, for admins.
pub const OUR_GROUP: u32 = 28022;

/// Longest alias in bytes: `IFALIASZ` less the closing zero (linux/if.h).
pub(crate) const ALIAS_MAX: usize = 255;

/// Most numbers of a range in a list: far more than a host has interfaces.
const RANGE_MAX: u32 = 1 << 16;

/// The first word of every alias of ours.
const MARK: &str = "minivmm";

/// The kind of network that a tap of ours is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A bridge of the host.
    Bridge,
    /// A network of ours with a way out.
    Nat,
    /// A network of ours without one.
    Host,
    /// An interface of the host.
    Macvtap,
    /// A bridge of Open vSwitch.
    Ovs,
}

impl Mode {
    /// All modes.
    const ALL: [Self; 5] = [Self::Bridge, Self::Nat, Self::Host, Self::Macvtap, Self::Ovs];

    /// The key of `--net` that asks for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Nat => "nat",
            Self::Host => "host",
            Self::Macvtap => "macvtap",
            Self::Ovs => "ovs",
        }
    }
}

impl Mode {
    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// The alias of a tap. A VM's name has no blanks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapAlias {
    /// The VM's name.
    pub vm: String,
    /// The card's position on the command line.
    pub card: usize,
    /// The kind of network.
    pub mode: Mode,
    /// The bridge, network or interface.
    pub net: String,
    /// The IPv4 address that the guest is given, if any.
    pub ip4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub ip6: Option<Ipv6Addr>,
}

impl TapAlias {
    /// Reads the alias of a link; `None` if the link is not a tap of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let words = Words::of(text)?;
        Some(Self {
            vm: words.get("vm")?.to_owned(),
            card: words.get("card")?.parse().ok()?,
            mode: words.get("mode").and_then(Mode::named)?,
            net: words.get("net")?.to_owned(),
            ip4: words.get("ip4").and_then(|ip| ip.parse().ok()),
            ip6: words.get("ip6").and_then(|ip| ip.parse().ok()),
        })
    }
}

impl fmt::Display for TapAlias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vm, card, mode, net, .. } = self;
        write!(f, "{MARK} vm={vm} card={card} mode={} net={net}", mode.name())?;
        if let Some(ip) = self.ip4 {
            write!(f, " ip4={ip}")?;
        }
        if let Some(ip) = self.ip6 {
            write!(f, " ip6={ip}")?;
        }
        Ok(())
    }
}

impl Serialize for TapAlias {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The alias of the bridge of our own network, with the settings to restore when it is removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkAlias {
    /// [`Mode::Nat`] or [`Mode::Host`].
    pub mode: Mode,
    /// The network's name.
    pub net: String,
    /// The indexes of interfaces that forward IPv4 because of a network of ours and did not before.
    pub forward: BTreeSet<u32>,
    /// True if the host forwarded IPv4 by default at that time (`net.ipv4.conf.all.forwarding`).
    pub forward_all: bool,
    /// True if the host forwards IPv6 because of a network of ours and did not before (`net.ipv6.conf.all.forwarding`).
    pub forward6: bool,
    /// True if new interfaces forwarded IPv6 at that time (`net.ipv6.conf.default.forwarding`).
    pub default6: bool,
    /// While the host is being switched: the interfaces that forwarded IPv6 before, and are to keep doing so.
    pub switching6: Option<BTreeSet<u32>>,
    /// The interfaces whose `accept_ra` was raised from 1 to 2, so that they take router advertisements although the
    /// host forwards.
    pub accept_ra: BTreeSet<u32>,
    /// True if `accept_ra` was raised for new interfaces (`net.ipv6.conf.default.accept_ra`) and for all existing ones
    /// that took advertisements.
    pub later_ra: bool,
    /// With `later_ra`: the interfaces that had `accept_ra` 2 before, and keep it.
    pub other_ra: BTreeSet<u32>,
}

impl NetworkAlias {
    /// The alias of a network for which no setting has been changed.
    pub fn new(mode: Mode, net: String) -> Self {
        let (forward, accept_ra, other_ra) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let (forward_all, forward6, default6, switching6, later_ra) = (false, false, false, None, false);
        Self { mode, net, forward, forward_all, forward6, default6, switching6, accept_ra, later_ra, other_ra }
    }

    /// Records the host's current default of IPv4 forwarding. If it has been switched on meanwhile, every interface is
    /// meant to forward and none is restored; if it has been switched off, each recorded interface is still restored.
    pub fn settle(&mut self, forward_all: bool) {
        if forward_all && !self.forward_all {
            self.forward.clear();
        }
        self.forward_all = forward_all;
    }

    /// Moves the list of interfaces that are to stop forwarding IPv4 to another alias.
    pub fn move_ipv4_to(&mut self, other: &mut Self) {
        other.forward.append(&mut self.forward);
    }

    /// Moves the IPv6 settings to restore to another alias.
    pub fn move_ipv6_to(&mut self, other: &mut Self) {
        let Self { mode, net, forward, forward_all, .. } = self;
        let mut rest = Self::new(*mode, std::mem::take(net));
        (rest.forward, rest.forward_all) = (std::mem::take(forward), *forward_all);
        let moved = std::mem::replace(self, rest);
        other.take_over(moved);
    }

    /// Adds the settings to restore for another network, after both have been [settled](Self::settle).
    pub fn take_over(&mut self, other: Self) {
        self.forward.extend(other.forward);
        if other.forward6 {
            self.forward6 = true;
            self.default6 = other.default6;
            self.switching6 = other.switching6;
            self.accept_ra.extend(other.accept_ra);
            self.later_ra = other.later_ra;
            self.other_ra.extend(other.other_ra);
        }
    }

    /// Reads the alias of a link; `None` if the link is not the bridge of a network of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let words = Words::of(text)?;
        if words.get("vm").is_some() {
            return None;
        }
        Some(Self {
            mode: words.get("mode").and_then(Mode::named)?,
            net: words.get("net")?.to_owned(),
            forward: words.numbers("forward"),
            forward_all: words.get("all") == Some("on"),
            forward6: words.get("forward6") == Some("on"),
            default6: words.get("default6") == Some("on"),
            switching6: words.get("routers6").map(|_| words.numbers("routers6")),
            accept_ra: words.numbers("ra"),
            later_ra: words.get("later-ra") == Some("on"),
            other_ra: words.numbers("other-ra"),
        })
    }
}

impl fmt::Display for NetworkAlias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MARK} mode={} net={}", self.mode.name(), self.net)?;
        let lists = [("forward", &self.forward), ("ra", &self.accept_ra), ("other-ra", &self.other_ra)];
        for (key, numbers) in lists.into_iter().filter(|(_, numbers)| !numbers.is_empty()) {
            write!(f, " {key}={}", Ranges(numbers))?;
        }
        if let Some(routers) = &self.switching6 {
            write!(f, " routers6={}", Ranges(routers))?;
        }
        let words = [
            (" all=on", self.forward_all),
            (" forward6=on", self.forward6),
            (" default6=on", self.default6),
            (" later-ra=on", self.later_ra),
        ];
        for (word, holds) in words {
            f.write_str(if holds { word } else { "" })?;
        }
        Ok(())
    }
}

impl Serialize for NetworkAlias {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The alias of a bridge of ours with an uplink, with what the uplink gets back when the bridge is removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkAlias {
    /// The uplink.
    pub uplink: String,
    /// True if the bridge has the uplink's addresses and routes.
    pub moved: bool,
    /// True if the uplink was down before.
    pub raised: bool,
}

impl UplinkAlias {
    /// Reads the alias of a link; `None` if the link is not a bridge of ours with an uplink.
    pub fn parse(text: &str) -> Option<Self> {
        let words = Words::of(text)?;
        Some(Self {
            uplink: words.get("uplink")?.to_owned(),
            moved: words.get("moved") == Some("on"),
            raised: words.get("raised") == Some("on"),
        })
    }
}

impl fmt::Display for UplinkAlias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MARK} uplink={}", self.uplink)?;
        for (word, holds) in [(" moved=on", self.moved), (" raised=on", self.raised)] {
            f.write_str(if holds { word } else { "" })?;
        }
        Ok(())
    }
}

impl Serialize for UplinkAlias {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Numbers as a list in which successive ones form a range: `2,5-9`.
struct Ranges<'a>(&'a BTreeSet<u32>);

impl fmt::Display for Ranges<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut numbers = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = numbers.next() {
            let mut last = first;
            while let Some(next) = numbers.next_if(|next| last.checked_add(1) == Some(*next)) {
                last = next;
            }
            write!(f, "{separator}{first}")?;
            if last != first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

/// The words of an alias of ours.
struct Words<'a>(&'a str);

impl<'a> Words<'a> {
    fn of(text: &'a str) -> Option<Self> {
        Some(Self(text.strip_prefix(MARK)?.strip_prefix(' ')?))
    }

    /// The numbers of a list of numbers and ranges; none if the key is absent.
    fn numbers(&self, key: &str) -> BTreeSet<u32> {
        let list = self.get(key).into_iter().flat_map(|list| list.split(','));
        let range = |item: &str| {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
            Some(first..=last.min(first.saturating_add(RANGE_MAX)))
        };
        list.filter_map(range).flatten().collect()
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        let mut pairs = self.0.split(' ').filter_map(|word| word.split_once('='));
        pairs.find(|(found, _)| *found == key).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> TapAlias {
        let (vm, net) = ("web".to_owned(), "br0".to_owned());
        TapAlias { vm, card: 1, mode: Mode::Bridge, net, ip4: None, ip6: None }
    }

    #[test]
    fn tap_alias_reads_back() {
        assert_eq!(web().to_string(), "minivmm vm=web card=1 mode=bridge net=br0");
        let full = TapAlias { ip4: Some([10, 1, 2, 3].into()), ip6: Some(Ipv6Addr::LOCALHOST), ..web() };
        for alias in [web(), full] {
            assert_eq!(TapAlias::parse(&alias.to_string()), Some(alias));
        }
    }

    #[test]
    fn network_alias_reads_back() {
        let net = "default".to_owned();
        let alias = NetworkAlias { forward: [2, 15].into(), ..NetworkAlias::new(Mode::Nat, net) };
        let alias = NetworkAlias { forward_all: true, forward6: true, accept_ra: [2].into(), ..alias };
        assert_eq!(alias.to_string(), "minivmm mode=nat net=default forward=2,15 ra=2 all=on forward6=on");
        let plain = NetworkAlias::new(Mode::Host, "lab".to_owned());
        let switching = NetworkAlias {
            forward: [2, 3, 4, 9].into(),
            switching6: Some(BTreeSet::new()),
            default6: true,
            later_ra: true,
            other_ra: [7, 8].into(),
            ..alias.clone()
        };
        assert_eq!(
            switching.to_string(),
            "minivmm mode=nat net=default forward=2-4,9 ra=2 other-ra=7-8 routers6= all=on forward6=on default6=on \
             later-ra=on"
        );
        for alias in [alias, plain, switching] {
            assert_eq!(NetworkAlias::parse(&alias.to_string()), Some(alias.clone()));
            assert_eq!(TapAlias::parse(&alias.to_string()), None);
        }
        assert_eq!(NetworkAlias::parse(&web().to_string()), None);
    }

    #[test]
    fn what_was_put_on_or_off_for_the_whole_host_meanwhile_is_what_holds() {
        let recorded = NetworkAlias { forward: [2].into(), ..NetworkAlias::new(Mode::Nat, "a".to_owned()) };
        let settled = |mut alias: NetworkAlias, all| {
            alias.settle(all);
            (alias.forward.into_iter().collect::<Vec<_>>(), alias.forward_all)
        };
        assert_eq!(settled(recorded.clone(), false), (vec![2], false));
        assert_eq!(settled(recorded.clone(), true), (vec![], true));
        let among_others = NetworkAlias { forward_all: true, ..recorded };
        assert_eq!(settled(among_others.clone(), true), (vec![2], true));
        assert_eq!(settled(among_others, false), (vec![2], false));
    }

    #[test]
    fn uplink_alias_reads_back() {
        let alias = UplinkAlias { uplink: "eth1".to_owned(), moved: true, raised: true };
        assert_eq!(alias.to_string(), "minivmm uplink=eth1 moved=on raised=on");
        for alias in [alias.clone(), UplinkAlias { moved: false, raised: false, ..alias }] {
            assert_eq!(UplinkAlias::parse(&alias.to_string()), Some(alias.clone()));
            assert_eq!(TapAlias::parse(&alias.to_string()), None);
            assert_eq!(NetworkAlias::parse(&alias.to_string()), None);
        }
        assert_eq!(UplinkAlias::parse(&web().to_string()), None);
    }

    #[test]
    fn longest_alias_fits() {
        let ip4 = Some([255; 4].into());
        let alias =
            TapAlias { vm: "v".repeat(63), card: 999, net: "n".repeat(15), ip4, ip6: Some([0xff; 16].into()), ..web() };
        assert!(alias.to_string().len() <= ALIAS_MAX);
    }

    #[test]
    fn aliases_of_others_are_none() {
        for text in [
            "",
            "minivmm",
            "minivmm: goes with its last port",
            "minivmm vm=web card=0 mode=bridge",
            "minivmm vm=web card=x mode=bridge net=br0",
            "minivmm vm=web card=0 mode=pigeon net=br0",
            "libvirt vm=web card=0 mode=bridge net=br0",
        ] {
            assert_eq!(TapAlias::parse(text), None, "{text}");
        }
    }
}
