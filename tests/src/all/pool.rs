//! Host VMs to run scenarios in: booted when the first scenario needs one, used again by the next, replaced after a
//! failure.

use crate::hostvm::wire::Command;
use crate::hostvm::{Config, Error, HostVm, Output};
use crate::place::memory_kib;
use crate::workspace::target_folder;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A host VM's memory: a scenario's largest guest has 6 GiB. The machine outside gives only what is touched.
const MEM_MIB: u64 = 8 << 10;

/// The host VMs of a run.
pub(super) struct Pool {
    size: usize,
    idle: Mutex<Vec<HostVm>>,
}

impl Pool {
    /// A pool for this many commands at a time.
    pub(super) fn new(size: usize) -> Self {
        Self { size, idle: Mutex::default() }
    }

    /// For how many commands at a time it is made.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Runs a command in an idle host VM, or in a new one if there is none.
    pub(super) fn run(&self, words: Vec<String>, timeout: Duration) -> Result<Output, Error> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let vm = match idle {
            Some(vm) => vm,
            None => HostVm::boot(&config())?,
        };
        // With an error the host VM is dropped: whatever is wrong with it shall not meet the next scenario.
        let output = vm.run(Command::new(words), timeout)?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(vm);
        Ok(output)
    }
}

fn config() -> Config {
    // More than a half of what there is could not be given to two.
    let half_mib = memory_kib() / 1024 / 2;
    let mem_mib = u32::try_from(half_mib.min(MEM_MIB)).unwrap_or(u32::MAX);
    Config { mem_mib, ..Config::new(&target_folder().join("hostvm")) }
}
