//! Guests see all the memory they are given, below and above the hole under 4 GiB.

use super::Story;
use crate::place::memory_kib;
use crate::stage::Stage;

pub(super) const STORIES: &[Story] = &[
    Story { name: "memory::a_guest_of_64_mib_sees_all_of_it", tell: |stage| sees_all(stage, 64) },
    Story { name: "memory::a_guest_of_3_gib_sees_all_of_it", tell: |stage| sees_all(stage, 3 << 10) },
    Story { name: "memory::a_guest_of_4_gib_sees_all_of_it", tell: |stage| sees_all(stage, 4 << 10) },
    Story { name: "memory::a_guest_of_6_gib_sees_all_of_it", tell: |stage| sees_all(stage, 6 << 10) },
];

/// What the firmware areas below 1 MiB and our own tables may take.
const RESERVED_KIB: u64 = 1 << 10;

/// What the host needs for itself.
const HOST_MIB: u64 = 512;

/// The sum of the usable ranges in the kernel's list of e820 entries, in KiB; `/proc/iomem` shows them to root.
const SUM: &str = r#"awk -F'[- :]+' '/System RAM/ && !/^ /{print $1, $2}' /proc/iomem |
{ t=0; while read a b; do t=$((t + (0x$b - 0x$a + 1) / 1024)); done; echo usable_kib=$t; }
echo total=$(sed -n 's/MemTotal: *//p' /proc/meminfo)"#;

fn sees_all(stage: &Stage, mib: u64) {
    if memory_kib() < (mib + HOST_MIB) << 10 {
        stage.skip(&format!("needs a host with {} MiB, this one has {}", mib + HOST_MIB, memory_kib() >> 10));
    }
    let vm = stage.vm().mem(&format!("{mib}M")).script(SUM).start();

    let usable_kib: u64 = vm.value("usable_kib").parse().expect("a number from the guest's awk");
    let total = vm.value("total");
    assert_eq!(vm.wait_exit(), 0);

    println!("--mem {mib}M: usable ranges {usable_kib} KiB of {}, MemTotal {total}", mib << 10);
    assert!(usable_kib <= mib << 10, "more memory than was given");
    assert!(usable_kib + RESERVED_KIB >= mib << 10, "memory is missing");
}
