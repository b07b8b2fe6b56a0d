//! Loading the kernel modules that the image was made with, in the order of its list. An image without a list has
//! nothing to load, which is how a root disk comes.

use crate::console::say;
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::sys::utsname::uname;
use std::ffi::CStr;
use std::fs::{self, File};
use std::path::Path;

/// No parameters.
const NONE: &CStr = c"";

/// Loads every module listed for the running kernel.
pub(crate) fn load_all() {
    let release = uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    let all = Path::new("/lib/modules");
    let dir = all.join(&release);
    let Ok(list) = fs::read_to_string(dir.join("minivmm.load")) else {
        if all.is_dir() {
            say!("This image has no modules for kernel {release}, expect no disk and no network");
        }
        return;
    };
    for name in list.lines() {
        let loaded =
            File::open(dir.join(name)).and_then(|file| match finit_module(&file, NONE, ModuleInitFlags::empty()) {
                Err(Errno::EEXIST) => Ok(()),
                result => Ok(result?),
            });
        if let Err(error) = loaded {
            say!("Cannot load the module {name}: {error}");
        }
    }
}
