//! How a panic is told from a reboot where the guest has no pvpanic driver (yet): most of all when it finds no root disk.
//!
//! Before it pulls the reset line, Linux writes to the BIOS data area whether it wants a warm boot (`arch/x86/kernel/reboot.c`,
//! `native_machine_emergency_restart`). `reboot=panic_warm` (Linux 5.1) asks for one after a panic only, so the word tells the
//! two apart. It is trusted only if nothing on the command line could ask for a warm boot otherwise.

use crate::exit::Outcome;
use devices::virtio::device::Memory;
use vm_memory::{Bytes, GuestAddress};

/// The kernel parameter: reboots through the i8042, the one reset line of this machine, and marks those after a panic.
pub(crate) const REBOOT_PARAMETER: &str = "reboot=k,panic_warm";

/// The word in the BIOS data area, and its value before a warm boot.
const WARM_BOOT_ADDR: GuestAddress = GuestAddress(0x472);
const WARM_BOOT: u16 = 0x1234;

/// Whether the mark can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PanicMark {
    /// Only a panic asks for a warm boot.
    Trusted,
    /// The user chose how the guest reboots.
    Unknown,
}

impl PanicMark {
    /// For a guest that is told [`REBOOT_PARAMETER`] and, behind it, `appended`.
    pub(crate) fn after<'a>(mut appended: impl Iterator<Item = &'a str>) -> Self {
        if appended.any(|text| text.contains("reboot=")) { Self::Unknown } else { Self::Trusted }
    }

    /// What a run that ended with `outcome` really was.
    pub(super) fn refine(self, outcome: Outcome, mem: &Memory) -> Outcome {
        let is_marked = || mem.read_obj::<u16>(WARM_BOOT_ADDR).is_ok_and(|word| word == WARM_BOOT);
        match (self, outcome) {
            (Self::Trusted, Outcome::Rebooted) if is_marked() => Outcome::Panicked,
            _ => outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(word: u16) -> Memory {
        let mem = Memory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        mem.write_obj(word, WARM_BOOT_ADDR).unwrap();
        mem
    }

    #[test]
    fn marked_reboot_is_a_panic() {
        let outcome = |word| PanicMark::Trusted.refine(Outcome::Rebooted, &memory(word));
        assert_eq!(outcome(WARM_BOOT), Outcome::Panicked);
        assert_eq!(outcome(0), Outcome::Rebooted);
    }

    #[test]
    fn other_outcomes_are_left_alone() {
        let mem = memory(WARM_BOOT);
        for outcome in [Outcome::PoweredOff, Outcome::Requested(3), Outcome::Crashed] {
            assert_eq!(PanicMark::Trusted.refine(outcome, &mem), outcome);
        }
    }

    #[test]
    fn users_own_reboot_parameter_makes_it_unknown() {
        assert_eq!(PanicMark::after(["quiet", "panic=5"].into_iter()), PanicMark::Trusted);
        let mark = PanicMark::after(["quiet reboot=w"].into_iter());
        assert_eq!(mark, PanicMark::Unknown);
        assert_eq!(mark.refine(Outcome::Rebooted, &memory(WARM_BOOT)), Outcome::Rebooted);
    }
}
