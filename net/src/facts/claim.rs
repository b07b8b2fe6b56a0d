//! Claims: a socket named after a link marks it as in use, for links that do not go by themselves.
//!
//! Keeper and VMM both hold the socket, so its name is taken as long as one of them lives, however the other ended. The
//! name is abstract (unix(7)): it belongs to the network namespace as the link does, leaves no file, and is gone with
//! its last holder, which a process number in an alias would not be. It is taken before the link is made. Names of such
//! links are random, so no program can take one beforehand. A program that takes one afterwards only keeps the link
//! from being cleared away.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::identity::unix_sockets::UnixSockets;
use crate::spec::IfName;

/// Prefix of a claim's name. A VM's is `minivmm/NAME`.
const PREFIX: &str = "minivmm-link/";

/// Claims a link.
///
/// # Errors
/// Another process has claimed it.
pub(crate) fn take(link: &IfName) -> io::Result<OwnedFd> {
    let address = SocketAddr::from_abstract_name(format!("{PREFIX}{link}"))?;
    UnixDatagram::bind_addr(&address).map(OwnedFd::from)
}

/// The claimed links of this network namespace. Read the links first: a claim comes before its link.
pub(crate) fn taken() -> io::Result<BTreeSet<String>> {
    UnixSockets::read().map(|sockets| names_in(&sockets))
}

/// The claimed names among the sockets. An abstract address begins with `@`.
fn names_in(sockets: &UnixSockets) -> BTreeSet<String> {
    let addresses = sockets.addresses().filter_map(|address| std::str::from_utf8(address).ok()?.strip_prefix('@'));
    addresses.filter_map(|address| address.strip_prefix(PREFIX)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_links_are_read_and_those_of_others_are_not() {
        let sockets = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                       0000000000000000: 00000002 00000000 00000000 0002 01 20 @minivmm-link/vmtap0a\n\
                       0000000000000000: 00000002 00000000 00010000 0001 01 21 @minivmm/web\n\
                       0000000000000000: 00000002 00000000 00000000 0002 01 22 /run/minivmm-link/no\n\
                       0000000000000000: 00000002 00000000 00000000 0002 01 23\n";
        assert_eq!(names_in(&sockets.to_owned().into()), BTreeSet::from(["vmtap0a".to_owned()]));
    }

    #[test]
    fn address_that_is_no_text_hides_no_claim() {
        let link: IfName = format!("u{}", std::process::id()).parse().unwrap();
        let mut bytes = format!("test-{}", std::process::id()).into_bytes();
        bytes.push(0xff);
        let other = SocketAddr::from_abstract_name(bytes).unwrap();
        let _other = UnixDatagram::bind_addr(&other).unwrap();

        let _claim = take(&link).unwrap();

        assert!(taken().unwrap().contains(link.as_str()));
    }

    #[test]
    fn claim_is_there_until_its_last_holder_lets_go() {
        let link: IfName = format!("t{}", std::process::id()).parse().unwrap();
        let claim = take(&link).unwrap();
        let second = claim.try_clone().unwrap();
        drop(claim);

        assert!(taken().unwrap().contains(link.as_str()));
        assert_eq!(take(&link).unwrap_err().kind(), io::ErrorKind::AddrInUse);

        drop(second);
        assert!(!taken().unwrap().contains(link.as_str()));
    }
}
