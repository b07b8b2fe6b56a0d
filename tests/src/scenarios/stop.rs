//! Every way a machine ends has its exit code.

use super::Scenario;
use crate::codes;
use crate::stage::Stage;
use crate::vm::Builder;
use nix::sys::signal::Signal;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "stop::sigterm_presses_the_power_button", run: |stage| power_button(stage, Signal::SIGTERM) },
    Scenario { name: "stop::sigint_presses_the_power_button", run: |stage| power_button(stage, Signal::SIGINT) },
    Scenario { name: "stop::a_guest_that_ignores_the_button_is_stopped_after_the_timeout", run: ignored_button },
    Scenario { name: "stop::a_second_sigterm_stops_at_once", run: second_signal },
    Scenario { name: "stop::every_way_a_stock_kernel_resets_ends_the_machine_and_is_named", run: resets },
    Scenario { name: "stop::a_panic_is_told_from_a_warm_reboot_and_from_sysrq", run: panics },
    Scenario { name: "stop::a_reboot_starts_again_where_that_is_asked_for", run: reboot_restarts },
    Scenario { name: "stop::a_panic_has_its_own_exit_code", run: panic },
    Scenario { name: "stop::the_debug_exit_port_sets_the_exit_code", run: debug_exit },
];

fn power_button(stage: &Stage, signal: Signal) {
    let vm = stage.vm().start();
    vm.wait_for_ready();

    vm.signal(signal);

    vm.wait_for("The power button was pressed");
    assert_eq!(vm.wait_exit(), codes::POWERED_OFF);
}

fn ignored_button(stage: &Stage) {
    // A shell as init does not listen to the button.
    let vm = stage.vm().flag("--stop-timeout", 2).parameter("rdinit=/bin/sh").start();
    vm.wait_for("/ #");

    vm.signal(Signal::SIGTERM);

    assert_eq!(vm.wait_exit(), codes::STOP_TIMEOUT);
}

fn second_signal(stage: &Stage) {
    let vm = stage.vm().flag("--stop-timeout", 600).flag("--log", "info").parameter("rdinit=/bin/sh").start();
    vm.wait_for("/ #");

    vm.signal(Signal::SIGTERM);
    // Two signals sent at once are one to the kernel.
    vm.wait_for_log("Asking the guest to power off");
    vm.signal(Signal::SIGTERM);

    assert_eq!(vm.wait_exit(), codes::KILLED_BY_SIGTERM);
}

/// Words on the kernel's command line, and how it resets then. Without one, a kernel with EFI support on a
/// hardware-reduced machine takes EFI, which is not there, and then the BIOS.
const RESETS: &[(&str, &str)] = &[
    ("reboot=k", "the keyboard controller"),
    ("reboot=a", "the reset register of ACPI"),
    ("reboot=p", "the chipset's reset register, port 0xcf9"),
    ("reboot=b", "a jump to the reset vector"),
    ("", "a jump to the reset vector"),
    ("reboot=t", "a triple fault"),
];

/// Guests whose command line is not ours.
fn resets(stage: &Stage) {
    for (word, way) in RESETS {
        let vm = bare(stage)
            .flag("--cmdline-replace", format_args!("console=ttyS0 quiet {word}"))
            .script("reboot -f")
            .start();

        let code = vm.wait_exit();
        let said = vm.log();
        println!("{:<10} {code}  {}", word, said.trim_end());
        assert_eq!((code, said), (codes::RESET, format!("minivmm: The guest reset itself (by {way})\n")), "{word:?}");
    }
}

/// Command lines of a kernel without a root disk, which has no driver for pvpanic yet, and how its panic ends. The last
/// looks like SysRq B from outside, which is said.
const PANICS: &[(Option<&str>, i32, &str)] = &[
    (None, codes::PANICKED, ""),
    (Some("panic=-1 reboot=panic_warm,b"), codes::PANICKED, ""),
    (Some("panic=1"), codes::RESET, "reset without shutting down: a panic, SysRq or a watchdog"),
];

/// How a user resets a guest that has not panicked, and what is said.
const NO_PANICS: &[(&str, &str)] = &[
    ("echo warm >/sys/kernel/reboot/mode; reboot -f", "The guest reset itself (by the keyboard controller)"),
    ("echo warm >/sys/kernel/reboot/mode; echo b >/proc/sysrq-trigger", "reset without shutting down"),
    ("echo b >/proc/sysrq-trigger", "reset without shutting down: a panic, SysRq or a watchdog"),
];

fn panics(stage: &Stage) {
    let ends = |vm: Builder, what: &str, expected: i32, says: &str| {
        let vm = vm.start();
        let (code, log) = (vm.wait_exit(), vm.log());
        println!("{what:<48} {code}  {}", log.trim_end().replace('\n', " "));
        assert_eq!(code, expected, "{what}");
        assert!(log.contains(says), "{what}: {log}");
    };
    for (words, expected, says) in PANICS {
        let vm = stage.bare_vm().kernel(stage.default_guest().vmlinux).mem("256M");
        let vm = match words {
            Some(words) => vm.flag("--cmdline-replace", format_args!("console=ttyS0 quiet {words}")),
            None => vm.parameter("quiet"),
        };
        ends(vm, words.unwrap_or("no root disk"), *expected, says);
    }
    for (end, says) in NO_PANICS {
        ends(bare(stage).script(&format!("{end}; sleep 60")), end, codes::RESET, says);
    }
}

/// The unpacked kernel: no time is spent on unpacking it again and again.
fn bare(stage: &Stage) -> Builder {
    let guest = stage.default_guest();
    stage.bare_vm().kernel(guest.vmlinux).initrd(guest.initramfs).mem("256M").parameter("quiet")
}

fn reboot_restarts(stage: &Stage) {
    // The second start finds the mark that the first one left on the disk.
    let disk = stage.file("mark");
    std::fs::write(&disk, [0; 4096]).expect("a disk image");
    let vm = stage
        .vm()
        .flag("--on-reboot", "restart")
        .disk(format_args!("path={}", disk.display()))
        .script(
            "if grep -q mark /dev/vda; then echo second=yes; else echo first=yes; echo mark >/dev/vda; sync; reboot; sleep 60; fi",
        )
        .start();

    assert_eq!(vm.value("first"), "yes");
    assert_eq!(vm.value("second"), "yes");
    assert_eq!(vm.wait_exit(), codes::POWERED_OFF);
}

fn panic(stage: &Stage) {
    let vm = stage.vm().script("echo c >/proc/sysrq-trigger").start();

    vm.wait_for("Kernel panic");
    assert_eq!(vm.wait_exit(), codes::PANICKED);
}

fn debug_exit(stage: &Stage) {
    let vm = stage.vm().parameter("minivmm.exit=port").script("exit 42").start();

    assert_eq!(vm.wait_exit(), 42);
}
