//! Anonymous sets, in which rules look values up, and the errors of rules that cannot be expressed.

use std::io;

use super::kernel::*;
use super::test::{KeyKind, RawItem, edges};
use super::value::Datum;
use crate::spec::IfName;

/// A rule that nf_tables cannot express.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    /// Chains of an inet table see no ARP, at any hook.
    #[error("Cannot match ARP in a table of family inet, whose chains see none")]
    ArpInInet,
    /// The kernel takes an interface's number.
    #[error("Cannot find interface {name}")]
    Device {
        /// The interface.
        name: IfName,
        /// The kernel's error.
        source: io::Error,
    },
}

/// An anonymous set.
#[derive(Debug)]
pub(super) struct NewSet {
    /// The number that rules and elements of the same transaction use for it.
    pub(super) id: u32,
    pub(super) flags: u32,
    pub(super) key: KeyKind,
    /// The number of elements, or the maximum, if stated.
    pub(super) size: Option<u32>,
    pub(super) elements: Vec<Element>,
}

/// An element of a set as the kernel has it.
#[derive(Clone, Debug)]
pub(super) struct Element {
    pub(super) key: Vec<u8>,
    pub(super) data: Option<Vec<u8>>,
    pub(super) end: bool,
}

/// How a rule finds a set.
#[derive(Debug)]
pub(super) struct Lookup {
    pub(super) name: String,
    pub(super) id: Option<u32>,
}

impl Lookup {
    /// A set of the table.
    pub(super) fn named(name: &str) -> Self {
        Self { name: name.to_owned(), id: None }
    }
}

/// The name of anonymous sets and maps; the kernel fills in a number.
const SET_NAME: &str = "__set%d";
const MAP_NAME: &str = "__map%d";

impl NewSet {
    /// A set of these keys.
    pub(super) fn keys(items: Vec<RawItem>, key: KeyKind) -> Self {
        let has_intervals = items.iter().any(|item| item.first != item.last);
        let flags = NFT_SET_ANONYMOUS | NFT_SET_CONSTANT | if has_intervals { NFT_SET_INTERVAL } else { 0 };
        let elements = elements(&items, has_intervals);
        Self { id: 0, flags, key, size: u32::try_from(elements.len()).ok(), elements }
    }

    /// A map from ports to ports.
    pub(super) fn ports(pairs: &[(u16, u16)], key: KeyKind) -> Self {
        let element = |(from, to): &(u16, u16)| Element { key: from.bytes(), data: Some(to.bytes()), end: false };
        let flags = NFT_SET_ANONYMOUS | NFT_SET_CONSTANT | NFT_SET_MAP;
        let elements: Vec<Element> = pairs.iter().map(element).collect();
        Self { id: 0, flags, key, size: u32::try_from(elements.len()).ok(), elements }
    }

    /// The lookup of this set in its rule.
    pub(super) fn lookup(&self) -> Lookup {
        Lookup { name: self.name().to_owned(), id: Some(self.id) }
    }

    pub(super) fn name(&self) -> &'static str {
        if self.flags & NFT_SET_MAP == 0 { SET_NAME } else { MAP_NAME }
    }
}

pub(super) fn elements(items: &[RawItem], has_intervals: bool) -> Vec<Element> {
    if has_intervals {
        return edges(items).into_iter().map(|edge| Element { key: edge.key, data: None, end: edge.end }).collect();
    }
    let mut keys: Vec<&Vec<u8>> = items.iter().map(|item| &item.first).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter().map(|key| Element { key: key.clone(), data: None, end: false }).collect()
}
