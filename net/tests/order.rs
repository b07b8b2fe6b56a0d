//! The rooms of `net/src` know each other only downwards, and no files in them import each other in a ring.
//!
//! An arrow leads from a file to each file whose path (`crate::…`, `super::…`, `self::…`) it names. Code under
//! `#[cfg(test)]` may look anywhere. Parent and child (`step.rs`, `step/attach_tap.rs`) may know each other: they are
//! one unit in several files.
//!
//! To count any checkout: `NET_SRC=/path/to/net/src cargo test -p net --test order counts -- --nocapture`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms from the top down: each may know those after it.
const STAIRS: [&str; 22] = [
    "doctor",
    "inventory",
    "preview",
    "rehearsal",
    "keeper",
    "address_listener",
    "prepare",
    "plan",
    "gc",
    "step",
    "error",
    "host",
    "survey",
    "request",
    "policy",
    "rules",
    "services",
    "refusal",
    "facts",
    "kernel",
    "spec",
    "identity",
];

/// A module: the segments of its path, none for the crate's root.
type Module = Vec<String>;

/// A place where a file names another.
struct Arrow {
    from: Module,
    to: Module,
}

impl Arrow {
    fn is_between_parent_and_child(&self) -> bool {
        self.from.starts_with(&self.to) || self.to.starts_with(&self.from)
    }

    fn goes_up(&self) -> bool {
        room(&self.from) != room(&self.to) && floor(&self.from) >= floor(&self.to)
    }
}

struct House {
    files: usize,
    arrows: Vec<Arrow>,
}

impl House {
    fn read(src: &Path) -> Self {
        let mut files = Vec::new();
        find(src, &mut files);
        let modules: BTreeMap<Module, String> = (files.iter())
            .map(|file| (module(file.strip_prefix(src).unwrap()), code(&fs::read_to_string(file).unwrap())))
            .collect();
        let mut arrows = Vec::new();
        for (from, text) in &modules {
            let named: BTreeSet<Module> = paths(text).iter().filter_map(|path| target(from, path, &modules)).collect();
            arrows.extend(named.into_iter().filter(|to| to != from).map(|to| Arrow { from: from.clone(), to }));
        }
        Self { files: modules.len(), arrows }
    }

    /// Sets of files that all reach each other, by arrows that are not between parent and child.
    fn rings(&self) -> Vec<BTreeSet<&Module>> {
        let mut next: BTreeMap<&Module, Vec<&Module>> = BTreeMap::new();
        for arrow in self.arrows.iter().filter(|arrow| !arrow.is_between_parent_and_child()) {
            next.entry(&arrow.from).or_default().push(&arrow.to);
        }
        let reached: BTreeMap<&Module, BTreeSet<&Module>> =
            next.keys().map(|start| (*start, reach(start, &next))).collect();
        let mut rings: Vec<BTreeSet<&Module>> = Vec::new();
        for (start, reach) in &reached {
            let back = |other: &&&Module| reached.get(**other).is_some_and(|reach| reach.contains(start));
            let ring: BTreeSet<&Module> = reach.iter().filter(back).copied().collect();
            if !ring.is_empty() && !rings.contains(&ring) {
                rings.push(ring);
            }
        }
        rings
    }

    fn rooms(&self) -> BTreeSet<&str> {
        self.arrows.iter().flat_map(|arrow| [room(&arrow.from), room(&arrow.to)]).collect()
    }

    fn between_rooms(&self) -> BTreeSet<(&str, &str)> {
        let arrows = self.arrows.iter().map(|arrow| (room(&arrow.from), room(&arrow.to)));
        arrows.filter(|(from, to)| from != to).collect()
    }
}

/// The files that arrows lead to from `start`.
fn reach<'a>(start: &'a Module, next: &BTreeMap<&'a Module, Vec<&'a Module>>) -> BTreeSet<&'a Module> {
    let mut reached = BTreeSet::new();
    let mut todo = vec![start];
    while let Some(module) = todo.pop() {
        let found = next.get(module).into_iter().flatten().filter(|to| reached.insert(**to));
        todo.extend(found.copied().collect::<Vec<_>>());
    }
    reached
}

/// The room that a file is in.
fn room(module: &Module) -> &str {
    module.first().map_or("lib", String::as_str)
}

fn floor(module: &Module) -> Option<usize> {
    // The crate's root is in none of the rooms, and above all of them.
    STAIRS.iter().position(|name| *name == room(module))
}

