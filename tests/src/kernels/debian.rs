//! Debian's kernel packages as they are, and for each the initrd that Debian's own `mkinitramfs` makes, in a root by
//! mmdebstrap that is thrown away. Nothing is installed on this machine, and its `/boot` is not touched.

use super::case::Initrd;
use crate::guest::Guest;
use crate::hostvm::kernel::run;
use crate::workspace::{PLAIN, Parts};
use images::kernel::{Flavour, Freshness, Kernel, Series};
use images::tree::{Entry, Tree};
use images::{cpio, place};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The folder of all this, among the guests.
const FOLDER: &str = "debian";

/// Programs of the root beside the base system: what an initrd is made with and of.
const PACKAGES: &str = "initramfs-tools,busybox,zstd,udev,kmod";
/// The release whose tools make the initrds.
const SUITE: &str = "bookworm";

/// Run by mmdebstrap with the new root as `$1`: makes the initrd of one kernel, as its package's installation does.
const MAKE_INITRD: &str = r#"set -e; root=$1; modules=$root/lib/modules/$release
mkdir -p "$modules" && cp -a "$kernel/modules/." "$modules" && cp "$kernel/config" "$root/boot/config-$release"
chroot "$root" depmod "$release" && chroot "$root" mkinitramfs -o /initrd "$release"
cp "$root/initrd" "$out.new" && mv "$out.new" "$out" && rm -rf "$modules""#;

/// Each large part, in MiB, and how many there are: with Debian's own part, more than 150 MiB.
const PAD_MIB: u64 = 48;
const PADS: usize = 3;

/// Run by Debian's `/init` before anything else of it.
const CHECK_PADS: &[u8] = b"
if (cd /pads && sha256sum -c sums >/dev/null); then pads=whole; else pads=broken; fi
echo; echo pads=$pads $(ls /pads | wc -l)
";

/// A kernel that Debian ships.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Debian(pub(super) Series, pub(super) Flavour);

impl Debian {
    pub(super) fn name(self) -> String {
        format!("{}-{}", self.0.name(), self.1.name())
    }

    fn kernel(self, cache: &Path) -> Result<Kernel, images::Error> {
        images::kernel::provide(self.0, self.1, Freshness::Cached, cache)
    }
}

/// The files of a kernel of the matrix.
pub(super) struct Files {
    pub(super) bzimage: PathBuf,
    own_initrd: PathBuf,
    large_initrd: PathBuf,
    agent_initrd: PathBuf,
    small_initrd: PathBuf,
}

impl Files {
    pub(super) fn at(guests: &Path, kernel: Debian) -> Self {
        let folder = guests.join(FOLDER);
        let file = |name: &str| folder.join(format!("{name}-{}", kernel.name()));
        Self {
            bzimage: file("vmlinuz"),
            own_initrd: file("initrd"),
            large_initrd: file("large"),
            agent_initrd: Guest::at(guests, kernel.0).initramfs,
            small_initrd: Guest::at(&guests.join(PLAIN), kernel.0).initramfs,
        }
    }

    pub(super) fn initrd(&self, initrd: Initrd) -> &Path {
        match initrd {
            Initrd::Agent => &self.agent_initrd,
            Initrd::Small => &self.small_initrd,
            Initrd::Own => &self.own_initrd,
            Initrd::Large => &self.large_initrd,
        }
    }
}

/// Why there is something missing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Images(#[from] images::Error),
    #[error(transparent)]
    Tool(#[from] crate::hostvm::Error),
    #[error("Cannot put {path:?} among the guests")]
    File { path: PathBuf, source: io::Error },
}

/// Provides the files for `wanted`: kernels and what kind of initrd is booted with each.
pub(super) fn provide(parts: &Parts, wanted: impl Iterator<Item = (Debian, Initrd)>) -> Result<(), Error> {
    let cache = place::cache_dir(&parts.guests);
    let wanted: Vec<_> = wanted.filter(|(_, initrd)| !initrd.has_agent()).collect();
    let mut kernels = Vec::new();
    for (debian, _) in &wanted {
        if !kernels.iter().any(|(known, _)| known == debian) {
            kernels.push((*debian, debian.kernel(&cache)?));
        }
    }
    let folder = parts.guests.join(FOLDER);
    fs::create_dir_all(&folder).map_err(failed(&folder))?;
    let initrds = cache.join("initrds");
    make_initrds(kernels.iter().map(|(_, kernel)| kernel), &initrds)?;
    for (debian, kernel) in &kernels {
        let files = Files::at(&parts.guests, *debian);
        copy(&kernel.vmlinuz(), &files.bzimage)?;
        copy(&initrds.join(&kernel.release), &files.own_initrd)?;
        if wanted.contains(&(*debian, Initrd::Large)) {
            make_large(&files)?;
        }
    }
    Ok(())
}

