//! The table of every `--net` mode and key.
//!
//! The parser's lists of known keys and its suggestions, `minivmm --help-net` ([`help`], [`explain`]) and the page
//! `docs/net-keys.md` come from it. The types of the fields check the values; a test ensures that the table has exactly
//! the fields of each mode's struct.

use std::fmt::Write;

use super::edit_distance;

/// A mode: the key that opens a spec.
#[derive(Debug)]
pub struct Mode {
    /// The key.
    pub name: &'static str,
    /// Its syntax.
    pub usage: &'static str,
    /// Its description, one line.
    pub help: &'static str,
}

/// A key that may follow a mode.
#[derive(Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// The modes that take it.
    pub modes: &'static [&'static str],
    /// The syntax of its value.
    pub value: &'static str,
    /// Its default value.
    pub default: &'static str,
    /// The keys without which it has no effect, as written in a flag.
    pub needs: &'static str,
    /// An example of its value.
    pub example: &'static str,
    /// Its description, one line.
    pub help: &'static str,
    /// Details that `help` leaves out.
    pub doc: &'static str,
}

/// The modes, in the order of the documentation.
pub const MODES: &[Mode] = &[
    Mode { name: "bridge", usage: "bridge=NAME", help: "A new tap on this bridge of the host" },
    Mode { name: "nat", usage: "nat[=NAME]", help: "A network of minivmm's own that leads out" },
    Mode { name: "host", usage: "host[=NAME]", help: "A network of minivmm's own without a way out" },
    Mode { name: "macvtap", usage: "macvtap=IFACE", help: "An address of its own on this interface" },
    Mode { name: "ovs", usage: "ovs=BRIDGE", help: "A new tap as a port of this Open vSwitch bridge" },
    Mode { name: "tap", usage: "tap=NAME", help: "A tap that exists" },
    Mode { name: "fd", usage: "fd=N[:N...]", help: "A tap that is open, one descriptor for each queue pair" },
];

const BRIDGE: &[&str] = &["bridge"];
const NAT: &[&str] = &["nat"];
const OWN: &[&str] = &["nat", "host"];
const FILTERED: &[&str] = &["bridge", "nat", "host"];
const EACH: &[&str] = &["bridge", "nat", "host", "macvtap", "ovs", "tap", "fd"];

