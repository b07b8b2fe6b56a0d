//! Runs the blocks of a page, in one folder, one after the other.

use super::matching::lines_match;
use super::{Block, Mark, Page, Place};
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Comes before the number of a command, behind its output.
const END: &str = "@@ end of command ";

/// The surroundings of a page's blocks.
#[derive(Debug)]
pub struct Surroundings {
    /// Where they run.
    pub place: Place,
    /// The folder that they run in.
    pub folder: PathBuf,
    /// A folder of programs before all others.
    pub programs: PathBuf,
    /// Home of the default guest: `XDG_DATA_HOME`.
    pub data: PathBuf,
    /// Seconds that a block may take.
    pub seconds: u32,
}

/// Runs all blocks of `page` that belong to this place, and writes the files of the others. Returns how many ran.
///
/// # Errors
/// The first block that does not do what the page says, with what it printed.
pub fn run(page: &Page, surroundings: &Surroundings) -> Result<usize, String> {
    let mut ran = 0;
    for block in &page.blocks {
        let outcome = match &block.mark {
            Mark::File(name) => write_file(&surroundings.folder.join(name), &block.text),
            Mark::NotRun(_) => check_syntax(block),
            Mark::Run { place, before } if *place == surroundings.place => {
                ran += 1;
                run_block(block, before, surroundings)
            }
            Mark::Run { .. } => Ok(()),
        };
        outcome.map_err(|reason| format!("{}:{}: {reason}", page.name, block.line))?;
    }
    Ok(ran)
}

fn write_file(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{} cannot be written: {error}", path.display()))
}

fn check_syntax(block: &Block) -> Result<(), String> {
    let script: String = match &*block.language {
        "sh" => block.text.clone(),
        "console" => commands(&block.text).into_iter().map(|command| command.text + "\n").collect(),
        _ => return Ok(()),
    };
    let output = Command::new("bash").args(["-n", "-c", &script]).output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn run_block(block: &Block, before: &str, surroundings: &Surroundings) -> Result<(), String> {
    let (script, shown) = match &*block.language {
        "sh" => (format!("{before}\nset -e\n{}", block.text), Vec::new()),
        "console" => {
            let shown = commands(&block.text);
            let mut script = format!("{before}\n");
            for (idx, command) in shown.iter().enumerate() {
                // Writing to a String cannot fail.
                let _ = write!(script, "{}\nprintf '\\n{END}{idx}\\n'\n", command.text);
            }
            (script, shown)
        }
        other => return Err(format!("a block of {other:?} cannot be run")),
    };
    let Ran { printed, succeeded, left } = bash(&script, surroundings).map_err(|error| error.to_string())?;
    if !left.is_empty() {
        return Err(format!("it leaves processes behind: {left}\n{printed}"));
    }
    if !succeeded {
        return Err(format!("it fails or takes more than {} s:\n{printed}", surroundings.seconds));
    }
    compare(&shown, &printed)
}

/// The end of a script.
struct Ran {
    printed: String,
    succeeded: bool,
    /// Processes of its session that still run.
    left: String,
}

/// Runs a script in a shell of its own session, with errors among its output.
fn bash(script: &str, surroundings: &Surroundings) -> io::Result<Ran> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("setsid");
    command
        .args([
            "timeout",
            "--kill-after=5",
            &surroundings.seconds.to_string(),
            "bash",
            "-c",
            &format!("exec 2>&1\n{script}"),
        ])
        .current_dir(&surroundings.folder)
        .env("PATH", format!("{}:{path}", surroundings.programs.display()))
        .env("XDG_DATA_HOME", &surroundings.data)
        // Programs in the background read /dev/null, by which they are told from those in front.
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let child = command.spawn()?;
    let session = child.id().to_string();
    let output = child.wait_with_output()?;
    let left = Command::new("pgrep").args(["-l", "-s", &session]).output()?.stdout;
    let [printed, left] = [output.stdout, left].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok(Ran { printed, succeeded: output.status.success(), left })
}

/// A command of a console block, and what the page shows of its output.
struct Shown {
    text: String,
    output: Vec<String>,
}

fn commands(text: &str) -> Vec<Shown> {
    let mut commands: Vec<Shown> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("$ "), commands.last_mut()) {
            (Some(text), _) => commands.push(Shown { text: text.to_owned(), output: Vec::new() }),
            (None, Some(command)) => command.output.push(line.to_owned()),
            (None, None) => {}
        }
    }
    commands
}

fn compare(shown: &[Shown], printed: &str) -> Result<(), String> {
    let mut rest = printed;
    for (idx, command) in shown.iter().enumerate() {
        let (output, behind) = rest
            .split_once(&format!("\n{END}{idx}\n"))
            .ok_or_else(|| format!("`{}` does not come to an end:\n{printed}", command.text))?;
        rest = behind;
        let output: Vec<&str> = output.trim_end().lines().collect();
        let expected: Vec<&str> = command.output.iter().map(String::as_str).collect();
        if !lines_match(&expected, &output) {
            let (expected, output) = (expected.join("\n"), output.join("\n"));
            return Err(format!("`{}` should print\n{expected}\nand prints\n{output}", command.text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_here(language: &str, text: &str) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_path_buf();
        let surroundings = Surroundings {
            place: Place::Namespace,
            folder: path.clone(),
            programs: path.clone(),
            data: path,
            seconds: 10,
        };
        let (line, language) = (1, language.to_owned());
        let mark = Mark::Run { place: Place::Namespace, before: String::new() };
        let page = Page {
            name: "a.md".to_owned(),
            text: String::new(),
            blocks: vec![Block { line, language, mark, text: text.to_owned() }],
        };
        run(&page, &surroundings).map(|ran| assert_eq!(ran, 1))
    }

    #[test]
    fn commands_print_what_is_shown() {
        run_here("console", "$ echo a; echo b\na\nb\n$ true\n$ seq 5\n1\n...\n5\n$ printf x\nx\n").unwrap();
        run_here("sh", "echo anything\ntrue\n").unwrap();
    }

    #[test]
    fn other_output_and_failures_are_told() {
        let reason = run_here("console", "$ echo a\nb\n").unwrap_err();
        assert_eq!(reason, "a.md:1: `echo a` should print\nb\nand prints\na");
        assert!(run_here("console", "$ echo a\n").is_err());
        assert!(run_here("console", "$ exit 0\n$ echo a\na\n").is_err());
        assert!(run_here("sh", "false\ntrue\n").is_err());
    }
}
