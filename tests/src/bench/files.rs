//! The files of a benchmark with Linux guests: provided here, handed to this program where Linux boots, which measures.

use super::run_where_linux_boots;
use crate::workspace;
use clap::Args;
use std::error::Error;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// The program and the guest to measure, and the result's place.
#[derive(Debug, Clone, Args)]
pub struct Files {
    /// The program under test
    #[arg(long)]
    pub minivmm: PathBuf,
    /// The guest's kernel
    #[arg(long)]
    pub kernel: PathBuf,
    /// Its initramfs
    #[arg(long)]
    pub initramfs: PathBuf,
    /// Where the result goes
    #[arg(long)]
    pub json: PathBuf,
}

/// Builds the files, and has this program measure NAME with them and with `words` where Linux boots. The result
/// goes to `json`, or to `bench/NAME.json` in cargo's target folder.
///
/// # Errors
/// If something does not build, the host VM does not come up, or the result cannot be copied.
pub fn measure(
    name: &str,
    words: impl IntoIterator<Item = OsString>,
    json: Option<&PathBuf>,
) -> Result<ExitCode, Box<dyn Error>> {
    let target = workspace::target_folder();
    let (minivmm, guest) = workspace::provide_bench_guest()?;
    let fresh = target.join(format!("hostvm/{name}.json"));
    let files =
        [("--minivmm", &minivmm), ("--kernel", &guest.kernel), ("--initramfs", &guest.initramfs), ("--json", &fresh)];
    let mut all: Vec<OsString> = vec![format!("bench-{name}").into()];
    all.extend(files.iter().flat_map(|(flag, path)| [flag.into(), path.into()]));
    all.extend(words);
    let json = json.cloned().unwrap_or_else(|| target.join(format!("bench/{name}.json")));
    run_where_linux_boots(&all, &fresh, &json)
}

/// The words of an optional flag with a path.
pub fn flag(name: &str, path: Option<&PathBuf>) -> Vec<OsString> {
    path.map(|path| vec![name.into(), path.into()]).unwrap_or_default()
}
