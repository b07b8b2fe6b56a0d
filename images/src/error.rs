//! Errors of making an image. One enum for the crate: every caller does the same thing with it, which is to
//! print the chain and stop.

use crate::bzimage::Refusal;
use std::io;
use std::path::PathBuf;

/// A failed step, with the object it failed on. Sources are printed by whoever prints the chain.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A command of `packages.txt` is not installed.
    #[error("The command {command} is missing: apt-get install {package}")]
    MissingTool {
        /// The command's name.
        command: String,
        /// The Debian package that brings it.
        package: String,
    },
    /// A command could not be started or its pipes broke.
    #[error("Cannot run {command}")]
    RunTool {
        /// The command's name.
        command: String,
        /// Why.
        source: io::Error,
    },
    /// A command ended with a failure.
    #[error("{command} failed ({status}): {message}")]
    ToolFailed {
        /// The command's name.
        command: String,
        /// Its exit status in words.
        status: String,
        /// The last line of its standard error.
        message: String,
    },
    /// A file operation failed.
    #[error("Cannot {action} {}", path.display())]
    File {
        /// A verb, such as "read".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Neither `XDG_DATA_HOME` nor `HOME` is set.
    #[error("No place for images: set HOME or XDG_DATA_HOME, or name a directory with --out")]
    NoHome,
    /// apt lists no kernel of the series.
    #[error(
        "apt knows no package {pattern}: run apt-get update, and check that the distribution's security suite is \
         enabled"
    )]
    NoKernelPackage {
        /// The pattern looked for.
        pattern: String,
    },
    /// The package does not hold what a kernel package holds.
    #[error("The package {package} holds no {what}")]
    OddPackage {
        /// The package.
        package: String,
        /// The missing part.
        what: String,
    },
    /// A module is neither in the kernel nor among its modules.
    #[error("Kernel {release} has no module {module}")]
    NoModule {
        /// The kernel's release.
        release: String,
        /// The module asked for.
        module: String,
    },
    /// A module's bytes carry no readable list of dependencies.
    #[error("The module {module} of kernel {release} has no .modinfo with its dependencies")]
    OddModule {
        /// The kernel's release.
        release: String,
        /// The module.
        module: String,
    },
    /// A program that runs before there is a dynamic loader needs one.
    #[error("{} is not a static x86-64 ELF program{hint}", path.display())]
    NotStatic {
        /// The program.
        path: PathBuf,
        /// Advice, starting with a colon.
        hint: &'static str,
    },
    /// The guest's init is not beside this program.
    #[error(
        "The guest's init {} is missing: build it with `cargo build -p images`, or name it with --agent",
        path.display()
    )]
    NoAgent {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A program named by `--with` is not installed.
    #[error("The program {name} for the guest is not installed on this machine")]
    NoProgram {
        /// The name or path asked for.
        name: String,
    },
    /// A program named by `--with` needs a library that this machine lacks.
    #[error("The program {name} needs the shared library {library}, which this machine lacks")]
    NoLibrary {
        /// The program.
        name: String,
        /// The library.
        library: String,
    },
    /// A file does not fit the archive format's 32-bit size.
    #[error("{path} is too large for an initramfs: {len_bytes} bytes, the format ends at 4 GiB")]
    TooLarge {
        /// Its path in the image.
        path: String,
        /// Its size.
        len_bytes: usize,
    },
    /// The file is not a bzImage, or one whose payload cannot be had.
    #[error("{} is not a bzImage with a payload: {reason}", path.display())]
    NotBzImage {
        /// The file.
        path: PathBuf,
        /// The mistake in it.
        reason: Refusal,
    },
    /// A disk size that mkfs.ext4 cannot work with.
    #[error("Bad disk size {text}: give bytes or a number with K, M, G or T, from 8M")]
    BadSize {
        /// The given text.
        text: String,
    },
}

/// An error and its causes on one line, each said once.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
