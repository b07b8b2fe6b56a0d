//! The root file system that initramfs and disk share: busybox with a link per applet, the agent as init, a few files
//! in `/etc`. Everything that changes at run time lies on tmpfs, so it works read-only too.

use crate::error::Error;
use crate::tree::{Entry, Tree};
use crate::{elf, tools};
use std::fs;
use std::path::Path;

/// Directories that the agent mounts on, or that programs expect.
const DIRECTORIES: [&str; 10] = ["bin", "dev", "etc", "mnt", "newroot", "proc", "root", "run", "sys", "tmp"];

/// Small text files, by path.
const TEXTS: [(&str, &str); 6] = [
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/hostname", "minivmm\n"),
    ("etc/profile", include_str!("../root/profile")),
    ("etc/services", include_str!("../root/services")),
];

/// Applets that busybox offers and this root leaves out: its init and linuxrc would shadow ours.
const NOT_LINKED: [&str; 3] = ["sbin/init", "linuxrc", "bin/busybox"];

/// Builds the tree with this agent as `/sbin/init`.
///
/// # Errors
/// [`Error::NoAgent`], [`Error::NotStatic`], [`Error::MissingTool`].
pub fn tree(agent: &Path) -> Result<Tree, Error> {
    let mut tree = Tree::default();
    for name in DIRECTORIES {
        tree.put(name, Entry::Directory);
    }
    for (path, text) in TEXTS {
        tree.put(path, Entry::File(text.as_bytes().to_vec()));
    }
    tree.put("etc/udhcpc/default.script", Entry::Program(include_bytes!("../root/udhcpc").to_vec()));
    tree.put("etc/resolv.conf", Entry::Symlink("/run/resolv.conf".to_owned()));
    tree.put("etc/mtab", Entry::Symlink("/proc/mounts".to_owned()));
    tree.put("var/run", Entry::Symlink("/run".to_owned()));
    tree.put("var/tmp", Entry::Symlink("/tmp".to_owned()));

    let busybox = tools::find("busybox")?;
    tree.put("bin/busybox", Entry::Program(static_program(&busybox, ": apt-get install busybox-static")?));
    let applets = tools::output(tools::tool("busybox")?.arg("--list-full"))?;
    for path in String::from_utf8_lossy(&applets).lines().filter(|path| !NOT_LINKED.contains(path)) {
        tree.put(path, Entry::Symlink("/bin/busybox".to_owned()));
    }

    if !agent.is_file() {
        return Err(Error::NoAgent { path: agent.to_owned() });
    }
    tree.put("sbin/init", Entry::Program(static_program(agent, "")?));
    Ok(tree)
}

/// The version of busybox, as it prints it.
///
/// # Errors
/// It cannot be run.
pub fn busybox_version() -> Result<String, Error> {
    let banner = tools::output(&mut tools::tool("busybox")?)?;
    let banner = String::from_utf8_lossy(&banner);
    let first = banner.lines().next().unwrap_or_default();
    Ok(first.trim_start_matches("BusyBox ").split(" multi-call").next().unwrap_or(first).to_owned())
}

fn static_program(path: &Path, hint: &'static str) -> Result<Vec<u8>, Error> {
    let image = fs::read(path).map_err(Error::file("read", path))?;
    if elf::is_static(&image) { Ok(image) } else { Err(Error::NotStatic { path: path.to_owned(), hint }) }
}
