//! Where guests are kept: the on-disk contract between `images`, which writes, and `minivmm`, which looks (see the
//! crate documentation). Only paths, no files.

use crate::error::Error;
use crate::kernel::Series;
use std::env;
use std::path::{Path, PathBuf};

/// `$XDG_DATA_HOME/minivmm`, else `~/.local/share/minivmm`.
///
/// # Errors
/// [`Error::NoHome`].
pub fn data_dir() -> Result<PathBuf, Error> {
    xdg("XDG_DATA_HOME", ".local/share").ok_or(Error::NoHome)
}

/// `$XDG_CACHE_HOME/minivmm`, else `~/.cache/minivmm`, else `cache` beside the guests: downloaded kernels, which can be
/// deleted at any time.
pub fn cache_dir(out: &Path) -> PathBuf {
    xdg("XDG_CACHE_HOME", ".cache").unwrap_or_else(|| out.join("cache"))
}

/// The guest's directory: `guest` for the default kernel, `guest-6.1` for that one, so that the default stays what it
/// is.
pub fn guest_dir(out: &Path, series: Series) -> PathBuf {
    match series {
        Series::V6_12 => out.join("guest"),
        Series::V6_1 => out.join(format!("guest-{}", series.name())),
    }
}

fn xdg(variable: &'static str, below_home: &str) -> Option<PathBuf> {
    // The XDG base directory specification has relative paths ignored.
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute(variable).or_else(|| absolute("HOME").map(|home| home.join(below_home))).map(|dir| dir.join("minivmm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_guest_has_the_plain_name() {
        assert_eq!(guest_dir(Path::new("/d"), Series::V6_12), Path::new("/d/guest"));
        assert_eq!(guest_dir(Path::new("/d"), Series::V6_1), Path::new("/d/guest-6.1"));
    }
}
