//! A program's own network: re-executes the running command line inside namespaces.
//!
//! Changes to interfaces inside never meet those of the machine, and all of it goes when the program ends: the network
//! namespace takes interfaces along, the process namespace ends what was left running, and files in /dev/shm and
//! /run/minivmm are its own.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Set inside, so that the second start goes on instead of starting a third.
const MARK: &str = "MINIVMM_TESTS_ISOLATED";

/// Why a network of our own cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `unshare` is missing or was refused.
    #[error("No namespaces can be made here (unshare: {reason})")]
    Refused {
        /// The output of unshare.
        reason: String,
    },
    /// The program could not be started again.
    #[error("The program could not be started again in its namespaces")]
    Exec(#[source] std::io::Error),
}

/// Makes sure that this process has network, mount and process namespaces of its own, with /proc and /sys to match.
/// Call first thing in `main`, before there is a thread: outside the namespaces it does not return but starts the
/// program anew.
///
/// # Errors
/// If namespaces are refused; then nothing has changed.
pub fn isolate() -> Result<(), Error> {
    if std::env::var_os(MARK).is_some() {
        return Ok(());
    }
    let attempt = unshare().arg("true").stdin(Stdio::null()).output();
    let reason = match attempt {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(reason) = reason {
        return Err(Error::Refused { reason });
    }
    let program: OsString = std::env::current_exe().map_err(Error::Exec)?.into();
    let enter =
        "mount -t proc proc /proc && mount -t sysfs sysfs /sys && mount -t tmpfs -o size=80% scratch /dev/shm &&
                 mkdir -p /run/minivmm && mount -t tmpfs -o mode=755 names /run/minivmm && \
                 ip link set lo up && exec \"$@\"";
    let error = unshare()
        .args(["sh", "-c", enter, "isolated"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(MARK, "1")
        .exec();
    Err(Error::Exec(error))
}

fn unshare() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--pid", "--fork", "--kill-child"]);
    if !nix::unistd::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command
}
