//! The environment of a scenario.

use crate::debian::Debian;
use crate::guest::{Guest, SERIES};
use crate::vm::Builder;
use crate::workspace::{self, Parts};
use images::disk::{self, Contents};
use images::error_chain;
use images::kernel::Series;
use images::root;
use std::path::{Path, PathBuf};
use std::process;

/// The exit code of a scenario that cannot run here; its report says why.
pub const SKIPPED: u8 = 77;

/// The environment of a scenario.
pub struct Stage {
    parts: Parts,
    scratch: PathBuf,
}

impl Stage {
    /// A stage with these parts and a folder for the scenario's files.
    pub fn new(parts: Parts, scratch: &Path) -> Self {
        Self { parts, scratch: scratch.to_path_buf() }
    }

    /// The folder with the guests.
    pub fn guests(&self) -> &Path {
        &self.parts.guests
    }

    /// The guest of a kernel series.
    pub fn guest(&self, series: Series) -> Guest {
        Guest::at(&self.parts.guests, series)
    }

    /// The guest of the default series.
    pub fn default_guest(&self) -> Guest {
        self.guest(SERIES[0])
    }

    /// The guest with DPDK, if the machine that made the guests has it.
    pub fn dpdk_guest(&self) -> Option<Guest> {
        self.parts.dpdk_guest()
    }

    /// The root disk of Debian packages, which is there for scenarios on request.
    pub fn debian(&self) -> Debian {
        self.parts.debian()
    }

    /// The guest that runs the kernel's own tests; [`Parts::provide_selftests`] has made it.
    pub fn selftests_guest(&self) -> Guest {
        self.parts.selftests_guest()
    }

    /// The disk of that guest.
    pub fn selftests_disk(&self) -> PathBuf {
        self.parts.selftests_disk()
    }

    /// The folder of [`Stage::file`].
    pub fn folder(&self) -> &Path {
        &self.scratch
    }

    /// The bare-metal probe guest.
    pub fn probe(&self) -> PathBuf {
        self.parts.probe()
    }

    /// The cases of `net/tests/host`.
    pub fn host_cases(&self) -> PathBuf {
        self.parts.host_cases()
    }

    /// The program under test.
    pub fn minivmm(&self) -> &Path {
        &self.parts.minivmm
    }

    /// A machine without any flag.
    pub fn bare_vm(&self) -> Builder {
        Builder::new(&self.parts.minivmm)
    }

    /// A machine with the newest guest.
    pub fn vm(&self) -> Builder {
        let guest = self.default_guest();
        self.bare_vm().kernel(guest.bzimage).initrd(guest.initramfs)
    }

    /// A file of the scenario's own, in memory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// A new root disk of `images`, of the size given as to `--size`.
    pub fn root_disk(&self, size: &str) -> PathBuf {
        let file = self.file("root.ext4");
        let tree = |size| Ok((size, Contents::Tree(root::tree(&workspace::agent())?)));
        let made = size.parse().and_then(tree).and_then(|(size, tree)| disk::make(size, &tree, &file));
        made.unwrap_or_else(|error| panic!("There is no root disk: {}", error_chain(&error)));
        file
    }

    /// Ends the scenario without a verdict.
    pub fn skip(&self, reason: &str) -> ! {
        println!("{reason}");
        process::exit(i32::from(SKIPPED))
    }
}
