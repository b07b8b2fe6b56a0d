//! The first inputs of a target, written by the target itself.

use std::path::PathBuf;

/// Names the folder for the seeds.
const VARIABLE: &str = "FUZZ_SEEDS";

/// Writes `seeds` into the folder that the environment variable `FUZZ_SEEDS` names and ends the process; does nothing
/// without it.
pub fn write_if_asked(target: &str, seeds: fn() -> Vec<Vec<u8>>) {
    let Some(folder) = std::env::var_os(VARIABLE).map(PathBuf::from) else { return };
    std::fs::create_dir_all(&folder).expect("the folder for seeds can be made");
    for (idx, seed) in seeds().iter().enumerate() {
        std::fs::write(folder.join(format!("{target}-{idx}")), seed).expect("a seed can be written");
    }
    std::process::exit(0);
}
