//! A root disk of Debian packages behind NAT: cloud-init's seed, ssh by a forwarded port, kexec, reboot, power-off. The
//! kernel's own words are few, as each letter on a serial port takes an emulated processor long.
//!
//! Each boot of it takes minutes there, so these scenarios run only where they are named: `./run tests debian`.

use super::Scenario;
use crate::codes;
use crate::debian::{Debian, Seed, Ssh};
use crate::lan::sh;
use crate::stage::Stage;
use crate::vm::Builder;
use nix::sys::signal::Signal;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "debian::cloud_init_takes_its_seed_and_ssh_answers_on_the_forwarded_port", run: seeded },
    Scenario { name: "debian::kexec_by_either_system_call_gets_back_to_ssh", run: kexec },
    Scenario { name: "debian::a_reboot_ends_with_96_and_the_disk_starts_again", run: reboot },
    Scenario { name: "debian::the_power_button_ends_with_0_and_a_clean_disk", run: power_button },
    Scenario { name: "debian::its_initrd_with_an_empty_disk_resets_or_gives_a_shell", run: empty_disk },
];

/// Anything may take this long: a boot takes four minutes on an idle machine, and ten beside others.
const PATIENCE: Duration = Duration::from_secs(1800);
/// The port of the host that leads to the guest's ssh, and the network's host.
const PORT: u16 = 2222;
const GATEWAY: &str = "10.99.0.1";
const NET: &str = "nat,subnet=10.99.0.0/24,reach=host+world,forward=tcp:2222:22";
/// The kernel's command line beyond the default one.
const WORDS: &str = "root=/dev/vda ro quiet systemd.show_status=no mitigations=off";
/// Where only the machine matters: four runs of a Python program less.
const WITHOUT_CLOUD_INIT: &str = "cloud-init=disabled";

fn machine(stage: &Stage, debian: &Debian, disk: &Path) -> Builder {
    debian.copy_disk(disk).expect("a copy of the disk");
    start_again(stage, debian, disk)
}

fn start_again(stage: &Stage, debian: &Debian, disk: &Path) -> Builder {
    stage
        .bare_vm()
        .kernel(debian.kernel())
        .initrd(debian.initrd())
        .mem("1G")
        .name("deb")
        .disk(format_args!("path={}", disk.display()))
        .net(NET)
        .parameter(WORDS)
        .patience(PATIENCE)
}

fn ssh(stage: &Stage, debian: &Debian, user: &str) -> Ssh {
    debian.ssh(user, PORT, &stage.file("")).expect("a copy of the key")
}

fn answer(ssh: &Ssh, command: &str) -> String {
    ssh.wait(command, PATIENCE, |_| true).unwrap_or_else(|error| panic!("{error}")).trim().to_owned()
}

/// Has systemd end what runs; the connection may end before the command does.
fn ask(ssh: &Ssh, verb: &str) {
    let output = ssh.attempt(&format!("systemctl --no-block {verb}")).expect("ssh starts");
    println!("systemctl {verb}: {}", output.status);
}

/// A file system that was unmounted, and has nothing to mend.
fn expect_clean(disk: &Path) {
    let disk = disk.display();
    let state = sh(&format!("dumpe2fs -h {disk} 2>/dev/null | grep -e 'Filesystem state' -e 'Filesystem features'"));
    assert!(state.contains("clean") && !state.contains("needs_recovery"), "{state}");
    let check = sh(&format!("e2fsck -fn {disk} 2>&1"));
    println!("e2fsck: {}", check.lines().last().unwrap_or_default());
    assert!(check.contains("Pass 5"), "not a whole check: {check}");
}

fn seeded(stage: &Stage) {
    let (debian, disk) = (stage.debian(), stage.file("root.ext4"));
    let key = debian.public_key().expect("the public key");
    let listener = TcpListener::bind(("0.0.0.0", 0)).expect("a port");
    let port = listener.local_addr().expect("the address of a bound socket").port();
    let user_data = format!(
        "#cloud-config\nhostname: from-user-data\nlocale: false\nssh_genkeytypes: [ed25519]\n\
         ssh_authorized_keys: ['{key}']\n"
    );
    Seed { user_data, meta_data: "instance-id: first\n".to_owned() }.serve(listener);
    let vm = machine(stage, &debian, &disk)
        .flag("--smbios", format_args!("serial=ds=nocloud-net;s=http://{GATEWAY}:{port}/"))
        .flag("--smbios", "oem=io.systemd.credential:greeting=good morning")
        .start();

    let ssh = ssh(stage, &debian, "debian");
    let told = answer(
        &ssh,
        "echo $(hostname) $(cloud-id) $(sudo systemd-creds --system cat greeting)
         echo $(resolvectl dns | grep -o '10[.].*') $(networkctl --no-legend list | grep -c routable)",
    );

    println!("{told}");
    assert_eq!(
        told,
        format!("from-user-data nocloud good morning\n{GATEWAY} 1"),
        "the seed, the credential, the lease"
    );
    drop(vm);
}

