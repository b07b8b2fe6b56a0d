//! The kernel's settings of an interface: `/proc/sys/net/ipv4/conf/IFACE/KEY` and the same for IPv6
//! (Documentation/networking/ip-sysctl.rst).

use std::fs;
use std::io;

/// Which of the two trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conf {
    /// `net.ipv4.conf`.
    Ipv4,
    /// `net.ipv6.conf`, which a host without IPv6 does not have.
    Ipv6,
}

impl Conf {
    fn path(self, link: &str, key: &str) -> String {
        let family = match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        };
        format!("/proc/sys/net/{family}/conf/{link}/{key}")
    }
}

/// What is set for a link, or for `all`.
pub(crate) fn read(conf: Conf, link: &str, key: &str) -> io::Result<String> {
    fs::read_to_string(conf.path(link, key)).map(|text| text.trim_end().to_owned())
}

/// Sets it.
pub(crate) fn write(conf: Conf, link: &str, key: &str, value: &str) -> io::Result<()> {
    fs::write(conf.path(link, key), value)
}
