//! Guests see all the memory they are given, below and above the hole under 4 GiB.

use super::Scenario;
use crate::place::memory_kib;
use crate::stage::Stage;
use images::kernel::Series;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "memory::a_kernel_in_64_mib_counts_all_of_it", run: smallest },
    Scenario { name: "memory::a_guest_of_128_mib_sees_all_of_it", run: |stage| sees_all(stage, 128) },
    Scenario { name: "memory::a_guest_of_3_gib_sees_all_of_it", run: |stage| sees_all(stage, 3 << 10) },
    Scenario { name: "memory::a_guest_of_4_gib_sees_all_of_it", run: |stage| sees_all(stage, 4 << 10) },
    Scenario { name: "memory::a_guest_of_6_gib_sees_all_of_it", run: |stage| sees_all(stage, 6 << 10) },
];

/// The limit of the firmware areas below 1 MiB and our own tables.
const RESERVED_KIB: u64 = 1 << 10;

/// The host's own need.
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

/// 64 MiB are too few for a userland of these kernels, and for the bzImages to unpack in. The unpacked 6.1 gets as far
/// as counting its memory, and panics for want of a root.
fn smallest(stage: &Stage) {
    const MIB: u64 = 64;
    let vm = stage.bare_vm().kernel(stage.guest(Series::V6_1).vmlinux).mem(&format!("{MIB}M")).start();

    vm.wait_for("K available");
    let console = vm.console();
    let line = console.lines().find(|line| line.contains("K available")).expect("the line that was waited for");
    let total = line.split('/').nth(1).and_then(|rest| rest.split('K').next()).expect("a total after the slash");
    let total_kib: u64 = total.parse().expect("a number of KiB");

    println!("--mem {MIB}M:{}", line.rsplit(']').next().unwrap_or(line));
    assert!(total_kib <= MIB << 10, "more memory than was given");
    assert!(total_kib + RESERVED_KIB >= MIB << 10, "memory is missing");
}
