//! The host VM's kernel: Debian's own package, unpacked into a cache and installed nowhere.

use super::Error;
use crate::workspace::target_folder;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The series of the host's kernel. Not the cloud flavour: it has no 9p.
const SERIES: &str = "6.12";

/// An unpacked kernel package.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The output of `uname -r`.
    pub version: String,
    /// The bzImage.
    pub image: PathBuf,
    /// The module tree, with `modules.dep`, to be found at `/lib/modules/VERSION`.
    pub modules: PathBuf,
}

impl Kernel {
    /// The newest kernel in the cache; with an empty cache, the newest that apt offers.
    ///
    /// # Errors
    /// If nothing is cached and the package cannot be downloaded or unpacked.
    pub fn provide() -> Result<Self, Error> {
        let cache = images::place::cache_dir(&target_folder()).join("host-kernel");
        create(&cache)?;
        // Two host VMs may start at once on an empty cache.
        let lock_path = cache.join("lock");
        let lock = File::create(&lock_path)
            .and_then(|file| file.lock().map(|()| file))
            .map_err(|source| Error::File { action: "Locking", path: lock_path, source })?;
        let kernel = match Self::cached(&cache)? {
            Some(kernel) => kernel,
            None => Self::download(&cache)?,
        };
        drop(lock);
        Ok(kernel)
    }

    fn cached(cache: &Path) -> Result<Option<Self>, Error> {
        let unreadable = |source| Error::File { action: "Reading", path: cache.to_path_buf(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(cache).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            if let Some(version) = entry.file_name().to_str().and_then(|name| name.strip_prefix("linux-")) {
                found.push(version.to_owned());
            }
        }
        found.sort_by_key(|version| numbers(version));
        Ok(found.pop().map(|version| Self::at(&cache.join(format!("linux-{version}")), &version)))
    }

    fn at(folder: &Path, version: &str) -> Self {
        Self {
            version: version.to_owned(),
            image: folder.join("boot").join(format!("vmlinuz-{version}")),
            modules: folder.join("lib/modules").join(version),
        }
    }

    fn download(cache: &Path) -> Result<Self, Error> {
        let package = newest_package()?;
        let version = package.trim_start_matches("linux-image-").to_owned();
        eprintln!("Fetching the host VM's kernel, package {package}, into {}", cache.display());
        let work = tempfile::tempdir_in(cache).map_err(|source| Error::File {
            action: "Writing to",
            path: cache.to_path_buf(),
            source,
        })?;
        run(Command::new("apt-get").args(["download", "-qq", &package]).current_dir(work.path()))?;
        let archive = fs::read_dir(work.path())
            .ok()
            .and_then(|mut entries| entries.next())
            .and_then(Result::ok)
            .map(|entry| entry.path())
            .ok_or_else(|| Error::NoKernelPackage { pattern: package.clone() })?;
        let tree = work.path().join("tree");
        run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&tree))?;
        run(Command::new("depmod").arg("-b").arg(&tree).arg(&version))?;
        let place = cache.join(format!("linux-{version}"));
        fs::rename(&tree, &place).map_err(|source| Error::File { action: "Moving to", path: place.clone(), source })?;
        Ok(Self::at(&place, &version))
    }
}

/// Creates a folder with its parents.
///
/// # Errors
/// [`Error::File`].
pub fn create(folder: &Path) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(|source| Error::File { action: "Creating", path: folder.to_path_buf(), source })
}

/// Runs a program of the outer machine to its end and returns its standard output.
///
/// # Errors
/// If it cannot be started or fails.
pub fn run(command: &mut Command) -> Result<String, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|source| Error::Start { program: program.clone(), source })?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(Error::Failed { program, stderr: String::from_utf8_lossy(&output.stderr).trim_end().to_owned() })
    }
}

fn newest_package() -> Result<String, Error> {
    // The version directly followed by the architecture: no cloud, rt, dbg or unsigned flavour.
    let pattern = format!("^linux-image-{}\\.[0-9]+[^-]*(-[0-9]+)?-amd64$", SERIES.replace('.', "\\."));
    let search = || run(Command::new("apt-cache").args(["search", "--names-only", &pattern]));
    let mut names = search()?;
    if names.is_empty() {
        run(Command::new("apt-get").args(["update", "-qq"]))?;
        names = search()?;
    }
    let names = names.lines().filter_map(|line| line.split_whitespace().next());
    names.max_by_key(|name| numbers(name)).map(str::to_owned).ok_or(Error::NoKernelPackage { pattern })
}

/// The numbers in a version, for ordering.
fn numbers(version: &str) -> Vec<u32> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_order_by_number() {
        assert!(numbers("linux-image-6.12.117+deb12-amd64") > numbers("linux-image-6.12.48+deb12-amd64"));
    }
}
