//! CPUID as one vCPU sees it: what KVM supports, with the leaves that only the VMM can know filled in.
//!
//! Promises: every leaf that speaks of topology agrees with every other (they come from one [`Topology`]), no leaf
//! tells of the host's topology, and nothing is announced that KVM did not offer, but for what the VMM itself provides
//! (the TSC deadline timer that KVM leaves to it, and extended MSI destinations).
//!
//! Nested virtualization is not offered: it is the largest attack surface of KVM and no guest of this VMM needs it.
//!
//! Sources: Intel SDM volume 2A "CPUID", AMD APM volume 3 appendix E, `Documentation/virt/kvm/x86/cpuid.rst`.

use super::Error;
use super::topology::Topology;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};

/// Physical address bits of a processor that does not say (AMD APM volume 3, E.4.7).
const DEFAULT_PHYS_BITS: u8 = 36;

/// Leaf of the extended topology; the highest basic leaf is at least this, since a guest with x2APIC relies on it.
const TOPOLOGY_LEAF: u32 = 0xb;
const TOPOLOGY_V2_LEAF: u32 = 0x1f;
const KVM_FEATURES_LEAF: u32 = 0x4000_0001;

/// Leaf 1, ECX.
const VMX: u32 = 1 << 5;
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX.
const CMP_LEGACY: u32 = 1 << 1;
const SVM: u32 = 1 << 2;
/// Leaf 0x4000_0001, EAX.
const KVM_FEATURE_MSI_EXT_DEST_ID: u32 = 1 << 15;

/// The properties of a machine that its vCPUs' CPUID depends on, beside the host.
pub(super) struct Features {
    /// Number of vCPUs.
    pub(super) cpus: u32,
    /// True if KVM emulates the TSC deadline timer.
    pub(super) tsc_deadline: bool,
    /// True if MSI addresses carry 15 bits of destination.
    pub(super) extended_destination: bool,
}

/// Physical address bits in `cpuid`: leaf 0x8000_0008, EAX bits 7 to 0.
pub(super) fn phys_bits(cpuid: &CpuId) -> u8 {
    cpuid.as_slice().iter().find(|e| e.function == 0x8000_0008).map_or(DEFAULT_PHYS_BITS, |e| e.eax.to_le_bytes()[0])
}

/// The CPUID of vCPU `id`, from what KVM supports.
///
/// # Errors
/// If it has more leaves than a list can hold. None is left out then: a guest would be told something that is not so.
pub(super) fn for_vcpu(supported: &CpuId, id: u32, features: &Features) -> Result<CpuId, Error> {
    let topology = Topology::new(features.cpus);
    let amd = is_amd(supported.as_slice());
    let mut entries: Vec<_> = supported.as_slice().iter().filter(|e| !is_replaced(e.function)).copied().collect();
    for entry in &mut entries {
        patch(entry, id, topology, features, amd);
    }
    let max_basic = max_basic_leaf(&entries);
    entries.extend(extended_topology(TOPOLOGY_LEAF, id, topology));
    if max_basic >= TOPOLOGY_V2_LEAF {
        entries.extend(extended_topology(TOPOLOGY_V2_LEAF, id, topology));
    }
    CpuId::from_entries(&entries)
        .map_err(|_| Error::TooManyLeaves { leaves: entries.len(), max: KVM_MAX_CPUID_ENTRIES })
}

/// Leaves that are dropped: the host's topology, and what belongs to nested virtualization.
fn is_replaced(leaf: u32) -> bool {
    matches!(leaf, TOPOLOGY_LEAF | TOPOLOGY_V2_LEAF | 0x8000_000a | 0x8000_0026)
}

fn is_amd(entries: &[kvm_cpuid_entry2]) -> bool {
    entries.iter().find(|e| e.function == 0).is_some_and(|e| matches!(&e.ebx.to_le_bytes(), b"Auth" | b"Hygo"))
}

