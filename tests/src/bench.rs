//! Benchmarks: interleaved runs of minivmm and a peer, medians, a JSON result and a table.

pub mod card;
mod clock;
pub mod guest;
pub mod instructions;
pub mod many;
pub mod nat;
pub mod readme;
pub mod start;
pub mod usage;

use serde::Serialize;
use std::fs;
use std::io;
use std::path::Path;

/// Middle and spread of one measured figure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The smallest value.
    pub min: f64,
    /// The middle one.
    pub median: f64,
    /// The largest value.
    pub max: f64,
}

impl Spread {
    /// Of any number of values; all zero if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |idx: usize| values.get(idx).copied().unwrap_or(0.0);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { at(middle) } else { (at(middle.saturating_sub(1)) + at(middle)) / 2.0 };
        Self { min: at(0), median, max: values.last().copied().unwrap_or(0.0) }
    }
}

/// Writes a report as JSON.
///
/// # Errors
/// If the file cannot be written.
pub fn write_json(report: &impl Serialize, path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let text = serde_json::to_string_pretty(report).map_err(io::Error::other)?;
    fs::write(path, text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_or_the_mean_of_both_middles() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { min: 1.0, median: 2.0, max: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Spread::of([]).median, 0.0);
    }
}
