//! Limits of the process that are raised to what it may have.

use rustix::process::Resource;
use std::io;

/// Raises the soft limit of open descriptors to the hard one. The soft one, 1024 almost everywhere, protects programs that use
/// `select`; a machine with many vCPUs and cards with many queues needs more: each queue has a tap, doorbell and interrupt.
///
/// # Errors
/// If the host refuses.
pub(crate) fn raise_descriptors() -> io::Result<()> {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(rustix::process::setrlimit(Resource::Nofile, limit)?)
}
