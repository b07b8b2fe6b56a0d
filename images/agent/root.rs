//! The move from the initramfs to a root file system on a disk. On success the process becomes that system's init.

use crate::cmdline::RootMount;
use crate::console::say;
use nix::mount::{MsFlags, mount};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

const TARGET: &str = "/newroot";
/// How long a disk may take to appear. Those of minivmm are there as soon as their driver is.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks; there is no descriptor to wait on that covers `UUID=` as well.
const INTERVAL: Duration = Duration::from_millis(20);

/// Mounts the root and runs its init in place of this process. Returns only if that failed, which it has then said.
pub(crate) fn switch(root: &RootMount) {
    let Some(device) = find(&root.device) else {
        say!("Cannot find the root device {} within {} s", root.device, TIMEOUT.as_secs());
        return;
    };
    let mut command = busybox("mount");
    if let Some(fstype) = &root.fstype {
        command.args(["-t", fstype]);
    }
    match command.args(["-o", &root.options, &device, TARGET]).status() {
        Ok(status) if status.success() => {}
        Ok(_) => return say!("Cannot mount {device} as the root"),
        Err(error) => return say!("Cannot run mount for {device}: {error}"),
    }
    for place in ["/dev", "/proc", "/sys", "/run"] {
        let target = format!("{TARGET}{place}");
        if let Err(error) = mount(Some(place), target.as_str(), None::<&str>, MsFlags::MS_MOVE, None::<&str>) {
            say!("Cannot move {place} to the root {device}: {error}");
        }
    }
    let error = busybox("switch_root").args([TARGET, &root.init]).exec();
    say!("Cannot switch to the root {device}: {error}");
}

/// Waits for a device path, or for one with the tag (`UUID=` and so on).
fn find(device: &str) -> Option<String> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let path = if device.contains('=') { by_tag(device) } else { Some(device.to_owned()) };
        if let Some(path) = path.filter(|path| Path::new(path).exists()) {
            return Some(path);
        }
        if Instant::now() > deadline {
            return None;
        }
        thread::sleep(INTERVAL);
    }
}

fn by_tag(tag: &str) -> Option<String> {
    let output = busybox("findfs").arg(tag).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

fn busybox(applet: &str) -> Command {
    let mut command = Command::new("/bin/busybox");
    command.arg(applet);
    command
}
