//! The figures of README.md and docs/benchmarks.md: runs other benchmarks and puts their medians between the markers of
//! these pages, with the machine and the commit.
//!
//! A marker is `<!-- begin: bench NAME -->` with its `<!-- end: bench NAME -->`. What is between them is not for hands.

use crate::place::Place;
use crate::workspace;
use serde_json::Value;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The front page, and its section.
const FRONT: (&str, &str) = ("README.md", "readme");
/// The page with a section for each benchmark.
const BENCHMARKS: &str = "docs/benchmarks.md";

/// A benchmark that has a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Section {
    /// `bench start`.
    Start,
    /// `bench card`.
    Card,
    /// `bench nat`.
    Nat,
}

/// Rows of the card's table: direction, frame, and what they say.
const CARD_ROWS: [(&str, &str, &str); 7] = [
    ("tx", "64", "sent, 64 B datagrams of one flow"),
    ("tx", "64-alone", "sent, 64 B that cannot be joined"),
    ("tx", "1500", "sent, 1500 B datagrams of one flow"),
    ("tx", "64K-gso", "sent, 64 KiB TCP"),
    ("rx", "64", "received, 64 B"),
    ("rx", "1500", "received, 1500 B"),
    ("rx", "64K-gso", "received, 64 KiB TCP"),
];

/// Rows of the start's table: the contestant's name in the report, and what they say.
const START_ROWS: [(&str, &str); 4] = [
    ("print a byte", "a program that prints a byte"),
    ("minivmm", "minivmm, which also makes its tap and attaches it"),
    ("QEMU microvm", "QEMU microvm"),
    ("QEMU microvm -", "QEMU microvm without option ROMs, PIT, PIC, RTC"),
];

/// Why the pages stay as they are.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A benchmark could not be run.
    #[error("Cannot run bench {name}")]
    Run {
        /// Its name.
        name: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A benchmark failed; it has said why.
    #[error("`bench {name}` failed")]
    Failed {
        /// Its name.
        name: &'static str,
    },
    /// A file cannot be read or written.
    #[error("Cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A result is not what its benchmark writes.
    #[error("The result of bench {name} has no {figure}")]
    Figure {
        /// The benchmark.
        name: &'static str,
        /// The missing figure.
        figure: String,
    },
    /// A page has no such section.
    #[error("{page} has no section {section:?}: it is between <!-- begin: bench {section} --> and <!-- end: ... -->")]
    Marker {
        /// The page.
        page: &'static str,
        /// The section.
        section: &'static str,
    },
}

/// Runs these benchmarks, each with `runs` runs if that is given, and rewrites their sections. Returns what it wrote.
///
/// # Errors
/// A benchmark fails, or a page has no such section.
pub fn run(sections: &[Section], runs: Option<u32>) -> Result<String, Error> {
    let mut results = Vec::new();
    for section in sections {
        results.push((*section, measure(*section, runs)?));
    }
    let note = note();
    let mut written = String::new();
    for (page, section, text) in texts(&results)? {
        let text = format!("{text}\n{note}\n");
        let path = workspace::root().join(page);
        let file = |source| Error::File { path: path.clone(), source };
        let old = fs::read_to_string(&path).map_err(file)?;
        let new = replaced(&old, section, &text).ok_or(Error::Marker { page, section })?;
        fs::write(&path, new).map_err(file)?;
        written.push_str(&format!("{page}, {section}:\n{text}\n"));
    }
    Ok(written)
}

/// Runs one benchmark in a process of its own, which makes its namespaces, and reads its result.
fn measure(section: Section, runs: Option<u32>) -> Result<Value, Error> {
    let name = section.name();
    let result = workspace::target_folder().join(format!("bench/{name}.json"));
    let program = std::env::current_exe().map_err(|source| Error::Run { name, source })?;
    let mut command = Command::new(program);
    command.args(["bench", name, "--json"]).arg(&result);
    if let (Some(runs), Section::Start | Section::Card) = (runs, section) {
        command.args(["--runs", &runs.to_string()]);
    }
    let status = command.status().map_err(|source| Error::Run { name, source })?;
    if !status.success() {
        return Err(Error::Failed { name });
    }
    let text = fs::read(&result).map_err(|source| Error::File { path: result.clone(), source })?;
    serde_json::from_slice(&text).map_err(|error| Error::File { path: result, source: error.into() })
}

/// Page, section and text of everything that these results change.
fn texts(results: &[(Section, Value)]) -> Result<Vec<(&'static str, &'static str, String)>, Error> {
    let mut texts = Vec::new();
    for (section, result) in results {
        let text = match section {
            Section::Start => start(result)?,
            Section::Card => card(result)?,
            Section::Nat => nat(result)?,
        };
        texts.push((BENCHMARKS, section.name(), text));
    }
    let of = |section: Section| results.iter().find(|(other, _)| *other == section).map(|(_, result)| result);
    if let Some(start) = of(Section::Start) {
        texts.push((FRONT.0, FRONT.1, front(start, of(Section::Card))?));
    }
    Ok(texts)
}

