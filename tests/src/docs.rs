//! The commands of README.md and docs/: every fenced block of shell runs where a comment before it says, or says why
//! not.
//!
//! ```text
//! <!-- run: namespace -->              before a ```sh or ```console block: the next block runs in a namespace
//! <!-- run: namespace; before: CMD --> the same, after this command, which the reader does not see
//! <!-- run: host-vm -->                it runs where Linux boots
//! <!-- not run: REASON -->             only its syntax is checked
//! <!-- file: NAME -->                  before a block of any language: it becomes this file
//! ```
//!
//! In a `console` block, lines that begin with `$ ` are commands and the others are what they print; `...` stands for
//! any text in a line, and for any lines where it is alone. A block of `sh` has to succeed.

mod links;
mod matching;
mod run;

use std::path::Path;

pub use links::dead_links;
pub use run::{Surroundings, run};

use crate::workspace;

/// A place where blocks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A network namespace, where `minivmm` starts the probe guest.
    Namespace,
    /// Where Linux boots.
    HostVm,
}

/// The meaning of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// It runs here, after a command that is not shown.
    Run {
        /// Where.
        place: Place,
        /// The command before it; empty if there is none.
        before: String,
    },
    /// It does not run, for this reason.
    NotRun(String),
    /// It becomes this file.
    File(String),
}

/// A fenced block that means something to a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The line of its fence, from 1.
    pub line: usize,
    /// The word behind the fence.
    pub language: String,
    /// Where it runs.
    pub mark: Mark,
    /// Its text.
    pub text: String,
}

/// A page of documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Its path in the repository.
    pub name: String,
    /// All of it.
    pub text: String,
    /// Its blocks, in order.
    pub blocks: Vec<Block>,
}

/// Why a page cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A page cannot be read.
    #[error("Cannot read {name}")]
    Read {
        /// Its path.
        name: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A block of shell says nothing about where it runs.
    #[error(
        "{name}:{line}: a block of {language} has no comment before it: write <!-- run: namespace -->, \
         <!-- run: host-vm --> or <!-- not run: REASON -->"
    )]
    Unmarked {
        /// The page.
        name: String,
        /// The line of its fence.
        line: usize,
        /// Its language.
        language: String,
    },
    /// A comment that means no place.
    #[error("{name}:{line}: {comment:?} is no place where a block runs")]
    Mark {
        /// The page.
        name: String,
        /// The line of the comment.
        line: usize,
        /// The comment.
        comment: String,
    },
}

/// Reads README.md, CONTRIBUTING.md, SECURITY.md and the pages of docs/, in this order.
///
/// # Errors
/// A page cannot be read, or has a block that says nothing about where it runs.
pub fn pages() -> Result<Vec<Page>, Error> {
    let mut names = vec!["README.md".to_owned(), "CONTRIBUTING.md".to_owned(), "SECURITY.md".to_owned()];
    let folder = workspace::root().join("docs");
    let read = |name: &str, source| Error::Read { name: name.to_owned(), source };
    let listing = std::fs::read_dir(&folder).map_err(|source| read("docs", source))?;
    let in_folder = listing.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut in_folder: Vec<String> =
        in_folder.filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "md")).collect();
    in_folder.sort();
    names.extend(in_folder.into_iter().map(|name| format!("docs/{name}")));
    let page = |name: String| {
        let text = std::fs::read_to_string(workspace::root().join(&name)).map_err(|source| read(&name, source))?;
        Ok(Page { blocks: blocks(&name, &text)?, name, text })
    };
    names.into_iter().map(page).collect()
}

/// The blocks of a page that mean something.
fn blocks(name: &str, text: &str) -> Result<Vec<Block>, Error> {
    let mut blocks = Vec::new();
    let mut mark = None;
    let mut lines = text.lines().enumerate();
    while let Some((idx, line)) = lines.next() {
        if let Some(comment) = line.strip_prefix("<!-- ").and_then(|line| line.strip_suffix(" -->")) {
            mark = self::mark(comment).map_err(|()| Error::Mark {
                name: name.to_owned(),
                line: idx + 1,
                comment: comment.to_owned(),
            })?;
            continue;
        }
        let Some(language) = line.strip_prefix("```") else {
            mark = None;
            continue;
        };
        let text: Vec<&str> = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect();
        let (line, language) = (idx + 1, language.to_owned());
        match mark.take() {
            Some(mark) => blocks.push(Block { line, language, mark, text: text.join("\n") + "\n" }),
            None if matches!(&*language, "sh" | "console") => {
                return Err(Error::Unmarked { name: name.to_owned(), line, language });
            }
            None => {}
        }
    }
    Ok(blocks)
}

/// The meaning of a comment: `None` if it is one of another kind.
fn mark(comment: &str) -> Result<Option<Mark>, ()> {
    if let Some(reason) = comment.strip_prefix("not run: ") {
        return Ok(Some(Mark::NotRun(reason.to_owned())));
    }
    if let Some(name) = comment.strip_prefix("file: ") {
        return Ok(Some(Mark::File(name.to_owned())));
    }
    let Some(place) = comment.strip_prefix("run: ") else { return Ok(None) };
    let (place, before) = place.split_once("; before: ").unwrap_or((place, ""));
    let place = match place {
        "namespace" => Place::Namespace,
        "host-vm" => Place::HostVm,
        _ => return Err(()),
    };
    Ok(Some(Mark::Run { place, before: before.to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# A page\n\n<!-- file: a.toml -->\n```toml\nx = 1\n```\n<!-- run: namespace; before: true -->\n\
                        ```console\n$ echo a\na\n```\n```text\nnothing\n```\n\
                        <!-- not run: takes hours -->\n```sh\nrest\n```\n";

    #[test]
    fn blocks_have_their_comments_and_others_are_left_out() {
        let found = blocks("a.md", PAGE).unwrap();
        let marks: Vec<_> = found.iter().map(|block| (block.line, block.mark.clone())).collect();
        let run = Mark::Run { place: Place::Namespace, before: "true".to_owned() };
        let expected = [(4, Mark::File("a.toml".to_owned())), (8, run), (16, Mark::NotRun("takes hours".to_owned()))];
        assert_eq!(marks, expected);
        assert_eq!(found[1].text, "$ echo a\na\n");
    }

    #[test]
    fn shell_without_a_comment_is_an_error_and_so_is_an_unknown_place() {
        let error = blocks("a.md", "text\n\n```sh\nls\n```\n").unwrap_err();
        assert!(error.to_string().starts_with("a.md:3: a block of sh has no comment"), "{error}");
        let error = blocks("a.md", "<!-- run: moon -->\n```sh\nls\n```\n").unwrap_err();
        assert_eq!(error.to_string(), "a.md:1: \"run: moon\" is no place where a block runs");
        assert_eq!(blocks("a.md", "<!-- begin: bench start -->\n```text\n```\n").unwrap(), []);
    }
}
