//! Running the command line tools that images are made with. Promises one clear error for a tool that is missing (with
//! the package to install) or fails (with its last words). Which package brings which command is `packages.txt` alone.

use crate::error::Error;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, thread};

/// `packages.txt`: lines of a Debian package and the commands which it brings.
pub const PACKAGES: &str = include_str!("../packages.txt");

/// Where system tools live that an ordinary user's `PATH` leaves out.
const SYSTEM_DIRS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// The path of a command, from `PATH` and the system's directories.
///
/// # Errors
/// [`Error::MissingTool`].
pub(crate) fn find(command: &str) -> Result<PathBuf, Error> {
    search(command).ok_or_else(|| Error::MissingTool { command: command.to_owned(), package: package_of(command) })
}

/// The path of any program by name or path, `None` if there is none.
pub(crate) fn search(command: &str) -> Option<PathBuf> {
    if command.contains('/') {
        return Some(PathBuf::from(command)).filter(|path| is_program(path));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(SYSTEM_DIRS.iter().map(PathBuf::from))
        .map(|dir| dir.join(command))
        .find(|path| is_program(path))
}

/// A [`Command`] for a tool of `packages.txt`, with messages in English.
///
/// # Errors
/// [`Error::MissingTool`].
pub(crate) fn tool(command: &str) -> Result<Command, Error> {
    let mut built = Command::new(find(command)?);
    built.env("LC_ALL", "C.UTF-8");
    Ok(built)
}

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// [`Error::RunTool`] and [`Error::ToolFailed`].
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>, Error> {
    filter(command, &[])
}

/// Like [`output`], with `input` on the command's standard input.
///
/// # Errors
/// [`Error::RunTool`] and [`Error::ToolFailed`].
pub(crate) fn filter(command: &mut Command, input: &[u8]) -> Result<Vec<u8>, Error> {
    let name = name_of(command);
    let run_error = |source| Error::RunTool { command: name.clone(), source };
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(run_error)?;
    let stdin = child.stdin.take();
    let result = thread::scope(|scope| {
        // A thread of its own: the tool may fill its output pipe before it has read all of its input. It may also stop
        // reading early and fail; its exit status tells that better than our broken pipe would.
        scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(input)));
        child.wait_with_output()
    })
    .map_err(run_error)?;
    if result.status.success() {
        return Ok(result.stdout);
    }
    let stderr = String::from_utf8_lossy(&result.stderr);
    let message = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message").trim().to_owned();
    Err(Error::ToolFailed { command: name, status: result.status.to_string(), message })
}

/// The packages to install for everything that this crate can do, in the order of `packages.txt`.
pub fn packages() -> impl Iterator<Item = &'static str> {
    lines().filter_map(|line| line.split_whitespace().next())
}

fn package_of(command: &str) -> String {
    lines()
        .find(|line| line.split_whitespace().skip(1).any(|word| word == command))
        .and_then(|line| line.split_whitespace().next())
        .unwrap_or(command)
        .to_owned()
}

fn lines() -> impl Iterator<Item = &'static str> {
    PACKAGES.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty())
}

fn name_of(command: &Command) -> String {
    Path::new(command.get_program()).file_name().unwrap_or(OsStr::new("?")).to_string_lossy().into_owned()
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_tool_names_its_package() {
        assert_eq!(package_of("mkfs.ext4"), "e2fsprogs");
        assert_eq!(package_of("apt-cache"), "apt");
    }

    #[test]
    fn every_line_names_a_package_and_a_command() {
        assert!(packages().count() > 5);
        assert!(lines().all(|line| line.split_whitespace().count() >= 2));
    }

    #[test]
    fn filter_passes_more_than_a_pipe_holds() {
        let input = vec![7_u8; 1 << 20];
        let copy = filter(&mut Command::new("/bin/cat"), &input).unwrap();
        assert!(copy == input);
    }

    #[test]
    fn failing_tool_gives_its_last_words() {
        let error = output(Command::new("/bin/sh").args(["-c", "echo first >&2; echo last >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("last") && text.contains('3') && !text.contains("first"), "{text}");
    }
}