/// The front page's table: minivmm beside QEMU. The card's rows are there if it was measured with the start.
fn front(start: &Value, card: Option<&Value>) -> Result<String, Error> {
    let [ours, theirs] = [contestant(start, "minivmm")?, contestant(start, "QEMU microvm")?];
    let mut text = "| medians | minivmm | QEMU |\n|---|---|---|\n".to_owned();
    let first_byte = "exec to the guest's first byte, card on a bridge";
    let memory = "memory beyond the guest's";
    text.push_str(&format!("| {first_byte} | {} | {} (microvm) |\n", ms(ours)?, ms(theirs)?));
    text.push_str(&format!("| {memory} | {} | {} (microvm) |\n", mib(ours)?, mib(theirs)?));
    text.push_str(&format!("| program | {} | {} |\n", mb(ours)?, mb(theirs)?));
    if let Some(card) = card {
        for (direction, frame, says) in CARD_ROWS {
            let [ours, theirs] = ["minivmm", "QEMU"].map(|name| stream(card, direction, frame, name));
            text.push_str(&format!("| {says}, frames | {} | {} (q35) |\n", rate(ours?)?, rate(theirs?)?));
        }
    }
    Ok(text)
}

fn start(report: &Value) -> Result<String, Error> {
    let mut text = "| | exec to first byte | memory beyond the guest's | program |\n|---|---|---|---|\n".to_owned();
    for (name, says) in START_ROWS {
        let figures = contestant(report, name)?;
        let rest = match name {
            "print a byte" => "| ".to_owned(),
            _ => format!("{} | {}", mib(figures)?, mb(figures)?),
        };
        text.push_str(&format!("| {says} | {} | {rest} |\n", ms(figures)?));
    }
    Ok(text)
}

fn card(report: &Value) -> Result<String, Error> {
    let mut text = "| | minivmm | QEMU | plain loop |\n|---|---|---|---|\n".to_owned();
    for (direction, frame, says) in CARD_ROWS {
        text.push_str(&format!("| {says} |"));
        for name in ["minivmm", "QEMU", "plain"] {
            let figures = stream(report, direction, frame, name)?;
            let ns = number("card", figures, "cpu_ns_per_frame")?;
            text.push_str(&format!(" {}, {ns:.0} ns |", rate(figures)?));
        }
        text.push('\n');
    }
    let trip = |name: &str| {
        let trips = report["trips"].as_array().into_iter().flatten();
        let found = trips.into_iter().find(|trip| trip["contestant"] == name);
        number("card", found.unwrap_or(&Value::Null), "trip_us")
    };
    text.push_str(&format!("| there and back, 64 B | {:.1} us | {:.1} us | |\n", trip("minivmm")?, trip("QEMU")?));
    Ok(text)
}

fn nat(report: &Value) -> Result<String, Error> {
    let figure = |part: &str, name: &str| {
        let value = report[part][name].as_f64().or_else(|| report[part][name]["p50"].as_f64());
        value.ok_or_else(|| Error::Figure { name: "nat", figure: format!("{part}.{name}") })
    };
    Ok(format!(
        "| | |\n|---|---|\n\
         | round trip of a byte through a bridge | {:.1} us |\n\
         | the same through NAT | {:.1} us |\n\
         | connections open at the same time | {:.0} |\n\
         | of them failed to open, failed to carry a byte each way | {:.0}, {:.0} |\n\
         | time to open all | {:.1} s |\n",
        figure("trips", "bridge_us")?,
        figure("trips", "nat_us")?,
        figure("connections", "connections")?,
        figure("connections", "failed_to_open")?,
        figure("connections", "failed_to_carry")?,
        figure("connections", "seconds_to_open")?
    ))
}

fn contestant<'a>(report: &'a Value, name: &str) -> Result<&'a Value, Error> {
    let contestants = report["contestants"].as_array().into_iter().flatten();
    let mut found = contestants.filter(|figures| figures["name"] == name);
    found.next().ok_or_else(|| Error::Figure { name: "start", figure: name.to_owned() })
}

/// Figures of a card with one queue pair.
fn stream<'a>(report: &'a Value, direction: &str, frame: &str, name: &str) -> Result<&'a Value, Error> {
    let streams = report["streams"].as_array().into_iter().flatten();
    let mut found = streams.filter(|stream| {
        stream["direction"] == direction
            && stream["frame"] == frame
            && stream["pairs"] == 1
            && stream["contestant"] == name
    });
    found.next().ok_or_else(|| Error::Figure { name: "card", figure: format!("{direction}-{frame}-1 of {name}") })
}

/// The median of a spread.
fn number(name: &'static str, figures: &Value, figure: &str) -> Result<f64, Error> {
    figures[figure]["median"].as_f64().ok_or_else(|| Error::Figure { name, figure: figure.to_owned() })
}

