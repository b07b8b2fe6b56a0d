//! The nature of a reset: a reset, a panic of the guest's kernel, or a crash.
//!
//! pvpanic tells of a panic, but most kernels have its driver as a module, which is not there yet when they panic for
//! want of a root disk. So a reset is looked at: Linux takes the same last steps for a reboot and after a panic
//! (`arch/x86/kernel/reboot.c`), but comes from another place.
//!
//! | | I/O APIC | local APIC | mark at [`layout::RESET_MARK`] |
//! |---|---|---|---|
//! | reboot (`native_machine_restart`) | masked (`clear_IO_APIC`) | shut down | cold, or warm if the user wants that |
//! | panic (`emergency_restart`) | as it was | shut down (`smp_send_stop`) | warm by `reboot=panic_warm` (Linux 5.1) |
//! | SysRq B, a watchdog (`emergency_restart`), `reboot=force` | as it was | as it was | as for a reboot |
//! | no Linux, or none that asked for it | | | as it was at the start |
//!
//! So a panic is a warm reset of a machine of which only the processors were shut down. Not told are a panic before the
//! first interrupt line is open, and one of a kernel that was not told `panic_warm`: they are resets, with a warning
//! for the latter. A crash kernel reboots like any other: a dump is no panic. A triple fault resets the local APIC on
//! some processors.

use super::ending::{End, Reset};
use crate::exit::{Outcome, ResetWay};
use crate::kvm::{IoApic, LocalApic};
use boot::layout;
use devices::virtio::device::Memory;
use vm_memory::{Bytes, GuestAddress};

/// The word that Linux left at [`layout::RESET_MARK`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// Nothing: it did not ask for a reset.
    None,
    /// That it wants a cold boot.
    Cold,
    /// That it wants a warm boot.
    Warm,
}

impl Mark {
    fn read(mem: &Memory) -> Self {
        match mem.read_obj(GuestAddress(layout::RESET_MARK.base)) {
            Ok(layout::RESET_MARK_AT_START) | Err(_) => Self::None,
            Ok(layout::RESET_MARK_WARM) => Self::Warm,
            Ok(_) => Self::Cold,
        }
    }
}

/// How a run ended that ended with `reset`.
fn outcome(reset: &Reset, mem: &Memory, io_apic: IoApic) -> Outcome {
    let mark = Mark::read(mem);
    let processors_stopped = reset.apic == LocalApic::ShutDown || reset.way == ResetWay::TripleFault;
    if mark == Mark::Warm && io_apic == IoApic::Open && processors_stopped {
        return Outcome::Panicked;
    }
    match (reset.way, mark) {
        (ResetWay::TripleFault, Mark::None) => Outcome::Crashed,
        (way, _) => Outcome::Reset(way),
    }
}

/// How a run ended that ended with `end` and left the I/O APIC like this, with a line in the log where there is more to
/// say than that.
///
/// # Errors
/// If a vCPU or a disk failed.
pub(super) fn outcome_of(end: End, mem: &Memory, io_apic: IoApic) -> Result<Outcome, crate::error::Error> {
    match end {
        End::Outcome(outcome) => Ok(outcome),
        End::Failed { id, failure } => Err(crate::error::Error::Vcpu { id, source: failure }),
        End::DiskFailed { path, source } => Err(crate::error::Error::DiskFailed { path, source }),
        End::Reset(reset) => {
            let outcome = outcome(&reset, mem, io_apic);
            if outcome == Outcome::Crashed {
                log::error!("The guest crashed: triple fault on vCPU {} ({})", reset.id, reset.registers);
            } else if matches!(outcome, Outcome::Reset(_)) && io_apic == IoApic::Open && Mark::read(mem) != Mark::None {
                log::warn!("The guest's kernel reset without shutting down: a panic, SysRq or a watchdog");
            }
            Ok(outcome)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::REBOOT_PARAMETER;
    use devices::legacy::event::ResetLine;

    const COLD: u16 = 0;
    const WARM: u16 = 0x1234;
    const KEYBOARD: ResetWay = ResetWay::Line(ResetLine::Keyboard);
    const VECTOR: ResetWay = ResetWay::Line(ResetLine::Vector);

    fn after(way: ResetWay, io_apic: IoApic, apic: LocalApic, mark: u16) -> Outcome {
        let mem = Memory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        mem.write_obj(mark, GuestAddress(layout::RESET_MARK.base)).unwrap();
        outcome(&Reset { way, id: 0, apic, registers: String::new() }, &mem, io_apic)
    }

    #[test]
    fn reboot_is_a_reset_whatever_the_user_wants_it_to_be() {
        for way in [KEYBOARD, VECTOR, ResetWay::Line(ResetLine::Acpi), ResetWay::TripleFault] {
            for mark in [COLD, WARM] {
                assert_eq!(after(way, IoApic::Masked, LocalApic::ShutDown, mark), Outcome::Reset(way));
            }
        }
    }

    #[test]
    fn panic_is_told_in_every_way() {
        for way in [KEYBOARD, VECTOR, ResetWay::Line(ResetLine::Chipset)] {
            assert_eq!(after(way, IoApic::Open, LocalApic::ShutDown, WARM), Outcome::Panicked, "{way}");
        }
        assert_eq!(after(ResetWay::TripleFault, IoApic::Open, LocalApic::Left, WARM), Outcome::Panicked);
    }

    #[test]
    fn sysrq_is_a_reset_even_of_a_guest_that_boots_warm() {
        for mark in [COLD, WARM] {
            assert_eq!(after(KEYBOARD, IoApic::Open, LocalApic::Left, mark), Outcome::Reset(KEYBOARD));
        }
        assert_eq!(after(VECTOR, IoApic::Open, LocalApic::ShutDown, COLD), Outcome::Reset(VECTOR));
    }

    #[test]
    fn reset_that_no_linux_asked_for_is_no_panic_and_a_triple_fault_a_crash() {
        let untouched = |way| after(way, IoApic::Open, LocalApic::ShutDown, layout::RESET_MARK_AT_START);
        assert_eq!(untouched(KEYBOARD), Outcome::Reset(KEYBOARD));
        assert_eq!(untouched(VECTOR), Outcome::Reset(VECTOR));
        assert_eq!(untouched(ResetWay::TripleFault), Outcome::Crashed);
        assert_eq!(untouched(ResetWay::Init), Outcome::Reset(ResetWay::Init));
    }

    #[test]
    fn old_kernels_take_the_last_letter_of_the_parameter() {
        let mut words = REBOOT_PARAMETER.strip_prefix("reboot=").unwrap().split(',');
        // Those before 5.1 look at the first letter of each word; of these, `k` and `p` are ways to reboot.
        assert_eq!(words.next_back(), Some("k"));
    }
}
