//! The shape of the guest's processor: one package, one thread per core, APIC id = vCPU number.
//!
//! Every CPUID leaf that speaks of topology is computed from this one place, so that no two of them can disagree.

/// The package as CPUID describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Topology {
    cpus: u32,
}

impl Topology {
    /// For `cpus` vCPUs, at least one.
    pub(super) fn new(cpus: u32) -> Self {
        Self { cpus: cpus.max(1) }
    }

    /// Number of logical processors in the package.
    pub(super) fn cpus(self) -> u32 {
        self.cpus
    }

    /// Bits of the APIC id that tell the cores of the package apart.
    pub(super) fn core_bits(self) -> u32 {
        self.cpus.next_power_of_two().trailing_zeros()
    }

    /// Number of APIC ids that the package reserves: a power of two.
    pub(super) fn id_span(self) -> u32 {
        1 << self.core_bits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_bits_cover_every_apic_id() {
        for (cpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (255, 8), (256, 8), (1024, 10)] {
            let topology = Topology::new(cpus);
            assert_eq!(topology.core_bits(), bits, "{cpus}");
            assert!((cpus - 1) >> bits == 0, "{cpus}");
        }
    }
}
