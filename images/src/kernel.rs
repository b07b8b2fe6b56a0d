//! Stock kernels from the distribution's own packages. Promises that a kernel is downloaded once and then served from a
//! cache directory without asking anyone; needs no root and installs nothing. Authenticity is apt's: it checks the
//! archive's signature chain before `apt-get download` ends well.
//!
//! The cache is `CACHE/kernels/RELEASE/{vmlinuz,config,package,modules/}`.

use crate::error::Error;
use crate::tools;
use std::fs;
use std::path::{Path, PathBuf};

const PREFIX: &str = "linux-image-";
const ARCHITECTURE: &str = "-amd64";

/// A series of kernels that a guest can be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Series {
    /// 6.12, the default.
    V6_12,
    /// 6.1, the oldest that is tested.
    V6_1,
}

impl Series {
    /// The version as people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V6_12 => "6.12",
            Self::V6_1 => "6.1",
        }
    }

    /// True for a release of this series, such as `6.1.0-56-cloud-amd64` of 6.1.
    fn has(self, release: &str) -> bool {
        release.strip_prefix(self.name()).is_some_and(|rest| rest.starts_with('.'))
    }
}

/// A way in which Debian builds a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// For virtual machines: drivers of paravirtual devices, few others.
    Cloud,
    /// For all machines.
    Generic,
    /// With PREEMPT_RT.
    Rt,
}

impl Flavour {
    /// Its name in Debian's packages; they have none for the generic one.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Generic => "generic",
            Self::Rt => "rt",
        }
    }

    /// The end of a release of this flavour.
    fn suffix(self) -> String {
        match self {
            Self::Generic => ARCHITECTURE.to_owned(),
            Self::Cloud | Self::Rt => format!("-{}{ARCHITECTURE}", self.name()),
        }
    }

    /// True for a release of this flavour, such as `6.1.0-56-amd64` of the generic one.
    fn has(self, release: &str) -> bool {
        let of = |flavour: Self| release.ends_with(&flavour.suffix());
        of(self) && (self != Self::Generic || ![Self::Cloud, Self::Rt].into_iter().any(of))
    }
}

/// The choice between a cached kernel and the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// The newest in the cache; asks apt only if there is none.
    Cached,
    /// The newest that apt knows.
    Newest,
}

/// A kernel in the cache.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// `uname -r`.
    pub release: String,
    /// Package name and version.
    pub package: String,
    dir: PathBuf,
}