fn max_basic_leaf(entries: &[kvm_cpuid_entry2]) -> u32 {
    entries.iter().find(|e| e.function == 0).map_or(TOPOLOGY_LEAF, |e| e.eax)
}

fn patch(entry: &mut kvm_cpuid_entry2, id: u32, topology: Topology, features: &Features, amd: bool) {
    let cpus = topology.cpus();
    match entry.function {
        0 => entry.eax = entry.eax.max(TOPOLOGY_LEAF),
        1 => {
            let count = topology.id_span().min(0xff);
            entry.ebx = (entry.ebx & 0xffff) | count << 16 | (id & 0xff) << 24;
            entry.ecx = (entry.ecx & !(VMX | TSC_DEADLINE)) | X2APIC | HYPERVISOR;
            if features.tsc_deadline {
                entry.ecx |= TSC_DEADLINE;
            }
            set(&mut entry.edx, HTT, cpus > 1);
        }
        4 if cache_type(entry) != 0 => {
            let cores = (topology.id_span() - 1).min(0x3f);
            entry.eax = (entry.eax & 0x3fff) | shared_by(entry, topology) << 14 | cores << 26;
        }
        0x8000_001d if cache_type(entry) != 0 => {
            entry.eax = (entry.eax & 0x3fff) | shared_by(entry, topology) << 14;
        }
        KVM_FEATURES_LEAF => set(&mut entry.eax, KVM_FEATURE_MSI_EXT_DEST_ID, features.extended_destination),
        0x8000_0001 => {
            entry.ecx &= !SVM;
            set(&mut entry.ecx, CMP_LEGACY, amd && cpus > 1);
        }
        // NC and ApicIdSize exist on AMD; on Intel the register is reserved.
        0x8000_0008 if amd => {
            let threads = (cpus - 1).min(0xff);
            entry.ecx = (entry.ecx & !0xf0ff) | topology.core_bits() << 12 | threads;
        }
        // Core id with one thread per core; node 0 of one.
        0x8000_001e if amd => {
            entry.eax = id;
            entry.ebx = id & 0xff;
            entry.ecx = 0;
        }
        _ => {}
    }
}

fn set(register: &mut u32, bits: u32, on: bool) {
    if on {
        *register |= bits;
    } else {
        *register &= !bits;
    }
}

/// Leaf 4 and 0x8000_001D, EAX bits 4 to 0; 0 ends the list.
fn cache_type(entry: &kvm_cpuid_entry2) -> u32 {
    entry.eax & 0x1f
}

/// APIC ids that share a cache, minus one: a core has its first two levels for itself, the package shares the rest.
fn shared_by(entry: &kvm_cpuid_entry2, topology: Topology) -> u32 {
    let level = entry.eax >> 5 & 7;
    if level >= 3 { (topology.id_span() - 1).min(0xfff) } else { 0 }
}

