//! Stock Debian kernels boot to userland and power off.

use std::path::Path;

use images::kernel::Series;

use super::Story;
use crate::stage::Stage;

pub(super) const STORIES: &[Story] = &[
    Story {
        name: "boot::debian_6_12_in_both_formats_reaches_userland_and_powers_off",
        tell: |stage| every_format_and_cpu_count(stage, Series::V6_12),
    },
    Story {
        name: "boot::debian_6_1_in_both_formats_reaches_userland_and_powers_off",
        tell: |stage| every_format_and_cpu_count(stage, Series::V6_1),
    },
];

fn every_format_and_cpu_count(stage: &Stage, series: Series) {
    let guest = stage.guest(series);
    println!("kernel                       format   vCPUs  seen  exit code");
    for (format, kernel) in [("bzImage", &guest.bzimage), ("vmlinux", &guest.vmlinux)] {
        for cpus in [1, 2, 4] {
            boots(stage, series, format, kernel, cpus);
        }
    }
}

fn boots(stage: &Stage, series: Series, format: &str, kernel: &Path, cpus: u32) {
    let vm = stage
        .bare_vm()
        .kernel(kernel)
        .initrd(stage.guest(series).initramfs)
        .cpus(cpus)
        .mem("512M")
        .script("echo release=$(uname -r); echo cpus=$(nproc)")
        .start();

    let release = vm.value("release");
    let seen = vm.value("cpus");
    let script = vm.wait_for_script();
    let code = vm.wait_exit();

    println!("{release:<28} {format:<8} {cpus:>5}  {seen:>4}  {code:>9}");
    assert!(release.starts_with(&format!("{}.", series.name())), "{release} is not of the series");
    assert_eq!(seen, cpus.to_string(), "vCPUs seen by the guest");
    assert_eq!(script, 0, "exit code of the guest's script");
    assert_eq!(code, 0, "exit code of minivmm");
}