impl Kernel {
    /// The bzImage.
    pub fn vmlinuz(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// Its configuration.
    pub fn config(&self) -> PathBuf {
        self.dir.join("config")
    }

    /// The directory that would be `/lib/modules/RELEASE`.
    pub fn modules(&self) -> PathBuf {
        self.dir.join("modules")
    }
}

/// The kernel of a series and flavour, downloaded if need be.
///
/// # Errors
/// [`Error::NoKernelPackage`] when neither cache nor apt has one, and what the tools give.
pub fn provide(series: Series, flavour: Flavour, freshness: Freshness, cache: &Path) -> Result<Kernel, Error> {
    let kernels = cache.join("kernels");
    fs::create_dir_all(&kernels).map_err(Error::file("create", &kernels))?;
    let cached = newest(series, flavour, cached_releases(&kernels)?);
    let release = match (freshness, cached) {
        (Freshness::Cached, Some(release)) => release,
        (_, cached) => newest(series, flavour, known_releases(series)?).or(cached).ok_or_else(|| {
            Error::NoKernelPackage { pattern: format!("{PREFIX}{}*{}", series.name(), flavour.suffix()) }
        })?,
    };
    let dir = kernels.join(&release);
    if !dir.exists() {
        download(&release, &kernels)?;
    }
    let path = dir.join("package");
    let package = fs::read_to_string(&path).map_err(Error::file("read", &path))?.trim().to_owned();
    Ok(Kernel { release, package, dir })
}

fn cached_releases(kernels: &Path) -> Result<Vec<String>, Error> {
    let entries = fs::read_dir(kernels).map_err(Error::file("list", kernels))?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

fn known_releases(series: Series) -> Result<Vec<String>, Error> {
    let prefix = format!("{PREFIX}{}", series.name());
    let names = tools::output(tools::tool("apt-cache")?.args(["pkgnames", &prefix]))?;
    let names = String::from_utf8_lossy(&names);
    Ok(names.lines().filter_map(|name| name.strip_prefix(PREFIX)).map(str::to_owned).collect())
}

/// The newest release of the series and flavour, by its numbers from left to right.
fn newest(series: Series, flavour: Flavour, releases: Vec<String>) -> Option<String> {
    let wanted = releases.into_iter().filter(|release| series.has(release) && flavour.has(release));
    wanted.max_by_key(|release| numbers(release))
}

fn numbers(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// Puts a release into the cache: all of it or nothing.
fn download(release: &str, kernels: &Path) -> Result<(), Error> {
    let work = tempfile::Builder::new().prefix(".download").tempdir_in(kernels);
    let work = work.map_err(Error::file("create a directory in", kernels))?;
    let package = format!("{PREFIX}{release}");
    // apt would otherwise warn that its own user cannot write here; the file is checked after the download either way.
    let unsandboxed = ["-o", "APT::Sandbox::User=root"];
    let mut apt = tools::tool("apt-get")?;
    tools::output(apt.current_dir(work.path()).arg("-q").args(unsandboxed).args(["download", &package]))?;
    let deb = find_in(work.path(), |name| name.ends_with(".deb"))
        .ok_or_else(|| Error::OddPackage { package: package.clone(), what: "file".to_owned() })?;

    let version = tools::output(tools::tool("dpkg-deb")?.arg("-f").arg(&deb).arg("Version"))?;
    let tree = work.path().join("tree");
    tools::output(tools::tool("dpkg-deb")?.arg("-x").arg(&deb).arg(&tree))?;

    let ready = work.path().join("ready");
    fs::create_dir(&ready).map_err(Error::file("create", &ready))?;
    let modules = [format!("lib/modules/{release}"), format!("usr/lib/modules/{release}")];
    let modules = modules.iter().find(|path| tree.join(path).is_dir());
    let modules = modules
        .ok_or_else(|| Error::OddPackage { package: package.clone(), what: format!("lib/modules/{release}") })?;
    let parts = [(format!("boot/vmlinuz-{release}"), "vmlinuz"), (format!("boot/config-{release}"), "config")];
    for (from, to) in parts.iter().map(|(from, to)| (from, *to)).chain([(modules, "modules")]) {
        let path = tree.join(from);
        if !path.exists() {
            return Err(Error::OddPackage { package, what: from.clone() });
        }
        fs::rename(&path, ready.join(to)).map_err(Error::file("move", &path))?;
    }
    let note = ready.join("package");
    let text = format!("{package} {}\n", String::from_utf8_lossy(&version).trim());
    fs::write(&note, text).map_err(Error::file("write", &note))?;

    let target = kernels.join(release);
    match fs::rename(&ready, &target) {
        // Someone else put the same release there meanwhile.
        Err(_) if target.join("package").exists() => Ok(()),
        result => result.map_err(Error::file("create", &target)),
    }
}

fn find_in(dir: &Path, wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).ok()?;
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(&wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn releases(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn newest_is_by_number_not_by_letter() {
        let known = releases(&["6.12.100+deb12-cloud-amd64", "6.12.9+deb12-cloud-amd64", "6.12.100+deb12-amd64"]);
        assert_eq!(newest(Series::V6_12, Flavour::Cloud, known).unwrap(), "6.12.100+deb12-cloud-amd64");
    }

    #[test]
    fn series_do_not_mix() {
        let known = releases(&["6.12.100+deb12-cloud-amd64", "6.1.0-56-cloud-amd64", "6.1.0-7-cloud-amd64"]);
        assert_eq!(newest(Series::V6_1, Flavour::Cloud, known).unwrap(), "6.1.0-56-cloud-amd64");
    }

    #[test]
    fn flavours_do_not_mix() {
        let known = ["6.1.0-57-rt-amd64", "6.1.0-57-cloud-amd64", "6.1.0-57-amd64", "6.1.0-58-amd64-dbg"];
        let newest = |flavour| newest(Series::V6_1, flavour, releases(&known)).unwrap();
        assert_eq!(newest(Flavour::Cloud), known[1]);
        assert_eq!(newest(Flavour::Generic), known[2]);
        assert_eq!(newest(Flavour::Rt), known[0]);
    }

    #[test]
    fn unsigned_and_debug_packages_do_not_count() {
        let known = releases(&["6.1.0-56-cloud-amd64-unsigned", "6.1.0-56-cloud-amd64-dbg"]);
        assert_eq!(newest(Series::V6_1, Flavour::Cloud, known), None);
    }

    #[test]
    fn cached_kernel_is_served_without_tools() {
        let cache = tempfile::tempdir().unwrap();
        let dir = cache.path().join("kernels/6.1.0-56-cloud-amd64");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("package"), "linux-image-6.1.0-56-cloud-amd64 6.1.192-2\n").unwrap();
        let kernel = provide(Series::V6_1, Flavour::Cloud, Freshness::Cached, cache.path()).unwrap();
        assert_eq!(kernel.release, "6.1.0-56-cloud-amd64");
        assert_eq!(kernel.vmlinuz(), dir.join("vmlinuz"));
    }
}