/// The keys. Keys of few modes come first, and related keys of a mode stand together.
pub const KEYS: &[Key] = &[
    Key {
        name: "create",
        modes: BRIDGE,
        value: "on|off",
        default: "off",
        needs: "",
        example: "on",
        help: "Make the bridge if it is missing",
        doc: "The last VM on a bridge that minivmm made removes it.",
    },
    Key {
        name: "uplink",
        modes: BRIDGE,
        value: "IFACE",
        default: "none",
        needs: "create=on",
        example: "eth1",
        help: "Interface of the host that becomes a port of the new bridge",
        doc: "The bridge has its MAC and MTU. An interface with addresses or routes needs move-addresses=on.",
    },
    Key {
        name: "move-addresses",
        modes: BRIDGE,
        value: "on|off",
        default: "off",
        needs: "create=on,uplink=eth1",
        example: "on",
        help: "Move the uplink's addresses and routes to the bridge, and back at the end",
        doc: "IPv4 and IPv6, all routing tables, with metrics and lifetimes. Not with stp=on.",
    },
    Key {
        name: "stp",
        modes: BRIDGE,
        value: "on|off",
        default: "off",
        needs: "create=on",
        example: "on",
        help: "Spanning tree protocol on the new bridge",
        doc: "The guest's link is down until its port forwards.",
    },
    Key {
        name: "forward-delay",
        modes: BRIDGE,
        value: "SECONDS",
        default: "15",
        needs: "create=on,stp=on",
        example: "4",
        help: "Time for which a new port listens, and then learns, before it forwards",
        doc: "2 to 30 seconds.",
    },
    Key {
        name: "vlan",
        modes: &["bridge", "ovs"],
        value: "ID",
        default: "none",
        needs: "",
        example: "100",
        help: "VLAN that the card is an untagged member of",
        doc: "1 to 4094. The guest sees no tags, and only this VLAN. A bridge of the host has to filter VLANs already; \
              minivmm enables that on one of its own.",
    },
    Key {
        name: "trunk",
        modes: BRIDGE,
        value: "LIST",
        default: "none",
        needs: "",
        example: "10+20+100-110",
        help: "VLANs that the guest has with their tags",
        doc: "IDs and ranges, joined by +.",
    },
    Key {
        name: "native",
        modes: BRIDGE,
        value: "ID",
        default: "none",
        needs: "trunk=10",
        example: "30",
        help: "Untagged VLAN beside those of trunk=",
        doc: "1 to 4094.",
    },
    Key {
        name: "addresses",
        modes: BRIDGE,
        value: "IP[+IP...]",
        default: "any",
        needs: "antispoof=on",
        example: "192.0.2.5+2001:db8::5",
        help: "The guest's addresses, IPv4 and IPv6",
        doc: "At most 64.",
    },
    Key {
        name: "subnet",
        modes: OWN,
        value: "A.B.C.D/LEN",
        default: "a free private /24",
        needs: "",
        example: "10.20.30.0/24",
        help: "The network's addresses",
        doc: "8 to 30 bits. The VM that makes the network decides. Give it where a site behind a router uses all \
              private addresses itself.",
    },
    Key {
        name: "ipv6",
        modes: OWN,
        value: "on|off",
        default: "off",
        needs: "",
        example: "on",
        help: "IPv6 on the network as well",
        doc: "A prefix for local use, which follows from the network's name, by router advertisements; NAT66 with nat.",
    },
    Key {
        name: "forward",
        modes: NAT,
        value: "PROTOCOL:[IP:]PORT:PORT[+...]",
        default: "none",
        needs: "",
        example: "tcp:8080:80",
        help: "Ports of the host that lead to the guest",
        doc: "tcp or udp, an address of the host or all of them, a port or a range (8000-8010:9000-9010), joined by +. \
              At most 512 ports.",
    },
    Key {
        name: "reach",
        modes: OWN,
        value: "world+private+host|none",
        default: "world+private (nat), host (host)",
        needs: "",
        example: "none",
        help: "Places beyond its network that the guest reaches",
        doc: "host is every address of this host, private is private space elsewhere, world is everything else. With \
              host only host or none.",
    },
    Key {
        name: "metadata",
        modes: NAT,
        value: "on|off",
        default: "off",
        needs: "",
        example: "on",
        help: "Let the guest reach the cloud's metadata service",
        doc: "169.254.0.0/16 and the addresses that clouds have elsewhere.",
    },
    Key {
        name: "search",
        modes: NAT,
        value: "host|off|DOMAIN[+DOMAIN...]",
        default: "host",
        needs: "",
        example: "corp.example+lab",
        help: "Domains in which the guest looks for short names, after minivmm",
        doc: "host: those of the host's resolv.conf as it is when the guest asks. At most 6 domains and 256 characters.",
    },
    Key {
        name: "mode",
        modes: &["macvtap"],
        value: "bridge|private|vepa|passthru",
        default: "bridge",
        needs: "",
        example: "private",
        help: "Traffic between the VMs on one interface",
        doc: "bridge: they reach each other. private: they do not. vepa: a switch sends frames back (802.1Qbg). \
              passthru: the interface is for this guest alone, with the guest's MAC.",
    },
    Key {
        name: "iface-id",
        modes: &["ovs"],
        value: "ID",
        default: "none",
        needs: "",
        example: "ns_pod-1",
        help: "external-ids:iface-id of the port, such as a logical port of OVN",
        doc: "1 to 127 letters, digits and ._:/@-",
    },
    Key {
        name: "antispoof",
        modes: FILTERED,
        value: "on|off",
        default: "off (bridge), on (nat, host)",
        needs: "",
        example: "on",
        help: "The guest sends from its own MAC and addresses only",
        doc: "It claims no others by ARP or neighbour discovery, and is no DHCP server and no router. Linux 5.12.",
    },
    Key {
        name: "isolate",
        modes: FILTERED,
        value: "on|off",
        default: "off",
        needs: "",
        example: "on",
        help: "The guest reaches no other VM of this host on that network",
        doc: "Neither by the bridge nor by forwarded ports nor by way of the host as a router.",
    },
    Key {
        name: "connections",
        modes: OWN,
        value: "N",
        default: "an eighth of what the host tracks",
        needs: "",
        example: "1000",
        help: "Connections that the host tracks for the guest at a time",
        doc: "Both directions, all protocols. Those beyond it are dropped and counted.",
    },
    Key {
        name: "new-connections",
        modes: OWN,
        value: "N/s",
        default: "no limit",
        needs: "",
        example: "100/s",
        help: "New connections in a second, and as many at once",
        doc: "Established ones are left alone.",
    },
    Key {
        name: "mac",
        modes: EACH,
        value: "MAC",
        default: "follows from --name",
        needs: "",
        example: "52:54:00:00:00:01",
        help: "The guest's MAC address",
        doc: "A MAC that the bridge has already learned is refused at start.",
    },
    Key {
        name: "mtu",
        modes: EACH,
        value: "BYTES",
        default: "that of the bridge, interface or tap",
        needs: "",
        example: "9000",
        help: "MTU that the guest is told",
        doc: "68 to 65535. On nat and host, the VM that makes the network decides; there it is the smallest of the \
              uplinks unless given.",
    },
    Key {
        name: "queues",
        modes: EACH,
        value: "N",
        default: "one for each vCPU, at most 8",
        needs: "",
        example: "2",
        help: "Queue pairs",
        doc: "1 to 64. One on a tap that has only one; with fd= one for each descriptor.",
    },
    Key {
        name: "ring",
        modes: EACH,
        value: "N",
        default: "256",
        needs: "",
        example: "1024",
        help: "Descriptors of every receive and transmit queue",
        doc: "A power of two from 64 to 4096.",
    },
    Key {
        name: "offload",
        modes: EACH,
        value: "on|off|csum:tso:ecn:ufo:uso",
        default: "on",
        needs: "",
        example: "csum:tso",
        help: "Work that is left to the tap: all that it can do, nothing, or a list",
        doc: "tso, ufo and uso need csum in the list, ecn needs tso.",
    },
    Key {
        name: "vhost",
        modes: EACH,
        value: "on|off",
        default: "off",
        needs: "",
        example: "on",
        help: "Have the kernel's vhost-net move the frames, instead of threads of minivmm",
        doc: "Faster and less isolated: the host's kernel reads the guest's rings. Not with delay=, jitter=, loss= and \
              capture=.",
    },
    Key {
        name: "rate",
        modes: EACH,
        value: "IN/OUT",
        default: "no limit",
        needs: "",
        example: "100M/20M",
        help: "Bits per second to and from the guest",
        doc: "k, M and G are powers of 1000. Early frames wait; none is dropped.",
    },
    Key {
        name: "burst",
        modes: EACH,
        value: "BYTES",
        default: "10 ms of the rate, at least 64 KiB",
        needs: "rate=100M/100M",
        example: "262144",
        help: "Bytes that pass at once after a pause",
        doc: "With K, M or G, at most 1G.",
    },
    Key {
        name: "delay",
        modes: EACH,
        value: "TIME",
        default: "0",
        needs: "",
        example: "20ms",
        help: "Delay of every frame, each way",
        doc: "us, ms or s, at most 10s. A direction holds at most 1000 frames.",
    },
    Key {
        name: "jitter",
        modes: EACH,
        value: "TIME",
        default: "0",
        needs: "",
        example: "5ms",
        help: "Variation of the delay, more or less; the order stays",
        doc: "us, ms or s, at most 10s.",
    },
    Key {
        name: "loss",
        modes: EACH,
        value: "PERCENT",
        default: "0%",
        needs: "",
        example: "0.1%",
        help: "Share of frames that are lost, each way",
        doc: "At most four decimals.",
    },
    Key {
        name: "seed",
        modes: EACH,
        value: "N",
        default: "0",
        needs: "loss=1%",
        example: "7",
        help: "Number that losses and jitter follow from",
        doc: "The same seed loses and delays the same frames of each queue.",
    },
    Key {
        name: "capture",
        modes: EACH,
        value: "FILE",
        default: "none",
        needs: "",
        example: "web.pcapng",
        help: "Copy of all frames in a pcapng file, for Wireshark and tshark",
        doc: "Frames never wait for the disk; the file counts those that were left out.",
    },
    Key {
        name: "snaplen",
        modes: EACH,
        value: "BYTES",
        default: "whole frames",
        needs: "capture=web.pcapng",
        example: "96",
        help: "Bytes of each frame that the capture keeps",
        doc: "14 to 65553.",
    },
    Key {
        name: "capture-size",
        modes: EACH,
        value: "BYTES",
        default: "1G",
        needs: "capture=web.pcapng",
        example: "1M",
        help: "Size at which the contents move to FILE.1 and the file begins anew",
        doc: "64K to 1024G. FILE.1 replaces an older one.",
    },
    Key {
        name: "mirror",
        modes: EACH,
        value: "IFACE",
        default: "none",
        needs: "",
        example: "mon0",
        help: "Interface of the host that sends a copy of all frames, both ways",
        doc: "Mirroring never blocks; dropped copies show in the interface's drop counter. Linux 5.16.",
    },
];

