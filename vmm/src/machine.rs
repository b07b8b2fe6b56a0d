//! The machine, from an opened host to the reason why it ended.
//!
//! ```text
//! assemble: memory, KVM, kernel -> ports of the keeper -> devices -> confine -> vCPUs -> control loop
//!                                                                                           |
//! stop:                        keeper undoes <- devices <- workers joined <- vCPUs joined <-'
//! ```
//!
//! State that outlives a reboot (files, taps, the console) is in [`Resources`]; the rest (memory, KVM's VM, device
//! state) is made anew for each run, so a guest that was reset finds what it found at its first start.

mod control;
mod control_socket;
mod devices;
mod ending;
mod memory;
mod ready;
mod reset;
mod resources;
mod restart;
mod serial;
mod spawner;
mod stop;
mod vcpus;
mod watchdog;

pub(crate) use control_socket::ControlSocket;
pub(crate) use memory::check_available;
pub(crate) use ready::ReadyOptions;
pub(crate) use resources::{Files, Resources};
pub(crate) use restart::Restarts;

use crate::confine::seccomp::Filters;
use crate::console::terminal;
use crate::error::Error;
use crate::exit::{self, Outcome};
use crate::kvm::{Created, Vcpu, Vm};
use boot::layout;
use control::Control;
use devices::Devices;
use ending::Ending;
use std::sync::Arc;
use std::time::Duration;
use vcpus::VcpuThreads;
use watchdog::Watchdog;

/// How long the reader of the console may take for each piece of the last output.
const LAST_OUTPUT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the host may take to finish what vCPUs and devices are in the middle of when the machine stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// The same when the guest is to run again, which is worth waiting for a slow disk.
const RESTART_TIMEOUT: Duration = Duration::from_secs(60);

/// A machine that stands at reset, complete but for its devices.
pub(crate) struct Machine {
    mem: ::devices::virtio::device::Memory,
    vm: Vm,
    vcpus: Vec<Vcpu>,
    mmio64: Option<layout::Window>,
}

impl Machine {
    /// Makes memory, VM and vCPUs, and puts the kernel into memory. Needs nothing of the network, which is set up
    /// meanwhile.
    ///
    /// # Errors
    /// If the host, KVM or the kernel refuses.
    pub(crate) fn assemble(resources: &Resources) -> Result<Self, Error> {
        let mem = memory::map(resources.mem)?;
        log::debug!("Memory is mapped");
        let Created { vm, vcpus, phys_bits } = resources.kvm.create(&mem, resources.cpus)?;
        log::debug!("VM and vCPUs are created");
        memory::check_addressable(resources.mem, phys_bits)?;
        let mmio64 = layout::window64(layout::ram_end(resources.mem.bytes()), phys_bits);
        let apic_ids: Vec<u32> = vcpus.iter().map(Vcpu::id).collect();
        let platform = boot::Platform { apic_ids: &apic_ids, mmio64 };
        let entry = boot::load(&mem, &resources.boot, &platform)?;
        log::debug!("The kernel is loaded ({})", entry.protocol);
        if let Some(boot_vcpu) = vcpus.first() {
            boot_vcpu.enter_at(&entry)?;
        }
        Ok(Self { mem, vm, vcpus, mmio64 })
    }

    /// Adds the devices and runs the guest to its end. Everything that belongs to this run is gone when this returns.
    ///
    /// # Errors
    /// If a device cannot be made, or a vCPU fails.
    pub(crate) fn run(self, resources: &mut Resources) -> Result<Outcome, Error> {
        let ending = Arc::new(Ending::new().map_err(Error::host("create an eventfd"))?);
        let devices = Devices::build(&self.vm, &self.mem, self.mmio64, resources, ending.clone())?;
        log::debug!("Devices are built");
        resources.confine()?;
        let mut vcpus = VcpuThreads::new(&ending);
        let started =
            vcpus.start(self.vcpus, devices.buses(), &resources.filters).map_err(Error::host("start a vCPU thread"));
        let end = started.and_then(|()| {
            log::debug!("vCPUs are running");
            Control::new(resources, &devices, &ending).run()
        });
        log::debug!("The guest has ended");
        let result = end
            .and_then(|end| reset::outcome_of(end, &self.mem, self.vm.io_apic()))
            .map(|outcome| resources.settle(outcome));
        // Also after a failed start: a vCPU that waits for room on the console is joined only once it is closed.
        resources.console.output.close();
        let (timeout, code) = match &result {
            Ok(Outcome::Reset(_)) if resources.restarts_after_reset() => (RESTART_TIMEOUT, exit::HOST),
            Ok(outcome) => (STOP_TIMEOUT, outcome.code()),
            Err(err) => (STOP_TIMEOUT, err.code()),
        };
        let watchdog = watch_stop(timeout, code, resources.filters.clone());
        vcpus.stop();
        devices.shutdown();
        drop(watchdog);
        resources.console.output.finish(LAST_OUTPUT_TIMEOUT);
        result
    }
}

/// Ends the process with `code` if the machine's threads are not back in time. Without a thread for it the stop has no
/// deadline.
fn watch_stop(timeout: Duration, code: u8, filters: Arc<Filters>) -> Option<Watchdog> {
    let watchdog = Watchdog::start(timeout, filters, move || {
        log::error!("The host did not finish the guest's last requests within {} s: ending without", timeout.as_secs());
        terminal::restore();
        exit::at_once(code);
    });
    watchdog.inspect_err(|err| log::warn!("The machine stops without a deadline: {err}")).ok()
}
