//! One case of the matrix, run here: a network, a machine, its answers and what is wrong with them.

use super::Row;
use super::case::{Case, Check, End, OWN, USUAL};
use super::debian::{Debian, Files};
use crate::guest::READY;
use crate::lan::Lan;
use crate::stage::Stage;
use std::time::{Duration, Instant};

/// How long a machine may take, in an emulated processor and on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(420);

/// The questions for each guest. `MemTotal` and CPUs are in the ready line.
const QUESTIONS: &str = "echo release=$(uname -r); echo online=$(cat /sys/devices/system/cpu/online)
echo root=$(awk '$2==\"/\"{print $1,$3}' /proc/mounts); echo modules=$(grep -c ^virtio /proc/modules)
echo msi=$(grep -c MSI /proc/interrupts); echo clock=$(cat /sys/devices/system/clocksource/*/current_clocksource)
ping -c 2 -w 20 $host >/dev/null; echo ping=$?";

/// Said by Debian's `/init` when it leaves to the root that it has mounted.
const INIT_BOTTOM: &str = "Running /scripts/init-bottom";
/// The memory that a kernel may keep for itself of `mem_mib`: the page array, its own image, hash tables.
const KEPT_MIB: u64 = 48;
const KEPT_SHARE: u64 = 20;

/// Runs it to its end.
pub(super) fn run(stage: &Stage, name: &str, kernel: Debian, case: &Case) -> Row {
    let lan = Lan::new();
    let files = Files::at(stage.guests(), kernel);
    let bzimage = if case.initrd.has_agent() { stage.guest(kernel.0).bzimage } else { files.bzimage.clone() };
    let mut builder = stage
        .bare_vm()
        .kernel(bzimage)
        .initrd(files.initrd(case.initrd))
        .cpus(case.cpus)
        .mem(&format!("{}M", case.mem_mib))
        .name("kernel")
        .net(format!("{}{}", lan.net(), case.card));
    if !case.initrd.has_agent() {
        let root = stage.root_disk("32M");
        builder = builder.disk(format!("path={}", root.display())).parameter("root=/dev/vda");
    }
    for word in case.words.split_whitespace() {
        builder = builder.parameter(word);
    }
    let builder = builder.script(&format!("host={}\n{QUESTIONS}\n{}", lan.address(), case.script));
    let start = Instant::now();
    let vm = builder.start();
    let ready = vm.said_within(READY, PATIENCE);
    let seconds = ready.is_some().then(|| start.elapsed().as_secs_f64());
    let code = vm.exit_within(PATIENCE.saturating_sub(start.elapsed()));

    let ready: serde_json::Value = ready.and_then(|line| serde_json::from_str(&line).ok()).unwrap_or_default();
    let console = vm.console();
    let answers = answers(&console);
    let mut row = Row {
        name: name.to_owned(),
        release: ready["kernel"].as_str().unwrap_or_default().to_owned(),
        seconds,
        mem_kib: ready["mem_kib"].as_u64(),
        cpus: ready["cpus"].as_u64(),
        code,
        faults: Vec::new(),
        answers,
        command: builder.command_line(),
    };
    row.faults = match case.end {
        End::Answers => faults(&row, case, &console),
        End::Code(wanted) => {
            let wrong = (code != Some(wanted)).then(|| format!("exit code {code:?}, not {wanted}"));
            wrong.into_iter().collect()
        }
    };
    if !row.faults.is_empty() {
        row.faults.push(format!("\n{}", crate::vm::last_words()));
    }
    row
}

/// The lines `NAME=VALUE` of a guest that is not its kernel's.
fn answers(console: &str) -> Vec<(String, String)> {
    let pairs = console.lines().filter_map(|line| line.trim_end().split_once('='));
    let plain = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    pairs.filter(|(name, _)| plain(name)).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn faults(row: &Row, case: &Case, console: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if row.code != Some(0) {
        faults.push(format!("exit code {:?}", row.code));
    }
    let own = if case.initrd.has_agent() { &[][..] } else { OWN };
    for (name, check) in USUAL.iter().chain(own).chain(case.answers) {
        // `pads=` comes before the ready line, everything else behind it: the last one counts.
        let answer = row.answers.iter().rev().find(|(said, _)| said == name).map(|(_, value)| value.as_str());
        let good = match check {
            Check::Is(wanted) => answer == Some(wanted),
            Check::AtLeast(least) => {
                answer.and_then(|value| value.parse().ok()).is_some_and(|value: u64| value >= *least)
            }
        };
        if !good {
            faults.push(format!("{name} is {answer:?}, not {check:?}"));
        }
    }
    if !case.initrd.has_agent() && !console.contains(INIT_BOTTOM) {
        faults.push("Debian's /init did not get to its end".to_owned());
    }
    let given = case.words.strip_prefix("mem=").and_then(|size| size.strip_suffix('M')?.parse().ok());
    let given = given.unwrap_or(case.mem_mib);
    let kept = KEPT_MIB + given / KEPT_SHARE;
    match row.mem_kib.map(|kib| kib >> 10) {
        Some(seen) if seen <= given && seen + kept >= given => {}
        seen => faults.push(format!("MemTotal is {seen:?} MiB of {given}")),
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_from_what_a_kernel_says() {
        let console = "[    1.5] Command line: root=/dev/vda\r\nnoise\r\nonline=0-3\r\npads=whole 4\r\n";
        let expected =
            [("online", "0-3"), ("pads", "whole 4")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(answers(console), expected);
    }
}