fn ms(figures: &Value) -> Result<String, Error> {
    Ok(format!("{:.1} ms", number("start", figures, "first_byte_ms")?))
}

fn mib(figures: &Value) -> Result<String, Error> {
    Ok(format!("{:.1} MiB", number("start", figures, "pss_mib")?))
}

fn mb(figures: &Value) -> Result<String, Error> {
    let megabytes = figures["program_mb"].as_f64();
    let megabytes = megabytes.ok_or_else(|| Error::Figure { name: "start", figure: "program_mb".to_owned() })?;
    Ok(format!("{megabytes:.1} MB"))
}

fn rate(figures: &Value) -> Result<String, Error> {
    Ok(format!("{:.0}k/s", number("card", figures, "frames_per_s")? / 1e3))
}

/// `page` with another text in a section; `None` if it does not have one.
fn replaced(page: &str, section: &str, text: &str) -> Option<String> {
    let (before, rest) = page.split_once(&format!("<!-- begin: bench {section} -->\n"))?;
    let end = format!("<!-- end: bench {section} -->");
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}<!-- begin: bench {section} -->\n{text}{end}{after}"))
}

/// The machine and the commit, in a sentence.
fn note() -> String {
    let first_line = |path: &str, key: &str| {
        let text = fs::read_to_string(Path::new(path)).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(": ").map_or(line, |(_, value)| value).trim().to_owned()
    };
    let git = |words: &[&str]| {
        let output = Command::new("git").args(words).current_dir(workspace::root()).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    };
    let kvm = match Place::ask() {
        Place::Hardware { .. } => "hardware KVM",
        Place::EmulatedRing0 { .. } => "a KVM that emulates ring 0",
        Place::NoKvm { .. } => "no KVM",
    };
    // The pages themselves change with every run.
    let changed = git(&["status", "--porcelain", "--untracked-files=no", "--", ".", ":!*.md"]);
    let changes = if changed.is_empty() { "" } else { " with changes" };
    format!(
        "Measured at commit {}{changes}: {}, {} processors, Linux {}, {kvm}.",
        git(&["rev-parse", "--short", "HEAD"]),
        first_line("/proc/cpuinfo", "model name"),
        std::thread::available_parallelism().map_or(1, usize::from),
        first_line("/proc/sys/kernel/osrelease", "").split('.').take(2).collect::<Vec<_>>().join(".")
    )
}

impl Section {
    /// Its name: that of the benchmark.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Card => "card",
            Self::Nat => "nat",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn figures(name: &str, ms: f64) -> Value {
        json!({"name": name, "first_byte_ms": {"median": ms}, "pss_mib": {"median": 2.04}, "program_mb": 4.5})
    }

    fn report_of_start() -> Value {
        json!({"contestants": [figures("print a byte", 1.0), figures("minivmm", 4.44), figures("QEMU microvm", 58.0),
            figures("QEMU microvm -", 45.0)]})
    }

    #[test]
    fn section_is_replaced_and_the_rest_is_not() {
        let page = "a\n<!-- begin: bench start -->\nold\n<!-- end: bench start -->\nb\n";
        let new = replaced(page, "start", "new\n").unwrap();
        assert_eq!(new, "a\n<!-- begin: bench start -->\nnew\n<!-- end: bench start -->\nb\n");
        assert_eq!(replaced(&new, "start", "new\n").unwrap(), new);
        assert_eq!(replaced(page, "card", "new\n"), None);
    }

    #[test]
    fn tables_have_the_medians_of_the_reports() {
        let texts = texts(&[(Section::Start, report_of_start())]).unwrap();
        let pages: Vec<_> = texts.iter().map(|(page, section, _)| (*page, *section)).collect();
        assert_eq!(pages, [("docs/benchmarks.md", "start"), ("README.md", "readme")]);
        let row = "| minivmm, which also makes its tap and attaches it | 4.4 ms | 2.0 MiB | 4.5 MB |";
        assert!(texts[0].2.contains(row), "{}", texts[0].2);
        let row = "| exec to the guest's first byte, card on a bridge | 4.4 ms | 58.0 ms (microvm) |";
        assert!(texts[1].2.contains(row), "{}", texts[1].2);
    }

    #[test]
    fn figure_that_a_report_does_not_have_is_named() {
        let error = texts(&[(Section::Start, json!({}))]).unwrap_err();
        assert_eq!(error.to_string(), "The result of bench start has no print a byte");
        let error = texts(&[(Section::Card, json!({"streams": []}))]).unwrap_err();
        assert_eq!(error.to_string(), "The result of bench card has no tx-64-1 of minivmm");
    }

    #[test]
    fn pages_have_every_section() {
        for (page, section) in [FRONT, (BENCHMARKS, "start"), (BENCHMARKS, "card"), (BENCHMARKS, "nat")] {
            let text = fs::read_to_string(workspace::root().join(page)).unwrap();
            assert!(replaced(&text, section, "").is_some(), "{page} {section}");
        }
    }
}
