//! A disk with several queues under fio, which checks what it reads; beside QEMU's disk. The host checks the
//! image afterwards.
//!
//! On demand: `./run tests fio` builds the guest's disk with fio first (`tests/selftests/build`).

use super::Scenario;
use crate::lan::sh;
use crate::peer::{Access, Disk, Machine, Vmm};
use crate::stage::Stage;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

pub(super) const SCENARIOS: &[Scenario] =
    &[Scenario { name: "fio::several_queues_keep_what_fio_writes", run: several_queues }];

const QUEUES: u32 = 2;
const DISK_BYTES: u64 = 16 << 20;
/// The half of it that the guest discards in the end.
const DISCARDED_BYTES: u64 = DISK_BYTES / 2;
const SECTOR_BYTES: u64 = 512;
/// Exit code of a process that was killed by SIGKILL, as shells have it.
const KILLED: &str = "137";

fn several_queues(stage: &Stage) {
    for vmm in Vmm::BOTH {
        on(stage, vmm);
    }
}

fn on(stage: &Stage, vmm: Vmm) {
    let image = stage.file(&format!("{vmm}.img"));
    File::create(&image).and_then(|file| file.set_len(DISK_BYTES)).expect("a disk image");
    let machine = Machine {
        name: "fio".to_owned(),
        guest: stage.selftests_guest(),
        cpus: QUEUES,
        mem_mib: 768,
        cards: Vec::new(),
        disks: vec![
            Disk { path: stage.selftests_disk(), queues: 1, access: Access::ReadOnly },
            Disk { path: image.clone(), queues: QUEUES, access: Access::ReadWrite },
        ],
        parameters: "minivmm.net=off".to_owned(),
        script: "mount -t ext4 -o ro /dev/vda /mnt; cd /mnt
             for d in dev proc sys; do mount --rbind /$d $d; done; for d in run tmp; do mount -t tmpfs $d $d; done
             chroot . /usr/bin/fio-here 2>&1"
            .to_owned(),
    };
    let vm = machine.start(vmm, stage.minivmm(), stage.folder());
    assert_eq!(vm.value("queues"), QUEUES.to_string(), "queues of the disk");
    for part in ["randrw", "trimwrite", "killed", "after", "inflight", "pattern", "discard"] {
        let value = vm.value(part);
        println!("{vmm}: {part}={value}");
        let expected = if part == "killed" { KILLED } else { "0" };
        assert_eq!(value.split_whitespace().next(), Some(expected), "{part} on {vmm}");
    }
    assert_eq!(vm.wait_exit(), 0, "exit code of {vmm}");

    let verified = sh(&format!(
        "cd {} && fio --filename={} --rw=randwrite --bs=4k --size={DISCARDED_BYTES} --verify=crc32c --verify_only \
             --verify_fatal=1 --minimal --name=x 2>&1",
        stage.folder().display(),
        image.display()
    ));
    let allocated = fs::metadata(&image).expect("the disk image").blocks() * SECTOR_BYTES;
    println!("{vmm}: the image verifies on the host, {} KiB of it are allocated", allocated >> 10);
    assert!(!verified.contains("verify"), "fio on the host: {verified}");
    assert!(allocated <= DISCARDED_BYTES, "what was discarded is still allocated: {allocated}");
}
