//! Which modules a kernel must load for a wish, in order. Reads what is in a kernel package: `modules.builtin`,
//! `modules.order` and each module's own `.modinfo`. A package has no `modules.dep` (depmod writes that when the
//! package is installed); its source, the `depends=` field, is read here instead, which saves running depmod.
//!
//! Names follow the kernel: `-` and `_` are the same in them (`virtio-rng.ko` is the module `virtio_rng`).

use crate::error::Error;
use crate::tools;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The modules that a guest of minivmm needs under any of the kernels offered: bus, card, disk, entropy, power button
/// and its input device, the root file system, the packet socket of the DHCP client, the panic report. What a kernel
/// has built in is skipped.
pub const DEFAULT: [&str; 12] = [
    "virtio_pci",
    "virtio_net",
    "virtio_blk",
    "virtio_rng",
    "button",
    "evdev",
    "ext4",
    "af_packet",
    "8021q",
    "pvpanic_mmio",
    "pvpanic_pci",
    "rtc_cmos",
];

/// A module ready to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// The uncompressed `.ko`.
    pub image: Vec<u8>,
}

/// The modules of one kernel.
#[derive(Debug)]
pub struct Modules {
    release: String,
    builtin: BTreeSet<String>,
    files: BTreeMap<String, PathBuf>,
}

impl Modules {
    /// Reads the lists in `dir`, which is a `/lib/modules/RELEASE`.
    ///
    /// # Errors
    /// [`Error::File`] when a list cannot be read.
    pub fn open(dir: &Path, release: &str) -> Result<Self, Error> {
        let list = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).map_err(Error::file("read", &path))
        };
        let builtin = list("modules.builtin")?.lines().map(name_of).collect();
        let files = list("modules.order")?.lines().map(|line| (name_of(line), dir.join(line))).collect();
        Ok(Self { release: release.to_owned(), builtin, files })
    }

    /// The named modules and all that they depend on, each after its dependencies, without what is built in.
    ///
    /// # Errors
    /// [`Error::NoModule`] for a name that this kernel does not have, [`Error::OddModule`] for one without dependencies
    /// to read, and what decompressing gives.
    pub fn resolve<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<Vec<Module>, Error> {
        in_load_order(names, |name| self.load(name))
    }

    /// A module with the names it depends on; `None` when it is built in.
    fn load(&self, name: &str) -> Result<Option<(Module, Vec<String>)>, Error> {
        if self.builtin.contains(name) {
            return Ok(None);
        }
        let no_module = || Error::NoModule { release: self.release.clone(), module: name.to_owned() };
        let image = read_module(self.files.get(name).ok_or_else(no_module)?)?.ok_or_else(no_module)?;
        let odd_module = || Error::OddModule { release: self.release.clone(), module: name.to_owned() };
        let depends = depends(&image).ok_or_else(odd_module)?;
        Ok(Some((Module { name: name.to_owned(), image }, depends)))
    }
}

/// The depth-first order: every module once, after those it depends on. A name already under way is not entered again,
/// so a cycle (which the kernel's build refuses) ends as well.
fn in_load_order<'a>(
    names: impl IntoIterator<Item = &'a str>,
    mut load: impl FnMut(&str) -> Result<Option<(Module, Vec<String>)>, Error>,
) -> Result<Vec<Module>, Error> {
    enum Task {
        Visit(String),
        Emit(Module),
    }
    let mut seen = BTreeSet::new();
    let mut ordered = Vec::new();
    for name in names {
        let mut tasks = vec![Task::Visit(canonical(name))];
        while let Some(task) = tasks.pop() {
            match task {
                Task::Emit(module) => ordered.push(module),
                Task::Visit(name) if seen.insert(name.clone()) => {
                    if let Some((module, depends)) = load(&name)? {
                        tasks.push(Task::Emit(module));
                        tasks.extend(depends.into_iter().rev().map(Task::Visit));
                    }
                }
                Task::Visit(_) => {}
            }
        }
    }
    Ok(ordered)
}

