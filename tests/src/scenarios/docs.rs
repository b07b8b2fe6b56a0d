//! The commands of README.md and docs/ that boot Linux do what the pages say.

use super::Scenario;
use crate::docs::{self, Place, Surroundings};
use crate::guest::script_parameter;
use crate::lan::sh;
use crate::stage::Stage;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

pub(super) const SCENARIOS: &[Scenario] =
    &[Scenario { name: "docs::commands_that_boot_linux_do_what_the_pages_say", run }];

/// Seconds that a block may take, in an emulated processor.
const SECONDS: u32 = 240;

fn run(stage: &Stage) {
    sh("ip link add br0 type bridge && ip addr add 192.0.2.1/24 dev br0 && ip link set br0 up");
    for (idx, page) in docs::pages().expect("the pages").iter().enumerate() {
        let surroundings = surroundings(stage, &stage.file(&format!("page{idx}")));
        let ran = docs::run(page, &surroundings).unwrap_or_else(|reason| panic!("{reason}"));
        if ran > 0 {
            println!("{}: {ran} blocks ran", page.name);
        }
    }
}

/// The default guest, and minivmm as a script that has a guest in the foreground power off once it is up.
fn surroundings(stage: &Stage, scratch: &Path) -> Surroundings {
    let [folder, programs, data] = ["here", "programs", "data"].map(|name| scratch.join(name));
    let guest = stage.default_guest();
    let guest_folder = data.join("minivmm/guest");
    for folder in [&folder, &programs, &guest_folder] {
        fs::create_dir_all(folder).expect("a folder");
    }
    let links = [
        (&guest.bzimage, guest_folder.join("vmlinuz")),
        (&guest.initramfs, guest_folder.join("initramfs")),
        (&guest.bzimage, folder.join("bzImage")),
    ];
    for (file, link) in links {
        symlink(file, link).expect("a link to a file of the guest");
    }
    let script = programs.join("minivmm");
    let text = format!(
        "#!/bin/sh\ncase \" $*\" in *' --kernel '*) set -- \"$@\" --initrd {} ;; esac\n\
         [ \"$(readlink /proc/self/fd/0)\" = /dev/null ] || set -- \"$@\" --cmdline '{} minivmm.dhcp=1'\n\
         exec {} \"$@\"\n",
        guest.initramfs.display(),
        script_parameter("echo up"),
        stage.minivmm().display()
    );
    fs::write(&script, text).expect("a script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("a program");
    Surroundings { place: Place::HostVm, folder, programs, data, seconds: SECONDS }
}
