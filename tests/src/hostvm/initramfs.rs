//! The host VM's initramfs: busybox, this binary as the agent, and the modules that reach the outer root.

use super::Error;
use super::kernel::Kernel;
use images::cpio;
use images::modules::Modules;
use images::tree::{Entry, Tree};
use std::fs;
use std::path::Path;

/// The modules to mount the outer root and to talk to the outer machine; their dependencies come along.
const MODULES: [&str; 5] = ["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"];
const INIT: &str = include_str!("init.sh");

/// Writes an initramfs for `kernel` to `archive`.
///
/// # Errors
/// If a module or a program is missing, or nothing can be written.
pub fn build(kernel: &Kernel, archive: &Path) -> Result<(), Error> {
    let mut tree = Tree::default();
    for name in ["dev", "proc", "sys", "newroot"] {
        tree.put(name, Entry::Directory);
    }
    tree.put("init", Entry::Program(INIT.as_bytes().to_vec()));
    tree.put("bin/busybox", Entry::Program(read(Path::new("/bin/busybox"))?));
    tree.put("bin/agent", Entry::Program(read(Path::new("/proc/self/exe"))?));
    let mut order = String::new();
    for module in Modules::open(&kernel.modules, &kernel.version)?.resolve(MODULES)? {
        order.push_str(&module.name);
        order.push('\n');
        tree.put(&format!("modules/{}.ko", module.name), Entry::File(module.image));
    }
    tree.put("modules/order", Entry::File(order.into_bytes()));
    fs::write(archive, cpio::archive(&tree)?).map_err(|source| Error::File {
        action: "Writing",
        path: archive.to_path_buf(),
        source,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::File { action: "Reading", path: path.to_path_buf(), source })
}