/// The bytes of the `.ko` that `modules.order` names, which the package may hold compressed. `None` if in no known
/// form.
fn read_module(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    for (suffix, tool) in [("", None), (".xz", Some("xz")), (".zst", Some("zstd")), (".gz", Some("gzip"))] {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        let file = PathBuf::from(file);
        if !file.exists() {
            continue;
        }
        let stored = fs::read(&file).map_err(Error::file("read", &file))?;
        return Ok(Some(match tool {
            None => stored,
            Some(tool) => tools::filter(tools::tool(tool)?.arg("-dc"), &stored)?,
        }));
    }
    Ok(None)
}

/// The `depends=` field of a module's `.modinfo`, which is a run of NUL-terminated `key=value` strings. Every module
/// has one, possibly empty. The section is found by its content: no code or data of a module holds this field name
/// right after a NUL, so an ELF reader would add nothing but a failure of its own.
fn depends(image: &[u8]) -> Option<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let start = image.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
    let rest = image.get(start..)?;
    let end = rest.iter().position(|&byte| byte == 0)?;
    let text = std::str::from_utf8(rest.get(..end)?).ok()?;
    Some(text.split(',').filter(|name| !name.is_empty()).map(canonical).collect())
}

fn name_of(line: &str) -> String {
    let file = line.rsplit('/').next().unwrap_or(line);
    canonical(file.strip_suffix(".ko").unwrap_or(file))
}

fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(modules: &[Module]) -> Vec<&str> {
        modules.iter().map(|module| module.name.as_str()).collect()
    }

    fn module(name: &str, depends: &str) -> Option<(Module, Vec<String>)> {
        let depends = depends.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        Some((Module { name: name.to_owned(), image: Vec::new() }, depends))
    }

    fn fixture() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("modules.builtin"), "kernel/drivers/rtc/rtc-cmos.ko\n").unwrap();
        fs::write(dir.path().join("modules.order"), "kernel/net_failover.ko\nkernel/virtio_net.ko\n").unwrap();
        fs::create_dir(dir.path().join("kernel")).unwrap();
        fs::write(dir.path().join("kernel/virtio_net.ko"), b"\x7fELF\0alias=x\0depends=net-failover\0").unwrap();
        fs::write(dir.path().join("kernel/net_failover.ko"), b"\x7fELF\0depends=\0intree=Y\0").unwrap();
        dir
    }

    #[test]
    fn dependencies_come_first_and_builtins_are_skipped() {
        let dir = fixture();
        let modules = Modules::open(dir.path(), "1.0").unwrap();
        let resolved = modules.resolve(["rtc_cmos", "virtio-net"]).unwrap();
        assert_eq!(names(&resolved), ["net_failover", "virtio_net"]);
    }

    #[test]
    fn unknown_module_is_named_with_the_kernel() {
        let dir = fixture();
        let error = Modules::open(dir.path(), "1.0").unwrap().resolve(["nosuch"]).unwrap_err();
        assert_eq!(error.to_string(), "Kernel 1.0 has no module nosuch");
    }

    #[test]
    fn shared_dependency_appears_once() {
        let graph = |name: &str| {
            Ok(match name {
                "a" => module("a", "c,b"),
                "b" => module("b", "c"),
                _ => module("c", ""),
            })
        };
        assert_eq!(names(&in_load_order(["b", "a", "c"], graph).unwrap()), ["c", "b", "a"]);
    }

    #[test]
    fn cycle_ends() {
        let graph = |name: &str| Ok(if name == "a" { module("a", "b") } else { module("b", "a") });
        assert_eq!(names(&in_load_order(["a"], graph).unwrap()), ["b", "a"]);
    }

    #[test]
    fn module_without_modinfo_has_no_dependencies_to_read() {
        assert_eq!(depends(b"\x7fELF nothing"), None);
        assert_eq!(depends(b"\0depends=no end"), None);
        assert_eq!(depends(b"\0depends=a-b,c\0"), Some(vec!["a_b".into(), "c".into()]));
    }
}