/// The groups of `--help-net` and the reference page: their titles and the modes of their keys.
const GROUPS: &[(&str, &[&str])] = &[
    ("bridge", BRIDGE),
    ("bridge and ovs", &["bridge", "ovs"]),
    ("nat and host", OWN),
    ("nat", NAT),
    ("macvtap", &["macvtap"]),
    ("ovs", &["ovs"]),
    ("bridge, nat and host", FILTERED),
    ("each mode", EACH),
];

/// Width of the first column of [`help`].
const COLUMN: usize = 37;

/// The names of the keys that a mode takes, in the order of the table.
pub(super) fn of_mode(mode: &str) -> Vec<&'static str> {
    KEYS.iter().filter(|key| key.modes.contains(&mode)).map(|key| key.name).collect()
}

/// Returns true if any mode has a key of this name.
pub(super) fn is_known(name: &str) -> bool {
    KEYS.iter().any(|key| key.name == name)
}

/// The syntax of the mode that `text` most likely means, if it is close to one.
pub(super) fn nearest_mode(text: &str) -> Option<&'static str> {
    let (distance, mode) = MODES.iter().map(|mode| (edit_distance(text, mode.name), mode)).min_by_key(|near| near.0)?;
    // A longer name may have more wrong letters; of a three-letter name two have to be right.
    (distance > 0 && distance * 2 < mode.name.len()).then_some(mode.usage)
}

