//! Stock Debian kernels boot to userland and power off.

use super::Scenario;
use crate::lan::sh;
use crate::stage::Stage;
use images::kernel::Series;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "boot::debian_6_12_in_both_formats_reaches_userland_and_powers_off",
        run: |stage| every_format_and_cpu_count(stage, Series::V6_12),
    },
    Scenario {
        name: "boot::debian_6_1_in_both_formats_reaches_userland_and_powers_off",
        run: |stage| every_format_and_cpu_count(stage, Series::V6_1),
    },
    Scenario { name: "boot::an_initrd_too_large_for_the_memory_below_4_gib_is_loaded_above", run: large_initrd },
];

/// Prints the guest's view of itself.
const DESCRIBE: &str = "cd /sys/class/dmi/id
echo release=$(uname -r); echo cpus=$(nproc)
echo machine=$(cat sys_vendor product_name product_uuid product_serial)
echo oem=$(tr '\\0' '\\n' </sys/firmware/dmi/tables/DMI | grep '^.*io[.]systemd' | sed 's/.*io/io/')";
/// The UUID of the name `booted`.
const UUID: &str = "4ff98c60-d2c2-8753-af1b-e3176bfee3ec";

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
        .name("booted")
        .flag("--smbios", "serial=ds=nocloud;s=http://10.0.0.1/")
        .flag("--smbios", "oem=io.systemd.credential:a=1,2")
        .script(DESCRIBE)
        .start();

    let release = vm.value("release");
    let seen = vm.value("cpus");
    let machine = vm.value("machine");
    let oem = vm.value("oem");
    let script = vm.wait_for_script();
    let code = vm.wait_exit();

    println!("{release:<28} {format:<8} {cpus:>5}  {seen:>4}  {code:>9}");
    assert!(release.starts_with(&format!("{}.", series.name())), "{release} is not of the series");
    assert_eq!(seen, cpus.to_string(), "vCPUs seen by the guest");
    // The UUID is that of the name; who reads the tables finds the OEM string between two zeros.
    assert_eq!(machine, format!("minivmm minivmm {UUID} ds=nocloud;s=http://10.0.0.1/"), "/sys/class/dmi/id");
    assert_eq!(oem, "io.systemd.credential:a=1,2", "SMBIOS structure of OEM strings");
    assert_eq!(script, 0, "exit code of the guest's script");
    assert_eq!(code, 0, "exit code of minivmm");
}

fn large_initrd(stage: &Stage) {
    // More than fits beside a kernel below the 2 GiB that it takes an initrd in, and than is left up to 3 GiB.
    const BYTES: u64 = 3 << 30;
    let (guest, initrd) = (stage.default_guest(), stage.file("initrd"));
    sh(&format!("cp {} {}", guest.initramfs.display(), initrd.display()));
    let mut file = OpenOptions::new().append(true).open(&initrd).expect("the initrd");
    // The kernel stops unpacking here, instead of looking at 3 GiB of zeros one by one.
    file.write_all(b"end").expect("the end of the archive");
    file.set_len(BYTES).expect("a sparse file");

    let vm = stage
        .bare_vm()
        .kernel(&guest.bzimage)
        .initrd(&initrd)
        .mem("6400M")
        .script("echo ramdisk=$(dmesg | grep -o 'RAMDISK: .*')")
        .start();

    let ramdisk = vm.value("ramdisk");
    println!("{ramdisk}");
    let address = ramdisk.split("0x").nth(1).and_then(|rest| rest.split('-').next()).expect("an address");
    assert!(u64::from_str_radix(address, 16).expect("a number") >= 4 << 30, "{ramdisk}");
    assert_eq!(vm.wait_exit(), 0, "exit code of minivmm");
}
