//! Creates macvtaps: links with a MAC address of their own on an interface of the host, whose queues are descriptors of
//! a character device (Linux drivers/net/macvtap.c, tap.c).
//!
//! The device's number is in sysfs below the link. Not every host has its file in /dev: the N of `/dev/tapN` is an
//! interface index, which other network namespaces use as well, and containers have no such file. So the number is
//! looked up by the link's name, which is random and cannot be mistaken for another namespace's, if need be in a new
//! sysfs mount, which shows the caller's namespace. Without a file of that number the device is made in a file system
//! that no other process sees.
//!
//! Unlike a tap, a macvtap does not go with its last descriptor. See [`crate::facts::claim`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use libc::dev_t;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, makedev, mknodat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::Serialize;

use crate::facts::claim;
use crate::identity::alias::TapAlias;
use crate::identity::mac::MacAddr;
use crate::kernel::link::index_of;
use crate::kernel::mount;
use crate::kernel::rtnl::Rtnl;
use crate::kernel::tun::{self, QueueMode};
use crate::spec::{IfName, MacvtapMode};
use crate::survey;

/// A macvtap to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Macvtap {
    /// Its name.
    pub tap: IfName,
    /// The interface that it is on.
    pub lower: IfName,
    /// The mode, which decides which other macvtaps it reaches.
    pub mode: MacvtapMode,
    /// Its address, which is the guest's.
    pub mac: MacAddr,
    /// Queue pairs.
    pub queues: u16,
    /// Its alias.
    pub alias: TapAlias,
}

/// Creates the link and returns its index.
pub(crate) async fn create(rtnl: &Rtnl, wanted: &Macvtap) -> io::Result<u32> {
    let lower = index_of(wanted.lower.as_str())?;
    rtnl.create_macvtap(wanted.tap.as_str(), lower, wanted.mode).await?;
    index_of(wanted.tap.as_str())
}

/// Removes a macvtap, if it is there. Its name is random, and claimed by the caller.
pub(crate) async fn remove(rtnl: &Rtnl, name: &IfName) -> io::Result<()> {
    match index_of(name.as_str()) {
        Ok(index) => rtnl.remove(index).await,
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes a macvtap of ours that no process claims. Returns true if it did.
pub(crate) async fn remove_if_left_behind(rtnl: &Rtnl, name: &str) -> io::Result<bool> {
    let links = survey::links(rtnl).await?;
    let claimed = claim::taken()?;
    match links.iter().find(|link| link.name == name && link.is_our_macvtap()) {
        Some(link) if !claimed.contains(name) => rtnl.remove(link.index).await.map(|()| true),
        _ => Ok(false),
    }
}

/// Opens the device of the macvtap `tap`, which has this interface index, once for each queue.
pub(crate) fn open_queues(tap: &IfName, index: u32, queues: u16) -> io::Result<Vec<File>> {
    let device = device_of(tap, index)?;
    let queues = open_device(device, tap, index, queues)?;
    for queue in &queues {
        tun::attach(queue, tap.as_str(), QueueMode::for_queues(queues.len().try_into().unwrap_or(u16::MAX)))?;
        tun::lift_send_limit(queue)?;
    }
    Ok(queues)
}

/// The number of its character device.
fn device_of(tap: &IfName, index: u32) -> io::Result<dev_t> {
    let path = format!("class/net/{tap}/tap{index}/dev");
    let text = match fs::read_to_string(Path::new("/sys").join(&path)) {
        // This mount shows another namespace, or there is none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let sysfs = mount::detached(c"sysfs")?;
            let file = openat(sysfs, path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
            let mut text = String::new();
            File::from(file).read_to_string(&mut text)?;
            text
        }
        result => result?,
    };
    let numbers =
        text.trim().split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    let (major, minor) = numbers.ok_or_else(|| io::Error::other("sysfs has no device number for it"))?;
    Ok(makedev(major, minor))
}

fn open_device(device: dev_t, tap: &IfName, index: u32, queues: u16) -> io::Result<Vec<File>> {
    let known = format!("/dev/tap{index}");
    if fs::metadata(&known).is_ok_and(|file| file.rdev() == device) {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        return (0..queues).map(|_| options.open(&known)).collect();
    }
    match mount::detached(c"tmpfs") {
        Ok(directory) => open_new_node(directory, "tap", device, queues),
        // Without the right to mount, a container can still have devices in /dev.
        Err(_) => open_new_node(File::open("/dev")?, &format!(".{tap}"), device, queues),
    }
}

/// Makes a file for the device, opens it and removes it.
fn open_new_node(directory: impl AsFd, name: &str, device: dev_t, queues: u16) -> io::Result<Vec<File>> {
    mknodat(&directory, name, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, device)?;
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let open = |_| Ok(File::from(openat(&directory, name, flags, Mode::empty())?));
    let queues = (0..queues).map(open).collect();
    unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir)?;
    queues
}