/// All modes and keys, a line each, grouped by mode: the text of `--help-net`.
pub fn help() -> String {
    let mut text = "A network card: --net MODE[,KEY=VALUE...]; repeat the flag for more cards\n\nModes:\n".to_owned();
    let line = |text: &mut String, left: &str, right: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {left:COLUMN$} {right}");
    };
    MODES.iter().for_each(|mode| line(&mut text, mode.usage, mode.help));
    for (title, keys) in groups() {
        let _ = writeln!(text, "\nKeys of {title}:");
        keys.for_each(|key| line(&mut text, &format!("{}={}", key.name, key.value), key.help));
    }
    text.push_str("\nminivmm --help-net KEY has more on one of them: its default, what it needs, an example\n");
    text
}

/// The text of `--help-net NAME` on a mode or a key; `None` if no mode or key has this name.
pub fn explain(name: &str) -> Option<String> {
    if let Some(mode) = MODES.iter().find(|mode| mode.name == name) {
        return Some(format!("{}\n  {}\n  Keys: {}\n", mode.usage, mode.help, of_mode(name).join(", ")));
    }
    let key = KEYS.iter().find(|key| key.name == name)?;
    let mut text = format!("{}={}\n  {}\n  {}\n", key.name, key.value, key.help, key.doc);
    let _ = writeln!(text, "  Modes: {}\n  Default: {}", key.modes.join(", "), key.default);
    if !key.needs.is_empty() {
        let _ = writeln!(text, "  Needs: {}", key.needs);
    }
    let _ = writeln!(text, "  Example: {}={}", key.name, key.example);
    Some(text)
}

/// All names that [`explain`] knows.
pub fn names() -> Vec<&'static str> {
    MODES.iter().map(|mode| mode.name).chain(KEYS.iter().map(|key| key.name)).collect()
}

fn groups() -> impl Iterator<Item = (&'static str, impl Iterator<Item = &'static Key>)> {
    GROUPS.iter().map(|(title, modes)| (*title, KEYS.iter().filter(move |key| key.modes == *modes)))
}

#[cfg(test)]
mod tests;
