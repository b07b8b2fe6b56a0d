//! The host VM's initramfs: busybox, this binary as the agent, and the modules that reach the outer root.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Error;
use super::kernel::{Kernel, create, run};

/// What it takes to mount the outer root and to talk to the outer machine; their dependencies come along.
const MODULES: [&str; 5] = [
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
];
const INIT: &str = include_str!("init.sh");

/// Writes an initramfs for `kernel` to `archive`, using `folder` to lay it out in.
///
/// # Errors
/// If a module or a program is missing, or nothing can be written.
pub fn build(kernel: &Kernel, folder: &Path, archive: &Path) -> Result<(), Error> {
    let root = folder.join("initramfs");
    for name in ["bin", "modules", "dev", "proc", "sys", "newroot"] {
        create(&root.join(name))?;
    }
    let busybox = PathBuf::from("/bin/busybox");
    copy(&busybox, &root.join("bin/busybox"))?;
    let this_binary = PathBuf::from("/proc/self/exe");
    copy(&this_binary, &root.join("bin/agent"))?;
    write(&root.join("init"), INIT)?;
    executable(&root.join("init"))?;
    let mut order = String::new();
    for file in load_order(kernel)? {
        let name = unpack_module(&kernel.modules.join(&file), &root.join("modules"))?;
        order.push_str(&name);
        order.push('\n');
    }
    write(&root.join("modules/order"), &order)?;
    pack(&root, archive)
}

/// The files to load, each after what it depends on.
fn load_order(kernel: &Kernel) -> Result<Vec<String>, Error> {
    let dependencies = read(&kernel.modules.join("modules.dep"))?;
    let built_in = read(&kernel.modules.join("modules.builtin"))?;
    let lines: HashMap<String, &str> = dependencies
        .lines()
        .filter_map(|line| Some((module_name(line.split(':').next()?), line)))
        .collect();
    let mut order: Vec<String> = Vec::new();
    for module in MODULES {
        let Some(line) = lines.get(module) else {
            if built_in.lines().any(|line| module_name(line) == module) {
                continue;
            }
            return Err(Error::NoModule {
                version: kernel.version.clone(),
                module: module.to_owned(),
            });
        };
        // modules.dep(5): a file, a colon, then what it needs, the last one to be loaded first.
        for file in line.split([':', ' ']).rev().filter(|file| !file.is_empty()) {
            if !order.iter().any(|known| known == file) {
                order.push(file.to_owned());
            }
        }
    }
    Ok(order)
}

/// `kernel/fs/9p/9p.ko.xz` is the module `9p`; the kernel takes `-` and `_` for the same.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// Puts a module into `folder`, decompressed because busybox's insmod may not know the compression.
fn unpack_module(from: &Path, folder: &Path) -> Result<String, Error> {
    let name = format!("{}.ko", module_name(&from.to_string_lossy()));
    let to = folder.join(&name);
    let decompressor = match from.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return copy(from, &to).map(|()| name),
    };
    let file = File::create(&to).map_err(|source| Error::File {
        action: "Writing",
        path: to.clone(),
        source,
    })?;
    let mut command = Command::new(decompressor);
    command
        .args(["-q", "-d", "-c"])
        .arg(from)
        .stdout(Stdio::from(file));
    let status = command.status().map_err(|source| Error::Start {
        program: decompressor.to_owned(),
        source,
    })?;
    if status.success() {
        Ok(name)
    } else {
        Err(Error::Failed {
            program: decompressor.to_owned(),
            stderr: from.display().to_string(),
        })
    }
}

fn pack(root: &Path, archive: &Path) -> Result<(), Error> {
    run(Command::new("sh")
        .args(["-c", "set -e; find . | cpio --quiet -o -H newc > \"$0\""])
        .arg(archive)
        .current_dir(root))
    .map(drop)
}

fn executable(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(|source| Error::File {
        action: "Setting the mode of",
        path: path.to_path_buf(),
        source,
    })
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    fs::copy(from, to).map(drop).map_err(|source| Error::File {
        action: "Copying",
        path: from.to_path_buf(),
        source,
    })
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(|source| Error::File {
        action: "Writing",
        path: path.to_path_buf(),
        source,
    })
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::File {
        action: "Reading",
        path: path.to_path_buf(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_name_ignores_folder_compression_and_dashes() {
        assert_eq!(
            module_name("kernel/drivers/iommu/virtio-iommu.ko.xz"),
            "virtio_iommu"
        );
    }
}
