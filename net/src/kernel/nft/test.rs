//! Tests of a field: a value, a range, a prefix, a set.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::value::Datum;

/// A test of a field whose values are `T`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test<T> {
    /// It equals this.
    Is(Item<T>),
    /// It differs from this.
    IsNot(Item<T>),
    /// It is one of these. Items may overlap.
    In(Vec<Item<T>>),
    /// It is none of these.
    NotIn(Vec<Item<T>>),
    /// It is in the table's set of that name.
    InSet(String),
    /// It is not in the table's set of that name.
    NotInSet(String),
}

/// A value, or a contiguous range of values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item<T> {
    /// A value.
    One(T),
    /// From the first to the second, both included. The type must have an order: an address, a port, a type.
    Range(T, T),
    /// All addresses with this many leading bits of this one. The type must be an address.
    Prefix(T, u8),
}

impl<T> Test<T> {
    /// It is this value.
    pub fn is(value: T) -> Self {
        Self::Is(Item::One(value))
    }

    /// It differs from this value.
    pub fn is_not(value: T) -> Self {
        Self::IsNot(Item::One(value))
    }

    /// It is at least `first` and at most `last`.
    pub fn range(first: T, last: T) -> Self {
        Self::Is(Item::Range(first, last))
    }

    /// It is one of these values.
    pub fn any(values: impl IntoIterator<Item = T>) -> Self {
        Self::In(values.into_iter().map(Item::One).collect())
    }

    /// The value of a test for a single one.
    pub(super) fn single(&self) -> Option<&T> {
        if let Self::Is(Item::One(value)) = self { Some(value) } else { None }
    }
}

impl Test<Ipv4Addr> {
    /// It begins with `len` bits of `addr`.
    pub fn prefix4(addr: Ipv4Addr, len: u8) -> Self {
        Self::Is(Item::Prefix(addr, len))
    }
}

impl Test<Ipv6Addr> {
    /// It begins with `len` bits of `addr`.
    pub fn prefix6(addr: Ipv6Addr, len: u8) -> Self {
        Self::Is(Item::Prefix(addr, len))
    }
}

/// A list of items in nft's syntax.
pub(super) struct Braces<'a, T>(pub(super) &'a [Item<T>]);

impl<T: Datum> fmt::Display for Braces<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (idx, item) in self.0.iter().enumerate() {
            write!(f, "{}{item}", if idx == 0 { "{ " } else { ", " })?;
        }
        f.write_str(" }")
    }
}

impl<T: Datum> fmt::Display for Test<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is(item) => item.fmt(f),
            Self::IsNot(item) => write!(f, "!= {item}"),
            Self::In(items) => Braces(items).fmt(f),
            Self::NotIn(items) => write!(f, "!= {}", Braces(items)),
            Self::InSet(name) => write!(f, "@{name}"),
            Self::NotInSet(name) => write!(f, "!= @{name}"),
        }
    }
}

impl<T: Datum> fmt::Display for Item<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(value) => f.write_str(&value.text()),
            Self::Range(first, last) => write!(f, "{}-{}", first.text(), last.text()),
            Self::Prefix(addr, len) => write!(f, "{}/{len}", addr.text()),
        }
    }
}

/// A test on bytes of a register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RawTest {
    /// It is, or is not, this.
    Item { item: RawItem, negate: bool },
    /// It is, or is not, in an anonymous set.
    Items { items: Vec<RawItem>, negate: bool, key: KeyKind },
    /// It is, or is not, in a named set.
    Set { name: String, negate: bool },
    /// Under the mask, it equals, or differs from, the value.
    Bits { mask: Vec<u8>, value: Vec<u8>, negate: bool },
}

/// The kind of a set's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeyKind {
    /// [`Datum::KEY_TYPE`].
    pub(super) number: u32,
    /// [`Datum::LEN`].
    pub(super) len: usize,
    /// [`Datum::HOST_ORDER`].
    pub(super) host_order: bool,
}

impl KeyKind {
    /// The kind of `T`.
    pub(super) const fn of<T: Datum>() -> Self {
        Self { number: T::KEY_TYPE, len: T::LEN, host_order: T::HOST_ORDER }
    }
}

/// Bytes from the first to the last. A prefix also has a mask to be tested with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RawItem {
    pub(super) first: Vec<u8>,
    pub(super) last: Vec<u8>,
    pub(super) mask: Option<Vec<u8>>,
}

