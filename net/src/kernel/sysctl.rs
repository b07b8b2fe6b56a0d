//! Kernel settings of an interface: `/proc/sys/net/ipv4/conf/IFACE/KEY` and the same for IPv6
//! (Documentation/networking/ip-sysctl.rst).
//!
//! A value that is already right is not written: a container may see `/proc/sys` read-only, and a write has side
//! effects even where it changes nothing.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::unistd::AccessFlags;

/// The setting that makes an interface forward packets.
pub(crate) const FORWARDING: &str = "forwarding";

/// The tree of a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Conf {
    /// `net.ipv4.conf`.
    Ipv4,
    /// `net.ipv6.conf`, which a host without IPv6 does not have.
    Ipv6,
}

impl Conf {
    /// The path of a setting.
    pub(crate) fn path(self, link: &str, key: &str) -> String {
        let family = match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        };
        format!("/proc/sys/net/{family}/conf/{link}/{key}")
    }
}

/// The setting of a link, or of `all`.
pub(crate) fn read(conf: Conf, link: &str, key: &str) -> io::Result<String> {
    fs::read_to_string(conf.path(link, key)).map(|text| text.trim_end().to_owned())
}

/// True if a setting has this value; false if there is no such setting.
pub(crate) fn is(conf: Conf, link: &str, key: &str, value: &str) -> bool {
    read(conf, link, key).is_ok_and(|found| found == value)
}

/// True if `/proc/sys` is read-only here, as in a container.
pub(crate) fn are_locked() -> bool {
    nix::unistd::access(Conf::Ipv4.path("all", "forwarding").as_str(), AccessFlags::W_OK) == Err(Errno::EROFS)
}

/// Sets it, unless it has that value.
///
/// # Errors
/// The kernel refuses, or has no such setting.
pub(crate) fn set(conf: Conf, link: &str, key: &str, value: &str) -> io::Result<()> {
    if read(conf, link, key)? == value {
        return Ok(());
    }
    fs::write(conf.path(link, key), value)
}

/// The same for a link that may be gone, and for a host without IPv6.
pub(crate) fn set_if_there(conf: Conf, link: &str, key: &str, value: &str) -> io::Result<()> {
    match set(conf, link, key, value) {
        // A link that goes during the write has no settings (`ENODEV`), or they are gone (`ENOENT`).
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
        result => result,
    }
}

/// True if the host forwards IPv4 packets that come in by a link.
pub(crate) fn forwards(link: &str) -> bool {
    is(Conf::Ipv4, link, FORWARDING, "1")
}

/// True if the host forwards IPv6.
pub(crate) fn forwards6() -> bool {
    is(Conf::Ipv6, "all", FORWARDING, "1")
}