/// Leaf 0xB and 0x1F: a thread level of one, a core level of all, and the end.
fn extended_topology(leaf: u32, id: u32, topology: Topology) -> [kvm_cpuid_entry2; 3] {
    const SMT: u32 = 1 << 8;
    const CORE: u32 = 2 << 8;
    let level = |index, eax, ebx, kind: u32| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: index | kind,
        edx: id,
        ..Default::default()
    };
    [level(0, 0, 1, SMT), level(1, topology.core_bits(), topology.cpus(), CORE), level(2, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn amd_host() -> CpuId {
        let name = u32::from_le_bytes(*b"Auth");
        CpuId::from_entries(&[
            entry(0, 0, [0x10, name, 0, 0]),
            entry(1, 0, [0, 0x5aff_0800, VMX, 0]),
            entry(4, 0, [0x1c00_4121, 0, 0, 0]),
            entry(4, 1, [0xfc07_c163, 0, 0, 0]),
            entry(4, 2, [0; 4]),
            entry(0xb, 0, [1, 2, 0x100, 77]),
            entry(0x8000_0001, 0, [0, 0, SVM, 0]),
            entry(0x8000_0008, 0, [0x3030, 0, 0x607f, 0]),
            entry(0x8000_001d, 3, [0x163, 0, 0, 0]),
            entry(0x8000_001e, 0, [77, 0x0177, 3, 0]),
        ])
        .unwrap()
    }

    fn seen_by(id: u32, cpus: u32) -> impl Fn(u32, u32) -> [u32; 4] {
        let features = Features { cpus, tsc_deadline: true, extended_destination: false };
        let cpuid = for_vcpu(&amd_host(), id, &features).unwrap();
        move |function, index| {
            let found: Vec<_> = cpuid
                .as_slice()
                .iter()
                .filter(|e| e.function == function && e.index == index)
                .map(|e| [e.eax, e.ebx, e.ecx, e.edx])
                .collect();
            assert_eq!(found.len(), 1, "{function:#x}.{index}");
            found[0]
        }
    }

    #[test]
    fn every_leaf_tells_the_same_apic_id() {
        let leaf = seen_by(3, 6);

        assert_eq!(leaf(1, 0)[1] >> 24, 3);
        assert_eq!(leaf(0xb, 0)[3], 3);
        assert_eq!(leaf(0xb, 1)[3], 3);
        assert_eq!(leaf(0x8000_001e, 0)[0], 3);
        assert_eq!(leaf(0x8000_001e, 0)[1], 3);
    }

    #[test]
    fn every_leaf_tells_the_same_core_bits() {
        let leaf = seen_by(0, 6);

        assert_eq!(leaf(0xb, 1)[..2], [3, 6]);
        assert_eq!(leaf(0x8000_0008, 0)[2], 3 << 12 | 5);
        assert_eq!(leaf(1, 0)[1] >> 16 & 0xff, 8);
        assert_eq!(leaf(4, 0)[0] >> 26, 7);
    }

    #[test]
    fn a_core_shares_only_its_last_cache() {
        let leaf = seen_by(0, 4);

        assert_eq!(leaf(4, 0)[0] >> 14 & 0xfff, 0);
        assert_eq!(leaf(4, 1)[0] >> 14 & 0xfff, 3);
        assert_eq!(leaf(0x8000_001d, 3)[0] >> 14 & 0xfff, 3);
    }

    #[test]
    fn one_cpu_has_no_hyperthreading_bit() {
        assert_eq!(seen_by(0, 1)(1, 0)[3] & HTT, 0);
        assert_eq!(seen_by(0, 2)(1, 0)[3] & HTT, HTT);
    }

    #[test]
    fn nested_virtualization_is_not_offered() {
        let leaf = seen_by(0, 1);

        assert_eq!(leaf(1, 0)[2] & VMX, 0);
        assert_eq!(leaf(0x8000_0001, 0)[2] & SVM, 0);
    }

    #[test]
    fn timer_and_hypervisor_are_announced() {
        let ecx = seen_by(0, 1)(1, 0)[2];

        assert_eq!(ecx & (TSC_DEADLINE | HYPERVISOR | X2APIC), TSC_DEADLINE | HYPERVISOR | X2APIC);
    }

    #[test]
    fn list_without_room_for_the_topology_is_refused() {
        let features = Features { cpus: 1, tsc_deadline: true, extended_destination: false };
        let list = |len| (0..len).map(|leaf| entry(0x8100_0000 + leaf, 0, [0; 4])).collect::<Vec<_>>();
        let max = u32::try_from(KVM_MAX_CPUID_ENTRIES).unwrap();

        assert!(for_vcpu(&CpuId::from_entries(&list(max - 3)).unwrap(), 0, &features).is_ok());
        let err = for_vcpu(&CpuId::from_entries(&list(max - 2)).unwrap(), 0, &features).unwrap_err();
        assert!(matches!(err, Error::TooManyLeaves { leaves, max } if leaves == max + 1), "{err}");
    }

    #[test]
    fn phys_bits_come_from_the_host() {
        assert_eq!(phys_bits(&amd_host()), 0x30);
    }
}
