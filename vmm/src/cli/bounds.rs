//! Limits of one machine, checked before anything is opened or made.

use super::ConsoleSpec;
use super::settings::Settings;
use devices::pci::bdf::Bdf;
use std::fs;
use std::path::{Path, PathBuf};

/// Slots of the PCI bus beside that of the host bridge.
const SLOTS: usize = Bdf::DEVICES as usize - 1;

/// Slots of devices that every machine has: the random number generator.
const OWN_SLOTS: usize = 1;

/// Settings that cannot be those of one machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum OutOfBounds {
    /// More devices than a machine has slots for.
    #[error(
        "{cards} --net and {disks} --disk do not fit into one machine, which has room for {} of both",
        SLOTS - OWN_SLOTS
    )]
    Devices {
        /// Cards.
        cards: usize,
        /// Disks.
        disks: usize,
    },
    /// One file that would be overwritten by two, or is read and overwritten.
    #[error("{} is both {one} and {other}, and would be overwritten", path.display())]
    Overwritten {
        /// The file.
        path: PathBuf,
        /// One use.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
}

impl OutOfBounds {
    /// The hint on what the user can do.
    pub(super) fn hint(&self) -> String {
        match self {
            Self::Devices { cards, disks } => {
                let excess = cards + disks + OWN_SLOTS - SLOTS;
                format!("Leave {excess} of them out; one disk can have many partitions")
            }
            Self::Overwritten { .. } => "Give each a file of its own".to_owned(),
        }
    }
}

/// Checks that a machine can be had with these settings, whatever the host.
///
/// # Errors
/// If there are more devices than a machine has slots for, or a file is used twice in a way that destroys it.
pub(super) fn check(settings: &Settings) -> Result<(), OutOfBounds> {
    check_counts(settings.net.len(), settings.disk.len())?;
    let named = |path: &Option<PathBuf>, use_text| path.as_deref().map(|path| File::new(path, use_text));
    let console = match &settings.console {
        ConsoleSpec::File(path) => Some(File::new(path, "--console")),
        _ => None,
    };
    let captures = settings.net.iter().filter_map(|card| named(&card.card().capture.capture, "capture="));
    let mut seen: Vec<File> = settings.disk.iter().map(|disk| File::new(&disk.path, "--disk")).collect();
    seen.extend(named(&settings.kernel, "--kernel"));
    seen.extend(named(&settings.initrd, "--initrd"));
    for output in console.into_iter().chain(captures) {
        if let Some(other) = seen.iter().find(|other| other.path == output.path) {
            return Err(OutOfBounds::Overwritten { path: output.path, one: other.use_text, other: output.use_text });
        }
        // Any number of writers can share a terminal or /dev/null.
        let is_shared = fs::metadata(&output.path).is_ok_and(|metadata| !metadata.is_file());
        seen.extend(Some(output).filter(|_| !is_shared));
    }
    Ok(())
}

/// Counts the devices of a machine.
///
/// # Errors
/// If there are more than a machine has slots for.
pub(super) fn check_counts(cards: usize, disks: usize) -> Result<(), OutOfBounds> {
    if cards + disks + OWN_SLOTS > SLOTS { Err(OutOfBounds::Devices { cards, disks }) } else { Ok(()) }
}

/// A file that the settings name.
struct File {
    /// Without links, if it is there.
    path: PathBuf,
    use_text: &'static str,
}

impl File {
    fn new(path: &Path, use_text: &'static str) -> Self {
        Self { path: fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()), use_text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirty_devices_fit_and_one_more_is_refused_with_the_excess() {
        assert_eq!(check_counts(15, 15), Ok(()));
        assert_eq!(check_counts(0, 30), Ok(()));
        let refused = check_counts(1, 31).unwrap_err();
        assert!(refused.to_string().starts_with("1 --net and 31 --disk do not fit"), "{refused}");
        assert!(refused.hint().starts_with("Leave 2 of them out"), "{}", refused.hint());
    }

    #[test]
    fn file_that_would_be_overwritten_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path();
        let disk = || format!("path={}", path.display()).parse().unwrap();
        let capture = |path: &Path| format!("host,capture={}", path.display()).parse().unwrap();
        let uses = |settings: &Settings| match check(settings) {
            Err(OutOfBounds::Overwritten { one, other, .. }) => Some((one, other)),
            _ => None,
        };
        let console = ConsoleSpec::File(path.to_owned());
        let both = Settings { console: console.clone(), net: vec![capture(path)], ..Settings::default() };
        let disk_and_console = Settings { console: console.clone(), disk: vec![disk()], ..Settings::default() };
        let twice = Settings { net: vec![capture(path), capture(path)], ..Settings::default() };
        let kernel = Settings { console, kernel: Some(path.to_owned()), ..Settings::default() };
        let null = Path::new("/dev/null");
        let nowhere = Settings { net: vec![capture(null), capture(null)], ..Settings::default() };

        assert_eq!(uses(&both), Some(("--console", "capture=")));
        assert_eq!(uses(&disk_and_console), Some(("--disk", "--console")));
        assert_eq!(uses(&twice), Some(("capture=", "capture=")));
        assert_eq!(uses(&kernel), Some(("--kernel", "--console")));
        assert_eq!(uses(&nowhere), None);
    }
}
