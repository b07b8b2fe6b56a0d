//! The host's resolvers and search domains, as resolv.conf(5) names them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use super::dns::PORT;
use crate::kernel::ethtool;
use crate::spec::{DomainName, bounded};

/// Resolvers that are asked: as many as the C library asks.
const SERVERS_MAX: usize = 3;

/// Octets of the file that are read.
const FILE_MAX_BYTES: u64 = 64 * 1024;

/// Maximal age of the file's state when a question comes.
const FRESH: Duration = Duration::from_secs(1);

/// The file, read again when it has changed.
pub(super) struct ResolvConf {
    path: PathBuf,
    checked: Option<Instant>,
    stamp: Option<Stamp>,
}

/// The contents of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resolution {
    /// The resolvers to ask.
    pub(super) servers: Vec<SocketAddr>,
    /// The domains in which to look for short names.
    pub(super) search: Vec<DomainName>,
}

/// Metadata that changes with the file's contents, so that the file need not be read.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    inode: u64,
    len: u64,
}

impl ResolvConf {
    /// The file at `path`, not read yet.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, checked: None, stamp: None }
    }

    /// The file's contents, unless they are known to be those of the last call. A file that cannot be read changes
    /// nothing.
    pub(super) fn changed(&mut self, now: Instant) -> Option<Resolution> {
        if self.checked.is_some_and(|checked| now.saturating_duration_since(checked) < FRESH) {
            return None;
        }
        self.checked = Some(now);
        let stamp = self.look()?;
        if self.stamp == Some(stamp) {
            return None;
        }
        let text = self.read()?;
        self.stamp = Some(stamp);
        Some(Resolution { servers: servers(&text), search: search(&text) })
    }

    fn look(&self) -> Option<Stamp> {
        use std::os::unix::fs::MetadataExt;
        let metadata = fs::metadata(&self.path).ok()?;
        Some(Stamp { modified: metadata.modified().ok(), inode: metadata.ino(), len: metadata.len() })
    }

    fn read(&self) -> Option<String> {
        use std::io::Read;
        let mut bytes = Vec::new();
        fs::File::open(&self.path).ok()?.take(FILE_MAX_BYTES).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The resolvers that the file's `text` names; this machine if it names none.
fn servers(text: &str) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.next().filter(|word| *word == "nameserver").and_then(|_| words.next()).and_then(server)
    });
    let servers: Vec<SocketAddr> = named.take(SERVERS_MAX).collect();
    if servers.is_empty() { vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT)] } else { servers }
}

/// The domains of the last line with some. Invalid names are left out, as are those beyond the limits.
fn search(text: &str) -> Vec<DomainName> {
    let mut lists = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        match words.next()? {
            "search" => Some(words.collect()),
            "domain" => Some(words.take(1).collect()),
            _ => None,
        }
    });
    let list: Vec<&str> = lists.next_back().unwrap_or_default();
    bounded(list.into_iter().filter_map(|word| word.parse().ok()))
}

/// An address, with the interface of a link-local one behind a `%`.
fn server(word: &str) -> Option<SocketAddr> {
    let (address, zone) = word.split_once('%').map_or((word, None), |(address, zone)| (address, Some(zone)));
    match (address.parse().ok()?, zone) {
        (IpAddr::V6(address), Some(zone)) => Some(SocketAddrV6::new(address, PORT, 0, scope(zone)?).into()),
        (address, None) => Some(SocketAddr::new(address, PORT)),
        (IpAddr::V4(_), Some(_)) => None,
    }
}

/// The index of an interface, by name or number.
fn scope(zone: &str) -> Option<u32> {
    zone.parse().ok().or_else(|| ethtool::index_of(zone).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_three_are_taken_and_all_else_is_skipped() {
        let text = "# nameserver 9.9.9.9\nsearch lan\nnameserver 127.0.0.53\n nameserver\tfd00::1 # office\nnameserver nonsense\n\
                    nameserver fe80::1%1\nnameserver 1.1.1.1\n";
        let expected = ["127.0.0.53:53", "[fd00::1]:53", "[fe80::1%1]:53"].map(|text| text.parse().unwrap());
        assert_eq!(servers(text), expected);
    }

    #[test]
    fn domains_are_those_of_the_last_line_as_far_as_they_are_names_and_fit() {
        let found = |text: &str| search(text).iter().map(|name| name.as_str().to_owned()).collect::<Vec<_>>();
        assert_eq!(found("domain a.example b\n"), ["a.example"]);
        assert_eq!(
            found("domain first\nsearch a.example. b_c \u{fc}ber..x . -\n#search no\n"),
            ["a.example", "b_c", "-"]
        );
        assert_eq!(found("search a b c d e f g\n").len(), 6);
        let long = ["x".repeat(60), "y".repeat(60), "z".repeat(60)].join(".");
        assert_eq!(found(&format!("search {long} {long}.a b\n")), [long]);
        assert_eq!(found("nameserver 10.0.0.1\n"), Vec::<String>::new());
    }

    #[test]
    fn file_without_resolvers_means_this_machine() {
        assert_eq!(servers("options edns0\n"), ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn file_is_read_again_when_it_is_another_and_keeps_what_was_known_when_it_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        let mut file = ResolvConf::new(path.clone());
        let start = Instant::now();
        fs::write(&path, "nameserver 10.0.0.1\nsearch lab\n").unwrap();
        let says = |server: &str, domain: &str| {
            Some(Resolution { servers: vec![server.parse().unwrap()], search: vec![domain.parse().unwrap()] })
        };
        assert_eq!(file.changed(start), says("10.0.0.1:53", "lab"));
        assert_eq!(file.changed(start + FRESH), None);
        fs::write(&path, "nameserver 10.0.0.22\ndomain corp.example\n").unwrap();
        assert_eq!(file.changed(start + FRESH), None);
        assert_eq!(file.changed(start + 2 * FRESH), says("10.0.0.22:53", "corp.example"));
        fs::remove_file(&path).unwrap();
        assert_eq!(file.changed(start + 3 * FRESH), None);
    }

    proptest! {
        #[test]
        fn any_text_gives_one_to_three_resolvers(text in ".{0,200}") {
            prop_assert!((1..=SERVERS_MAX).contains(&servers(&text).len()));
        }
    }
}
