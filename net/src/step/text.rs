//! Lists in the texts of steps.

use crate::spec::IfName;

/// Interfaces in a sentence.
pub(super) fn names(links: &[IfName]) -> String {
    let names: Vec<&str> = links.iter().map(IfName::as_str).collect();
    names.join(", ")
}
