//! Where this process runs, found out by asking: is there a KVM, and does it run a guest's ring 0 on the hardware?
//!
//! A `/dev/kvm` alone says little. One that emulates ring 0 boots no Linux, however well it runs ring 3, so a guest
//! that needs Linux goes into the host VM there.

mod ring0;

use std::fmt;
use std::time::Duration;

/// A loop of [`ring0::ITERATIONS`] takes a processor about a millisecond, and an emulator of 1.5 M instructions/s a
/// quarter of a second. A host VM, itself emulated, stays well under this.
const NATIVE_AT_MOST: Duration = Duration::from_millis(60);

/// The speed of this machine's KVM.
#[derive(Debug)]
pub enum Place {
    /// Linux guests run here.
    Hardware {
        /// The duration of the loop.
        took: Duration,
    },
    /// There is a KVM, but ring 0 is emulated: small guests of our own run here, Linux does not boot.
    EmulatedRing0 {
        /// The duration of the loop; `None` if it could not be run at all.
        took: Option<Duration>,
    },
    /// There is no usable KVM.
    NoKvm {
        /// Why not.
        source: kvm_ioctls::Error,
    },
}

impl Place {
    /// Asks this machine. Takes a quarter of a second at most.
    pub fn ask() -> Self {
        let kvm = match kvm_ioctls::Kvm::new() {
            Ok(kvm) => kvm,
            Err(source) => return Self::NoKvm { source },
        };
        match ring0::time_loop(&kvm) {
            Ok(took) if took <= NATIVE_AT_MOST => Self::Hardware { took },
            Ok(took) => Self::EmulatedRing0 { took: Some(took) },
            // Whatever cannot run a loop of two instructions boots no Linux either.
            Err(_unrunnable) => Self::EmulatedRing0 { took: None },
        }
    }

    /// Returns whether Linux guests can run right here.
    pub fn boots_linux(&self) -> bool {
        matches!(self, Self::Hardware { .. })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hardware { took } => {
                write!(f, "hardware KVM (a ring-0 loop took {:.1} ms)", took.as_secs_f64() * 1e3)
            }
            Self::EmulatedRing0 { took: Some(took) } => {
                write!(f, "a KVM that emulates ring 0 (a loop took {:.0} ms)", took.as_secs_f64() * 1e3)
            }
            Self::EmulatedRing0 { took: None } => write!(f, "a KVM that does not run ring 0"),
            Self::NoKvm { source } => write!(f, "no KVM ({source})"),
        }
    }
}

/// This machine's memory in KiB, as `MemTotal` in proc(5) has it; 0 where there is no `/proc`.
pub fn memory_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    total.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