fn name(module: &Module) -> String {
    if module.is_empty() { "lib".to_owned() } else { module.join("::") }
}

/// The files under `dir` that are part of the program.
fn find(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.file_stem().is_some_and(|stem| stem == "tests") {
            continue;
        }
        if path.is_dir() {
            find(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn module(file: &Path) -> Module {
    let names = file.with_extension("");
    let names = names.iter().map(|name| name.to_str().unwrap().to_owned());
    names.filter(|name| name != "lib").collect()
}

/// The text without comments, up to the first `#[cfg(test)]` at the start of a line, where the tests begin.
fn code(text: &str) -> String {
    let text = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
    let lines = text.lines().map(|line| match line.find("//") {
        Some(at) => &line[..at],
        None => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// All paths that begin with `crate`, `super` or `self`, with trees in braces taken apart.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_none_or(|before| !(before.is_alphanumeric() || before == '_' || before == ':')) {
                tree(&code[at..], &[], &mut paths);
            }
        }
    }
    paths
}

/// Reads a path or tree of paths after `prefix`; returns what comes after it.
fn tree<'a>(mut text: &'a str, prefix: &[String], paths: &mut Vec<Vec<String>>) -> &'a str {
    let mut path = prefix.to_vec();
    loop {
        text = text.trim_start();
        if let Some(mut inner) = text.strip_prefix('{') {
            loop {
                inner = tree(inner, &path, paths).trim_start();
                match inner.strip_prefix(',') {
                    Some(rest) if !rest.trim_start().starts_with('}') => inner = rest,
                    Some(rest) => return &rest.trim_start()[1..],
                    None => return inner.strip_prefix('}').unwrap_or(inner),
                }
            }
        }
        let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        path.push(name.to_owned());
        match rest.strip_prefix("::") {
            Some(rest) if rest.starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '{') => text = rest,
            _ => {
                paths.push(path);
                // A rename is not part of the path.
                let renamed = rest.strip_prefix(" as ").and_then(|rest| rest.split_once([',', '}', ';']));
                return renamed.map_or(rest, |(name, _)| &rest[" as ".len() + name.len()..]);
            }
        }
    }
}

/// The file that a path in `from` leads to.
fn target(from: &Module, path: &[String], modules: &BTreeMap<Module, String>) -> Option<Module> {
    let mut to = from.clone();
    let mut names = path.iter();
    for name in names.by_ref() {
        match name.as_str() {
            "crate" => to.clear(),
            "super" => drop(to.pop()),
            "self" => {}
            name => {
                to.push(name.to_owned());
                break;
            }
        }
    }
    to.extend(names.cloned());
    while !modules.contains_key(&to) {
        to.pop()?;
    }
    Some(to)
}

fn house() -> House {
    let src = env::var_os("NET_SRC").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), PathBuf::from);
    House::read(&src)
}

#[test]
fn every_arrow_between_rooms_goes_down_the_stairs() {
    let house = house();
    let up = house.arrows.iter().filter(|arrow| arrow.goes_up());
    let up: Vec<String> = up.map(|arrow| format!("{} -> {}", name(&arrow.from), name(&arrow.to))).collect();
    assert!(up.is_empty(), "{} arrows go up:\n{}", up.len(), up.join("\n"));
}

#[test]
fn no_files_import_each_other_in_a_ring() {
    let house = house();
    let rings = house.rings();
    let rings: Vec<String> =
        rings.iter().map(|ring| ring.iter().map(|file| name(file)).collect::<Vec<_>>().join(" ")).collect();
    assert!(rings.is_empty(), "{} rings:\n{}", rings.len(), rings.join("\n"));
}

#[test]
fn every_room_has_its_place_on_the_stairs() {
    let house = house();
    let (found, known): (BTreeSet<&str>, BTreeSet<&str>) = (house.rooms(), STAIRS.into_iter().collect());
    assert_eq!(found, known, "rooms of net/src, and rooms of the stairs");
}

#[test]
fn counts() {
    let house = house();
    let rings = house.rings();
    let in_rings: usize = rings.iter().map(BTreeSet::len).sum();
    println!(
        "files {}, arrows {}, rings {} ({in_rings} files), rooms {}, arrows between rooms {}, arrows that go up {}",
        house.files,
        house.arrows.len(),
        rings.len(),
        house.rooms().len(),
        house.between_rooms().len(),
        house.arrows.iter().filter(|arrow| arrow.goes_up()).count()
    );
    assert!(house.files > 100 && house.arrows.len() > house.files, "the sources were not read");
}
