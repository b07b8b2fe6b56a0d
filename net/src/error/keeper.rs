//! Errors between the VMM and its network keeper.

use std::io;

/// Why the keeper could not be started or reached.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// A fork copies only the calling thread, and would leave the other threads' locks locked for ever.
    #[error("Cannot fork the network keeper: this process has {threads} threads, and may have one")]
    Threads {
        /// Threads of the process.
        threads: u64,
    },
    /// `/proc/self/task` cannot be read.
    #[error("Cannot count the threads of this process")]
    CountThreads(#[source] io::Error),
    /// The socket pair cannot be made.
    #[error("Cannot open a socket to the network keeper")]
    Socket(#[source] io::Error),
    /// The keeper cannot be forked.
    #[error("Cannot fork the network keeper")]
    Fork(#[source] io::Error),
    /// An error on the socket between VMM and keeper.
    #[error("Cannot exchange messages with the network keeper")]
    Exchange(#[source] io::Error),
    /// The keeper does not answer, most likely because the kernel does not answer it.
    #[error("Cannot reach the network keeper: it has not answered for {seconds} s")]
    Silent {
        /// The timeout in seconds.
        seconds: i64,
    },
    /// The VMM has gone, or no longer wants its network.
    #[error("Cannot make the network: the VM has ended")]
    Unwanted,
    /// The keeper was killed, or died.
    #[error("Cannot reach the network keeper: it has ended")]
    Gone,
    /// A message that is not of the protocol.
    #[error("Cannot read a message of the network keeper: it is malformed or out of order")]
    Protocol,
}

impl KeeperError {
    /// The hint for the user.
    pub(super) fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Fork(source) if source.raw_os_error() == Some(libc::EAGAIN) => {
                "the user or control group has as many processes as it may: ulimit -u, pids.max, TasksMax= in a unit"
            }
            Self::Silent { .. } => "see `dmesg`: most likely the kernel hangs while it changes an interface",
            Self::Gone => "see `dmesg`: most likely it was killed, as by the kernel for want of memory",
            Self::Threads { .. } | Self::Protocol => "this is a bug in minivmm",
            Self::CountThreads(_) | Self::Socket(_) | Self::Fork(_) | Self::Exchange(_) | Self::Unwanted => {
                return None;
            }
        };
        Some(hint.to_owned())
    }
}
