//! Why the machine ends: the first reason counts, and every vCPU leaves the guest because of it.

use crate::exit::{Outcome, ResetWay};
use crate::kvm::LocalApic;
use crate::kvm::exit::Failure;
use devices::legacy::event::{Events, MachineEvent, ResetLine};
use std::cell::Cell;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Why a run ended.
#[derive(Debug)]
pub(super) enum End {
    /// The guest or the user wanted it to.
    Outcome(Outcome),
    /// The guest reset itself, or crashed.
    Reset(Reset),
    /// KVM cannot go on with a vCPU.
    Failed {
        /// The vCPU's number.
        id: u32,
        /// Why.
        failure: Failure,
    },
    /// A disk has failed, and the user wants that to be the end.
    DiskFailed {
        /// The disk.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A reset, with what tells a reboot from a panic: the state of the vCPU that did it.
#[derive(Debug)]
pub(super) struct Reset {
    /// How.
    pub(super) way: ResetWay,
    /// The vCPU's number.
    pub(super) id: u32,
    /// The state of its local APIC.
    pub(super) apic: LocalApic,
    /// Its registers as text.
    pub(super) registers: String,
}

thread_local! {
    /// The register through which this thread's vCPU has just reset the machine: the thread adds the vCPU's state and
    /// reports it.
    static RESET: Cell<Option<ResetLine>> = const { Cell::new(None) };
}

/// The reset that the guest's last access, made by this thread, was, if it was one.
pub(super) fn take_reset() -> Option<ResetLine> {
    RESET.take()
}

/// Shared by the vCPU threads, which report, and the control loop, which acts.
pub(super) struct Ending {
    end: Mutex<Option<End>>,
    /// Looked at by every vCPU before it enters the guest. Relaxed: it only has to arrive, and the kick makes sure that
    /// it is looked at.
    stopping: AtomicBool,
    event: EventFd,
}

impl Ending {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            end: Mutex::new(None),
            stopping: AtomicBool::new(false),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// Ends the machine because of `end`, unless it is ending already.
    pub(super) fn report(&self, end: End) {
        let mut first = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            *first = Some(end);
        }
        self.stop();
        // A counter that is full is signalled all the same.
        let _ = self.event.write(1);
    }

    /// Makes vCPUs leave the guest the next time they look.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Returns whether vCPUs may enter the guest no more.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Readable once there is a reason.
    pub(super) fn event(&self) -> &EventFd {
        &self.event
    }

    /// The reason, if there is one.
    pub(super) fn take(&self) -> Option<End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Events for Ending {
    fn raise(&self, event: MachineEvent) {
        self.report(End::Outcome(match event {
            MachineEvent::PowerOff => Outcome::PoweredOff,
            MachineEvent::Reset(line) => return RESET.set(Some(line)),
            MachineEvent::Panicked => Outcome::Panicked,
            MachineEvent::Exit(code) => Outcome::Requested(code),
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_reason_counts() {
        let ending = Ending::new().unwrap();

        ending.raise(MachineEvent::Panicked);
        ending.raise(MachineEvent::PowerOff);

        assert!(matches!(ending.take(), Some(End::Outcome(Outcome::Panicked))));
        assert!(ending.is_stopping());
        assert!(ending.event().read().is_ok());
    }

    #[test]
    fn reset_waits_for_the_vcpu_that_did_it() {
        let ending = Ending::new().unwrap();

        ending.raise(MachineEvent::Reset(ResetLine::Acpi));

        assert!(!ending.is_stopping());
        assert_eq!(take_reset(), Some(ResetLine::Acpi));
        assert_eq!(take_reset(), None);
    }
}
