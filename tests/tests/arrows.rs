//! The workspace's crates depend on each other only as the design has it: `minivmm` on boot, devices and net, those on
//! none of the project's crates but jail, which knows no other, and none on the tests.

use cargo_metadata::MetadataCommand;
use std::collections::{BTreeMap, BTreeSet};

/// Every crate with those it may use.
const ALLOWED: [(&str, &[&str]); 7] = [
    ("minivmm", &["boot", "devices", "jail", "net"]),
    ("boot", &[]),
    ("devices", &[]),
    ("jail", &[]),
    ("net", &["jail"]),
    ("images", &[]),
    ("tests", &["images"]),
];

#[test]
fn crates_use_only_those_the_design_allows() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        ALLOWED.into_iter().map(|(name, uses)| (name, uses.iter().copied().collect())).collect();
    let metadata = MetadataCommand::new().no_deps().exec().unwrap();
    let members: BTreeSet<&str> = metadata.workspace_packages().iter().map(|package| package.name.as_str()).collect();
    assert_eq!(members, allowed.keys().copied().collect(), "the workspace's crates");

    for package in metadata.workspace_packages() {
        let uses: BTreeSet<&str> = package
            .dependencies
            .iter()
            .map(|dependency| dependency.name.as_str())
            .filter(|name| members.contains(name))
            .collect();
        let name = package.name.as_str();
        assert!(uses.is_subset(&allowed[name]), "{name} uses {uses:?}, the design allows {:?}", allowed[name]);
    }
}

#[test]
fn minivmm_is_made_of_all_three() {
    let metadata = MetadataCommand::new().no_deps().exec().unwrap();
    let packages = metadata.workspace_packages();
    let minivmm = packages.iter().find(|package| package.name.as_str() == "minivmm").unwrap();
    let uses: BTreeSet<&str> = minivmm.dependencies.iter().map(|dependency| dependency.name.as_str()).collect();
    assert!(uses.is_superset(&BTreeSet::from(["boot", "devices", "net"])), "minivmm uses {uses:?}");
}
