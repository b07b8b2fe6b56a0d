//! The domains in which a guest looks for short names, as options carry them: that of the VMs first, then others.

use serde::{Deserialize, Serialize};

use super::{DOMAIN, ServiceSpec, dns};
use crate::spec::DomainName;

/// The largest offset of a pointer, and its mark (RFC 1035 4.1.4).
const POINTER_MAX: usize = 0x3fff;
const POINTER: u16 = 0xc000;

/// Domains beside that of the VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Search {
    /// Those of the host, as far as they are known.
    Host(Vec<DomainName>),
    /// These, whatever the host has.
    Only(Vec<DomainName>),
}

impl Search {
    /// The names.
    fn names(&self) -> &[DomainName] {
        let (Self::Host(names) | Self::Only(names)) = self;
        names
    }
}

/// The domains of a card's guest, that of the VMs first.
fn names(spec: &ServiceSpec) -> impl Iterator<Item = &str> {
    let others = spec.search.names().iter().map(DomainName::as_str);
    [DOMAIN].into_iter().chain(others.filter(|name| !name.eq_ignore_ascii_case(DOMAIN)))
}

/// The domains one after the other, as in router advertisements (RFC 8106 5.2) and DHCPv6 (RFC 3646 4).
pub(super) fn plain(spec: &ServiceSpec) -> Vec<u8> {
    names(spec).filter_map(dns::name_value).flatten().collect()
}

/// The first `count` domains with pointers to earlier ones, as in DHCPv4 (RFC 3397 2); none if there are fewer.
pub(super) fn compressed(spec: &ServiceSpec, count: usize) -> Option<Vec<u8>> {
    let names: Vec<&str> = names(spec).take(count).collect();
    (names.len() == count).then(|| compress(&names))
}

fn compress(names: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Ends of names and their offsets.
    let mut known: Vec<(&str, usize)> = Vec::new();
    for name in names {
        let mut rest = Some(*name);
        while let Some(end) = rest {
            if let Some((_, at)) = known.iter().find(|(other, _)| other.eq_ignore_ascii_case(end)) {
                // Every offset that is noted fits.
                bytes.extend((POINTER | u16::try_from(*at).unwrap_or_default()).to_be_bytes());
                break;
            }
            if bytes.len() <= POINTER_MAX {
                known.push((end, bytes.len()));
            }
            let (label, others) = end.split_once('.').map_or((end, None), |(label, others)| (label, Some(others)));
            // A label has 63 octets at most.
            bytes.push(u8::try_from(label.len()).unwrap_or_default());
            bytes.extend(label.as_bytes());
            rest = others;
        }
        if rest.is_none() {
            bytes.push(0);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::tests::spec;

    /// The example list of RFC 3397 2.
    #[test]
    fn names_share_their_ends() {
        let bytes = compress(&["eng.apple.com", "marketing.apple.com"]);
        assert_eq!(bytes, b"\x03eng\x05apple\x03com\x00\x09marketing\xc0\x04");
        assert_eq!(compress(&["a.b", "A.B", "b"]), b"\x01a\x01b\x00\xc0\x00\xc0\x02");
    }

    #[test]
    fn domain_of_the_vms_comes_first_and_once() {
        let search = Search::Host(["corp.example", "MiniVMM"].map(|name| name.parse().unwrap()).to_vec());
        let spec = ServiceSpec { search, ..spec() };
        assert_eq!(plain(&spec), b"\x07minivmm\x00\x04corp\x07example\x00");
        assert_eq!(compressed(&spec, 2).unwrap(), plain(&spec));
        assert_eq!(compressed(&spec, 3), None);
    }
}
