//! Every way a machine ends has its exit code.

use rustix::process::Signal;

use super::Story;
use crate::codes;
use crate::stage::Stage;

pub(super) const STORIES: &[Story] = &[
    Story { name: "stop::sigterm_presses_the_power_button", tell: |stage| power_button(stage, Signal::TERM) },
    Story { name: "stop::sigint_presses_the_power_button", tell: |stage| power_button(stage, Signal::INT) },
    Story { name: "stop::a_guest_that_ignores_the_button_is_stopped_after_the_timeout", tell: ignored_button },
    Story { name: "stop::a_second_sigterm_stops_at_once", tell: second_signal },
    Story { name: "stop::a_reboot_ends_the_machine", tell: reboot_exits },
    Story { name: "stop::a_reboot_starts_again_where_that_is_asked_for", tell: reboot_restarts },
    Story { name: "stop::a_panic_has_its_own_exit_code", tell: panic },
    Story { name: "stop::the_debug_exit_port_sets_the_exit_code", tell: debug_exit },
];

fn power_button(stage: &Stage, signal: Signal) {
    let vm = stage.vm().start();
    vm.wait_for_ready();

    vm.signal(signal);

    vm.wait_for("The power button was pressed");
    assert_eq!(vm.wait_exit(), codes::POWERED_OFF);
}

fn ignored_button(stage: &Stage) {
    // A shell as init: nobody listens to the button.
    let vm = stage.vm().flag("--stop-timeout", 2).parameter("rdinit=/bin/sh").start();
    vm.wait_for("/ #");

    vm.signal(Signal::TERM);

    assert_eq!(vm.wait_exit(), codes::STOP_TIMEOUT);
}

fn second_signal(stage: &Stage) {
    let vm = stage.vm().flag("--stop-timeout", 600).flag("--log", "info").parameter("rdinit=/bin/sh").start();
    vm.wait_for("/ #");

    vm.signal(Signal::TERM);
    // Two signals sent at once are one to the kernel.
    vm.wait_for_log("Asking the guest to power off");
    vm.signal(Signal::TERM);

    assert_eq!(vm.wait_exit(), codes::KILLED_BY_SIGTERM);
}

fn reboot_exits(stage: &Stage) {
    let vm = stage.vm().flag("--on-reboot", "exit").script("reboot").start();

    assert_eq!(vm.wait_exit(), codes::POWERED_OFF);
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