fn kexec(stage: &Stage) {
    let (debian, disk) = (stage.debian(), stage.file("root.ext4"));
    let vm = machine(stage, &debian, &disk).cpus(2).parameter(WITHOUT_CLOUD_INIT).start();
    let ssh = ssh(stage, &debian, "root");
    let describe = "cat /proc/sys/kernel/random/boot_id; echo $(nproc) $(cat /sys/class/dmi/id/product_name)";
    let mut boot = answer(&ssh, describe);
    println!("first: {boot}");

    for call in ["-c", "-s"] {
        let load = format!("kexec {call} -l /vmlinuz --initrd=/initrd.img --reuse-cmdline");
        let loaded = ssh.attempt(&load).expect("ssh starts");
        assert!(loaded.status.success(), "{load}: {}", String::from_utf8_lossy(&loaded.stderr));
        ask(&ssh, "kexec");
        let next = ssh.wait(describe, PATIENCE, |said| said.lines().next() != boot.lines().next());
        let next = next.unwrap_or_else(|error| panic!("after kexec {call}: {error}")).trim().to_owned();
        println!("kexec {call}: {next}");
        assert_eq!(next.lines().nth(1), Some("2 minivmm"), "processors and DMI after kexec {call}");
        boot = next;
    }

    ask(&ssh, "poweroff");
    assert_eq!(vm.wait_exit(), codes::POWERED_OFF);
    expect_clean(&disk);
}

fn reboot(stage: &Stage) {
    let (debian, disk) = (stage.debian(), stage.file("root.ext4"));
    let vm = machine(stage, &debian, &disk).parameter(WITHOUT_CLOUD_INIT).start();
    let ssh = ssh(stage, &debian, "root");
    answer(&ssh, "echo kept >/root/mark");
    ask(&ssh, "reboot");
    let (code, log) = (vm.wait_exit(), vm.log());
    println!("{code} {log}");
    assert_eq!(code, codes::RESET);
    assert!(log.contains("The guest reset itself"), "{log}");
    expect_clean(&disk);

    let vm = start_again(stage, &debian, &disk).parameter(WITHOUT_CLOUD_INIT).start();
    assert_eq!(answer(&ssh, "cat /root/mark"), "kept");
    ask(&ssh, "poweroff");
    assert_eq!(vm.wait_exit(), codes::POWERED_OFF);
    expect_clean(&disk);
}

fn power_button(stage: &Stage) {
    let (debian, disk) = (stage.debian(), stage.file("root.ext4"));
    let stop_timeout = PATIENCE.as_secs();
    let vm = machine(stage, &debian, &disk).parameter(WITHOUT_CLOUD_INIT).flag("--stop-timeout", stop_timeout).start();
    assert_eq!(answer(&ssh(stage, &debian, "root"), "systemctl is-active systemd-logind"), "active");

    vm.signal(Signal::SIGTERM);

    assert_eq!(vm.wait_exit(), codes::POWERED_OFF);
    expect_clean(&disk);
}

fn empty_disk(stage: &Stage) {
    let (debian, disk) = (stage.debian(), stage.file("empty"));
    sh(&format!("truncate -s 64M {}", disk.display()));
    let machine = || {
        let machine = stage.bare_vm().kernel(debian.kernel()).initrd(debian.initrd()).patience(PATIENCE);
        machine.disk(format_args!("path={}", disk.display()))
    };
    let vm = machine().parameter(WORDS).start();
    let (code, log) = (vm.wait_exit(), vm.log());
    println!("with the default command line: {code} {log}");
    assert_eq!(code, codes::RESET);
    assert!(log.contains("The guest reset itself"), "{log}");

    let vm = machine().flag("--cmdline-replace", format_args!("console=ttyS0 {WORDS}")).start();
    vm.wait_for("(initramfs)");
    vm.type_in("poweroff -f\n");
    let code = vm.wait_exit();
    println!("without panic=: a shell, and {code} after poweroff -f in it");
    assert_eq!(code, codes::POWERED_OFF);
}
