//! A guest to boot: a stock kernel and an initramfs made for it. Promises that a second run changes nothing and that
//! each file is replaced whole. The initramfs is assembled anew each time (a fraction of a second) and written only if
//! it differs, so there is no record of inputs that could go stale.

use crate::error::Error;
use crate::kernel::{self, Flavour, Freshness, Series};
use crate::modules::{self, Modules};
use crate::publish::publish;
use crate::tree::{Entry, Tree};
use crate::{cpio, place, programs, root};
use serde::Serialize;
use std::fs;
use std::path::PathBuf;

/// The guest to make, and its place.
#[derive(Debug, Clone)]
pub struct GuestOptions {
    /// The kernel.
    pub series: Series,
    /// The choice between a cached kernel and the newest.
    pub freshness: Freshness,
    /// The directory that gets `guest/` (see [`place::guest_dir`]).
    pub out: PathBuf,
    /// The directory of downloaded kernels.
    pub cache: PathBuf,
    /// The guest's init.
    pub agent: PathBuf,
    /// Programs of this machine to copy into the guest, by name or path.
    pub programs: Vec<String>,
    /// Kernel modules beside [`modules::DEFAULT`].
    pub modules: Vec<String>,
}

/// The files of a guest.
#[derive(Debug, Clone, Serialize)]
pub struct Guest {
    /// The directory of the files below.
    pub dir: PathBuf,
    /// The bzImage.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// A text about their versions.
    pub about: PathBuf,
    /// The kernel's `uname -r`.
    pub release: String,
}

/// Makes the guest, or finds it made.
///
/// # Errors
/// A tool or a download fails, a file cannot be made, or a program or module is not found.
pub fn provide(options: &GuestOptions) -> Result<Guest, Error> {
    let kernel = kernel::provide(options.series, Flavour::Cloud, options.freshness, &options.cache)?;
    let (tree, loaded) = initramfs_tree(options, &kernel)?;
    let dir = place::guest_dir(&options.out, options.series);
    fs::create_dir_all(&dir).map_err(Error::file("create", &dir))?;

    let about = [
        format!("kernel {}", kernel.release),
        format!("package {}", kernel.package),
        format!("busybox {}", root::busybox_version()?),
        format!("modules {}", loaded.join(" ")),
        format!("programs {}", options.programs.join(" ")),
        format!("images {}", env!("CARGO_PKG_VERSION")),
    ];
    let guest = Guest {
        kernel: dir.join("vmlinuz"),
        initramfs: dir.join("initramfs"),
        about: dir.join("about"),
        release: kernel.release.clone(),
        dir,
    };
    let vmlinuz = fs::read(kernel.vmlinuz()).map_err(Error::file("read", kernel.vmlinuz()))?;
    publish(&guest.initramfs, &cpio::archive(&tree)?)?;
    publish(&guest.kernel, &vmlinuz)?;
    publish(&guest.about, format!("{}\n", about.map(|line| line.trim_end().to_owned()).join("\n")).as_bytes())?;
    Ok(guest)
}

/// The tree of the initramfs, and the names of the modules that it loads.
fn initramfs_tree(options: &GuestOptions, kernel: &kernel::Kernel) -> Result<(Tree, Vec<String>), Error> {
    let mut tree = root::tree(&options.agent)?;
    tree.put("init", Entry::Symlink("sbin/init".to_owned()));
    let wanted = modules::DEFAULT.into_iter().chain(options.modules.iter().map(String::as_str));
    let resolved = Modules::open(&kernel.modules(), &kernel.release)?.resolve(wanted)?;
    let mut names = Vec::new();
    for module in resolved {
        tree.put(&format!("lib/modules/{}/{}.ko", kernel.release, module.name), Entry::File(module.image));
        names.push(module.name);
    }
    let list = names.iter().map(|name| format!("{name}.ko\n")).collect::<String>();
    tree.put(&format!("lib/modules/{}/minivmm.load", kernel.release), Entry::File(list.into_bytes()));
    for program in &options.programs {
        programs::add(&mut tree, program)?;
    }
    Ok((tree, names))
}