/// Makes those that are missing, in one root.
fn make_initrds<'a>(kernels: impl Iterator<Item = &'a Kernel>, folder: &Path) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(failed(folder))?;
    let mut mmdebstrap = std::process::Command::new("mmdebstrap");
    mmdebstrap.args(["--quiet", "--variant=minbase", &format!("--include={PACKAGES}")]);
    let mut missing = 0;
    for kernel in kernels {
        let (out, config) = (folder.join(&kernel.release), kernel.config());
        if out.exists() {
            continue;
        }
        missing += 1;
        let word = |path: &Path| format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"));
        let (kernel_folder, release) = (word(config.with_file_name("").as_path()), word(Path::new(&kernel.release)));
        let settings = format!("release={release} kernel={kernel_folder} out={}", word(&out));
        mmdebstrap.arg(format!("--customize-hook={settings}\n{MAKE_INITRD}"));
    }
    if missing > 0 {
        eprintln!("Making initrds of {missing} kernels in a root by mmdebstrap; they are kept in {}", folder.display());
        run(mmdebstrap.args([SUITE, "/dev/null"]))?;
    }
    Ok(())
}

/// An initrd of six parts: microcode, uncompressed, as the kernel wants it first; Debian's own, compressed; a check of
/// the rest; and large random files, two of them in archives as they are and one in a compressed archive.
fn make_large(files: &Files) -> Result<(), Error> {
    let mut microcode = Tree::default();
    microcode.put("kernel/x86/microcode/AuthenticAMD.bin", Entry::File(b"no container of microcode".to_vec()));
    let own = fs::read(&files.own_initrd).map_err(failed(&files.own_initrd))?;
    let mut parts = vec![cpio::archive(&microcode)?, aligned(own)];
    let mut check = Tree::default();
    let folder = tempfile::tempdir().map_err(failed(Path::new("a new folder")))?;
    let mut sums = String::new();
    for number in 0..PADS {
        let (name, mut bytes) = (format!("pad{number}"), Vec::new());
        let path = folder.path().join(&name);
        let random = fs::File::open("/dev/urandom").and_then(|file| file.take(PAD_MIB << 20).read_to_end(&mut bytes));
        random.and_then(|_| fs::write(&path, &bytes)).map_err(failed(&path))?;
        sums += &run(std::process::Command::new("sha256sum").current_dir(folder.path()).arg(&name))?;
        let mut pad = Tree::default();
        pad.put(&format!("pads/{name}"), Entry::File(bytes));
        let archive = cpio::archive(&pad)?;
        parts.push(if number == 0 { zipped(&archive, &folder.path().join("archive"))? } else { archive });
    }
    check.put("pads/sums", Entry::File(sums.into_bytes()));
    check.put("conf/conf.d/zz-pads", Entry::File(CHECK_PADS.to_vec()));
    parts.insert(2, cpio::archive(&check)?);
    fs::write(&files.large_initrd, parts.concat()).map_err(failed(&files.large_initrd))
}

/// `archive` through gzip, with a file at `path` in between.
fn zipped(archive: &[u8], path: &Path) -> Result<Vec<u8>, Error> {
    fs::write(path, archive).map_err(failed(path))?;
    run(std::process::Command::new("gzip").args(["-1", "-f"]).arg(path))?;
    let path = path.with_extension("gz");
    fs::read(&path).map(aligned).map_err(failed(&path))
}

/// A part, and zeros up to where the kernel looks for the next one: at a multiple of four bytes.
fn aligned(mut part: Vec<u8>) -> Vec<u8> {
    part.resize(part.len().next_multiple_of(4), 0);
    part
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    fs::copy(from, to).map(drop).map_err(failed(to))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::File { path, source }
}
