//! The vCPU threads: each runs one vCPU and answers what it asks for, until the machine ends.

use super::devices::Buses;
use super::ending::{End, Ending, Reset, take_reset};
use crate::confine::seccomp::{Filters, Thread};
use crate::exit::{Outcome, ResetWay};
use crate::kvm::Vcpu;
use crate::kvm::exit::{Exit, SystemEvent};
use crate::kvm::kick::{self, Kick};
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// Stack of a vCPU thread in bytes: it calls device models and formats log lines.
const STACK_BYTES: usize = 256 << 10;

/// The running vCPUs.
pub(super) struct VcpuThreads {
    threads: Vec<(JoinHandle<Vcpu>, Kick)>,
    ending: Arc<Ending>,
}

impl VcpuThreads {
    /// No vCPUs, until some are started.
    pub(super) fn new(ending: &Arc<Ending>) -> Self {
        Self { threads: Vec::new(), ending: ending.clone() }
    }

    /// Starts one thread per vCPU, with a filter of `filters`.
    ///
    /// # Errors
    /// If the host has no thread left; those that have started run on until they are stopped.
    pub(super) fn start(&mut self, vcpus: Vec<Vcpu>, buses: &Arc<Buses>, filters: &Arc<Filters>) -> io::Result<()> {
        for mut vcpu in vcpus {
            let kick = vcpu.kick_handle();
            let (buses, filters, ending) = (buses.clone(), filters.clone(), self.ending.clone());
            let thread =
                thread::Builder::new().name(format!("vcpu{}", vcpu.id())).stack_size(STACK_BYTES).spawn(move || {
                    if let Err(err) = kick::unblock() {
                        log::warn!("vCPU {} may be slow to stop: {err}", vcpu.id());
                    }
                    filters.enter(Thread::Vcpu);
                    run(&mut vcpu, &buses, &ending);
                    vcpu
                });
            self.threads.push((thread?, kick));
        }
        Ok(())
    }

    /// Brings every vCPU back from wherever it is, and joins the threads.
    pub(super) fn stop(self) {
        self.ending.stop();
        for (thread, kick) in &self.threads {
            kick.kick(thread);
        }
        for (thread, _) in self.threads {
            // A thread that panicked has ended the process already.
            let _ = thread.join();
        }
    }
}

fn run(vcpu: &mut Vcpu, buses: &Buses, ending: &Ending) {
    while !ending.is_stopping() {
        match vcpu.run() {
            Exit::PortRead { port, data } => data.for_each(|data| buses.ports.read(port.into(), data)),
            Exit::PortWrite { port, data } => {
                data.for_each(|data| buses.ports.write(port.into(), data));
                if let Some(line) = take_reset() {
                    ending.report(reset(vcpu, ResetWay::Line(line)));
                }
            }
            Exit::MmioRead { addr, data } => buses.mmio.read(addr, data),
            Exit::MmioWrite { addr, data } => buses.mmio.write(addr, data),
            Exit::Interrupted => {}
            Exit::Shutdown => ending.report(reset(vcpu, ResetWay::TripleFault)),
            Exit::SystemEvent(SystemEvent::Shutdown) => ending.report(End::Outcome(Outcome::PoweredOff)),
            Exit::SystemEvent(SystemEvent::Reset) => ending.report(reset(vcpu, ResetWay::Kvm)),
            Exit::SystemEvent(SystemEvent::Crash) => ending.report(End::Outcome(Outcome::Crashed)),
            Exit::Failed(failure) => {
                if vcpu.is_at_reset() {
                    ending.report(reset(vcpu, ResetWay::Init));
                    continue;
                }
                log::error!("Registers of vCPU {}: {}", vcpu.id(), vcpu.describe());
                ending.report(End::Failed { id: vcpu.id(), failure });
            }
        }
    }
}

/// That `vcpu` has reset the machine.
fn reset(vcpu: &mut Vcpu, way: ResetWay) -> End {
    End::Reset(Reset { way, id: vcpu.id(), apic: vcpu.local_apic(), registers: vcpu.describe() })
}
