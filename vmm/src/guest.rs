//! The guest to boot: the files that the user names, or the default guest that the `images` crate provides.

use crate::cli::Settings;
use crate::logger;
use crate::name::VmName;
use boot::{BadSystemInfo, BootSpec, Cmdline, Image, Smbios, SystemInfo};
use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The command that provides the default guest.
const PROVIDE: &str = "./run guest";

/// A kernel's parameters unless the user replaces them, beside [`REBOOT_PARAMETER`]: the serial port is the console,
/// and a panic reboots at once, so that it ends the run instead of hanging it.
const DEFAULT_CMDLINE: &str = "console=ttyS0 panic=-1";

/// Kernel parameters: reboot through the keyboard controller, and mark those after a panic. Linux before 5.1 knows no
/// `panic_` and takes the letter behind each comma for a way to reboot, the last of which counts.
pub(crate) const REBOOT_PARAMETER: &str = "reboot=panic_warm,k";

/// The guest for all users of the host.
const SYSTEM_GUEST: &str = "/usr/share/minivmm/guest";

/// The vendor and the product that the guest's SMBIOS tables name.
const PRODUCT: &str = "minivmm";

/// A guest that cannot be booted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No kernel was named and no default guest has been made.
    #[error("No kernel was given, and there is no default guest")]
    NoDefault,
    /// A kernel or initrd that cannot be opened.
    #[error("Cannot open {what} {}", path.display())]
    Open {
        /// The flag that names it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// A command line that is too long.
    #[error(transparent)]
    Cmdline(#[from] boot::Error),
    /// SMBIOS strings that do not fit.
    #[error(transparent)]
    Smbios(#[from] BadSystemInfo),
}

impl Error {
    /// Advice to the user.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::NoDefault => Some(format!("Make the default guest ({PROVIDE}), or name a kernel with --kernel")),
            Self::Open { what, source, .. } => match source.kind() {
                ErrorKind::NotFound => Some(format!("Check the path after --{what}")),
                ErrorKind::PermissionDenied => {
                    Some("Make it readable for this user; some distributions let only root read kernels".to_owned())
                }
                _ => None,
            },
            Self::Cmdline(err) => err.hint(),
            Self::Smbios(_) => Some("Give fewer or other texts after --smbios".to_owned()),
        }
    }
}

/// Opens everything that is to be booted in the VM called `name`.
///
/// # Errors
/// If a file is missing or cannot be opened, or the command line or the SMBIOS strings are too long.
pub(crate) fn open(cli: &Settings, name: &VmName) -> Result<BootSpec, Error> {
    let (cmdline, smbios) = (cmdline(cli)?, smbios(cli, name)?);
    if let Some(kernel) = &cli.kernel {
        let initrd = cli.initrd.as_deref().map(|path| image(path, "initrd")).transpose()?;
        return Ok(BootSpec { kernel: image(kernel, "kernel")?, initrd, cmdline, smbios });
    }
    let guest = find_default().ok_or(Error::NoDefault)?;
    logger::tell(&format!("minivmm: no --kernel: starting the default guest in {}", guest.display()));
    let initrd = cli.initrd.clone().unwrap_or_else(|| guest.join("initramfs"));
    let (kernel, initrd) = (image(&guest.join("vmlinuz"), "kernel")?, Some(image(&initrd, "initrd")?));
    Ok(BootSpec { kernel, initrd, cmdline, smbios })
}

fn smbios(cli: &Settings, name: &VmName) -> Result<Smbios, Error> {
    let mut info = SystemInfo {
        vendor: PRODUCT.to_owned(),
        product: PRODUCT.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uuid: name.uuid(),
        ..Default::default()
    };
    cli.smbios.iter().for_each(|spec| spec.apply(&mut info));
    Ok(Smbios::new(&info)?)
}

fn cmdline(cli: &Settings) -> Result<Cmdline, Error> {
    let mut cmdline = Cmdline::new();
    match &cli.cmdline_replace {
        Some(text) => cmdline.append(text)?,
        None => {
            cmdline.append(DEFAULT_CMDLINE)?;
            cmdline.append(REBOOT_PARAMETER)?;
        }
    }
    for part in &cli.cmdline {
        cmdline.append(part)?;
    }
    Ok(cmdline)
}

fn image(path: &Path, what: &'static str) -> Result<Image, Error> {
    match File::open(path) {
        Ok(file) => Ok(Image { file, path: path.to_owned() }),
        Err(source) => Err(Error::Open { what, path: path.to_owned(), source }),
    }
}

/// The first directory that has a default guest: the user's, then the system's.
fn find_default() -> Option<PathBuf> {
    let user = data_home(env::var_os("XDG_DATA_HOME"), env::var_os("HOME")).map(|data| data.join("minivmm/guest"));
    user.into_iter().chain([PathBuf::from(SYSTEM_GUEST)]).find(|guest| guest.join("vmlinuz").exists())
}

/// The XDG base directory specification: `$XDG_DATA_HOME` if it is an absolute path, or `$HOME/.local/share`.
fn data_home(xdg_data_home: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    xdg_data_home
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| home.map(|home| PathBuf::from(home).join(".local/share")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_home_is_absolute_or_below_home() {
        let path = |text: &str| Some(OsString::from(text));
        assert_eq!(data_home(path("/data"), path("/home/u")), Some(PathBuf::from("/data")));
        assert_eq!(data_home(path("data"), path("/home/u")), Some(PathBuf::from("/home/u/.local/share")));
        assert_eq!(data_home(None, None), None);
    }
}