impl<T: Datum> Test<T> {
    pub(super) fn raw(&self) -> RawTest {
        let negate = matches!(self, Self::IsNot(_) | Self::NotIn(_) | Self::NotInSet(_));
        match self {
            Self::Is(item) | Self::IsNot(item) => RawTest::Item { item: item.raw(), negate },
            Self::In(items) | Self::NotIn(items) => {
                RawTest::Items { items: items.iter().map(Item::raw).collect(), negate, key: KeyKind::of::<T>() }
            }
            Self::InSet(name) | Self::NotInSet(name) => RawTest::Set { name: name.clone(), negate },
        }
    }
}

impl<T: Datum> Item<T> {
    pub(super) fn raw(&self) -> RawItem {
        match self {
            Self::One(value) => RawItem { first: value.bytes(), last: value.bytes(), mask: None },
            Self::Range(first, last) => RawItem { first: first.bytes(), last: last.bytes(), mask: None },
            Self::Prefix(addr, len) => {
                let mask = mask(*len, T::LEN);
                let first = addr.bytes().iter().zip(&mask).map(|(byte, mask)| byte & mask).collect();
                let last = addr.bytes().iter().zip(&mask).map(|(byte, mask)| byte | !mask).collect();
                RawItem { first, last, mask: Some(mask) }
            }
        }
    }
}

/// `bytes` bytes of which the first `bits` bits are set.
fn mask(bits: u8, bytes: usize) -> Vec<u8> {
    let left = |idx: usize| usize::from(bits).saturating_sub(idx * 8).min(8);
    (0..bytes).map(|idx| u8::MAX.checked_shl(8 - u32::try_from(left(idx)).unwrap_or(8)).unwrap_or(0)).collect()
}

/// An edge of an interval in a set: its first key or its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) key: Vec<u8>,
    pub(super) end: bool,
}

/// The edges of all items, in order, without overlaps: an end is the first key after the interval. An interval up to
/// the largest key has no end. If the first key is not zero, an end at zero precedes it, as `nft` does and expects.
pub(super) fn edges(items: &[RawItem]) -> Vec<Edge> {
    let mut sorted: Vec<&RawItem> = items.iter().filter(|item| item.first <= item.last).collect();
    sorted.sort_by(|a, b| a.first.cmp(&b.first));
    let mut merged: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for item in sorted {
        match merged.last_mut() {
            Some((_, last)) if item.first <= *last => *last = item.last.clone().max(std::mem::take(last)),
            _ => merged.push((item.first.clone(), item.last.clone())),
        }
    }
    let mut edges = Vec::new();
    if let Some((first, _)) = merged.first().filter(|(first, _)| first.iter().any(|byte| *byte != 0)) {
        edges.push(Edge { key: vec![0; first.len()], end: true });
    }
    for (first, last) in merged {
        edges.push(Edge { key: first, end: false });
        edges.extend(successor(last).map(|key| Edge { key, end: true }));
    }
    edges
}

/// The next number of the same length.
fn successor(mut key: Vec<u8>) -> Option<Vec<u8>> {
    for byte in key.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(key);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(items: &[Item<u16>]) -> Vec<(u16, bool)> {
        let raw: Vec<RawItem> = items.iter().map(Item::raw).collect();
        edges(&raw).into_iter().map(|edge| (u16::from_be_bytes(edge.key.try_into().unwrap()), edge.end)).collect()
    }

    #[test]
    fn an_interval_begins_and_ends() {
        assert_eq!(shown(&[Item::Range(80, 90)]), [(0, true), (80, false), (91, true)]);
    }

    #[test]
    fn an_interval_of_all_has_no_end() {
        assert_eq!(shown(&[Item::Range(0, 65535)]), [(0, false)]);
    }

    #[test]
    fn overlapping_intervals_are_one() {
        let items = [Item::Range(80, 90), Item::Range(85, 86), Item::Range(90, 95), Item::One(100)];
        assert_eq!(shown(&items), [(0, true), (80, false), (96, true), (100, false), (101, true)]);
    }

    #[test]
    fn an_interval_that_ends_before_it_begins_is_empty() {
        assert_eq!(shown(&[Item::Range(90, 80)]), []);
    }

    #[test]
    fn masks_have_the_leading_bits() {
        assert_eq!(mask(0, 4), [0; 4]);
        assert_eq!(mask(23, 4), [255, 255, 254, 0]);
        assert_eq!(mask(32, 4), [255; 4]);
        assert_eq!(mask(255, 4), [255; 4]);
    }

    #[test]
    fn a_prefix_forgets_the_other_bits() {
        let raw = Item::Prefix(Ipv4Addr::new(10, 1, 2, 3), 8).raw();
        assert_eq!((raw.first, raw.last), (vec![10, 0, 0, 0], vec![10, 255, 255, 255]));
    }
}
