//! Disks keep what a guest writes, and refuse it where they are read-only.

use super::Scenario;
use crate::lan::sh;
use crate::stage::Stage;
use std::fs;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "disk::an_ext4_root_keeps_what_was_written_and_stays_clean", run: ext4_root },
    Scenario { name: "disk::a_read_only_disk_refuses_writes_and_stays_as_it_was", run: read_only },
    Scenario { name: "disk::several_disks_have_their_serials_blocks_queues_and_cache_modes", run: serials },
    Scenario { name: "disk::partitions_in_blocks_of_4096_bytes_are_found", run: large_blocks },
];

/// Bytes that the guest writes, 8 MiB of numbers.
const CONTENTS: &str = "seq 1 1200000";

fn ext4_root(stage: &Stage) {
    let disk = stage.root_disk("1G");

    let vm = stage
        .vm()
        .disk(format_args!("path={}", disk.display()))
        .parameter("root=/dev/vda rw")
        .script(&format!(
            "echo root=$(grep ' / ' /proc/mounts); {CONTENTS} >/written; echo sum=$(sha256sum </written); sync"
        ))
        .start();
    let root = vm.value("root");
    let sum = vm.value("sum");
    assert_eq!(vm.wait_exit(), 0, "exit code of minivmm");

    assert!(root.starts_with("/dev/vda / ext4 rw"), "the root is {root}");
    let check = sh(&format!("e2fsck -fn {} 2>&1", disk.display()));
    println!("root {root}; after power-off: {}", check.lines().last().unwrap_or_default());
    assert!(check.contains("Pass 5"), "not a whole check: {check}");
    let copy = stage.file("written");
    sh(&format!("debugfs -R 'dump /written {}' {} 2>&1", copy.display(), disk.display()));
    let kept = sh(&format!("sha256sum <{}", copy.display()));
    assert_eq!(kept.split_whitespace().next(), sum.split_whitespace().next(), "SHA-256 of what the guest wrote");
}

fn read_only(stage: &Stage) {
    let disk = stage.root_disk("64M");
    let before = sh(&format!("sha256sum {}", disk.display()));

    let vm = stage
        .vm()
        .disk(format_args!("path={},readonly=on", disk.display()))
        .script(
            "echo flag=$(cat /sys/block/vda/ro); dd if=/dev/zero of=/dev/vda bs=512 count=1 2>/tmp/e; echo dd=$?
             mount -o rw /dev/vda /mnt 2>/tmp/e; touch /mnt/x; echo touch=$?",
        )
        .start();

    assert_eq!(vm.value("flag"), "1", "the read-only flag in the guest");
    assert_ne!(vm.value("dd"), "0", "exit code of a write to the device");
    assert_ne!(vm.value("touch"), "0", "exit code of a write to the file system");
    assert_eq!(vm.wait_exit(), 0, "exit code of minivmm");
    assert_eq!(sh(&format!("sha256sum {}", disk.display())), before, "the image's contents");
}

fn serials(stage: &Stage) {
    let mut machine = stage.vm();
    for (number, mib) in [(0, 1), (1, 2), (2, 3)] {
        let disk = stage.file(&format!("disk{number}"));
        let file = fs::File::create(&disk).expect("a disk image");
        file.set_len(mib << 20).expect("a disk image's size");
        let queues = if number == 1 { ",queues=1" } else { "" };
        machine = machine.disk(format_args!("path={},serial=disk-{number}{queues}", disk.display()));
    }

    let vm = machine
        .cpus(2)
        .script(
            "for d in vda vdb vdc; do echo $d=$(cat /sys/block/$d/serial) $(cat /sys/block/$d/size); done
             cd /sys/block/vda; echo blocks=$(cat queue/logical_block_size) $(cat queue/physical_block_size)
             echo queues=$(ls mq | wc -w) $(ls /sys/block/vdb/mq | wc -w); echo cache=$(cat cache_type)
             echo write through >cache_type; dd if=/dev/urandom of=/tmp/a bs=4k count=64 2>/tmp/e
             dd if=/tmp/a of=/dev/vda bs=4k oflag=direct 2>/tmp/e
             dd if=/dev/vda of=/tmp/b bs=4k count=64 iflag=direct 2>/tmp/e
             cmp /tmp/a /tmp/b; echo through=$? $(cat cache_type)",
        )
        .start();

    assert_eq!(vm.value("vda"), "disk-0 2048");
    assert_eq!(vm.value("vdb"), "disk-1 4096");
    assert_eq!(vm.value("vdc"), "disk-2 6144");
    assert_eq!(vm.value("blocks"), "512 4096", "logical and physical blocks");
    assert_eq!(vm.value("queues"), "2 1", "queues by the number of vCPUs, and one where it was asked for");
    assert_eq!(vm.value("cache"), "write back");
    assert_eq!(vm.value("through"), "0 write through", "what was written in write-through mode reads back");
    assert_eq!(vm.wait_exit(), 0, "exit code of minivmm");
}

fn large_blocks(stage: &Stage) {
    let [whole, named, untold] = ["whole", "named", "untold"].map(|name| stage.file(name).display().to_string());
    // A block device with such blocks, the image of one, and the same without a word about it.
    let device = sh(&format!("modprobe loop; truncate -s 8M {whole} && losetup -b 4096 --find --show {whole}"));
    let device = device.trim();
    sh(&format!("echo size=4M | sfdisk -qX gpt {device} && cp {whole} {named} && cp {whole} {untold}"));
    let disks = [format!("path={device}"), format!("path={named},block-size=4096"), format!("path={untold}")];
    let machine = disks.into_iter().fold(stage.vm(), |machine, disk| machine.disk(disk));

    let vm = machine
        .script(
            "for d in vda vdb vdc; do
                echo $d=$(cat /sys/block/$d/queue/logical_block_size) $(cat /sys/block/$d/${d}1/size 2>&1)
             done",
        )
        .start();

    let [device, image, untold] = ["vda", "vdb", "vdc"].map(|name| vm.value(name));
    println!("block size and sectors of partition 1: {device}; {image}; {untold}");
    assert_eq!((device.as_str(), image.as_str()), ("4096 8192", "4096 8192"));
    assert!(untold.starts_with("512 cat:"), "{untold}");
    vm.wait_for_log("add block-size=4096");
    assert_eq!(vm.wait_exit(), 0, "exit code of minivmm");
}
