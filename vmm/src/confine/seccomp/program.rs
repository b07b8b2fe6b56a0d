//! Lists as programs for the kernel (classic BPF, seccomp(2)).
//!
//! The kernel works out for each of its thousand numbers whether a filter always allows it, whenever a thread installs
//! one. So a program looks for a number by halves, as in a sorted list: that takes ten steps and not two hundred, and a
//! tenth of the time. The crate `seccompiler` compares one number after the other.

use super::rule::{Condition, Rule};
use seccompiler::{BpfProgram, sock_filter};
use std::collections::BTreeMap;

/// Instructions (linux/bpf_common.h): of a word at an offset of `struct seccomp_data`, or of a constant.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_NOT_LESS: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data` (linux/seccomp.h).
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const ARGS_AT: u32 = 16;

/// `AUDIT_ARCH_X86_64` (linux/audit.h).
const X86_64: u32 = 0xc000_003e;

/// A program's answer about a call.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// This, whatever its arguments.
    Always(u32),
    /// It is allowed if all conditions of one of these hold.
    IfAny(Vec<Vec<Condition>>),
}

/// The program that allows what is in `lists`; what is in none of them meets `action` (`SECCOMP_RET_*`).
///
/// `clone3` looks as if the kernel did not have it: its flags are in memory, where no filter sees them. The C library
/// then calls `clone`, whose flags say whether a thread is to be made or a process.
pub(super) fn allowing(lists: &[&[Rule]], action: u32) -> BpfProgram {
    let mut calls: BTreeMap<u32, Answer> = BTreeMap::new();
    for rule in lists.iter().copied().flatten() {
        let conditions = rule.conditions();
        let answer = calls.entry(rule.number()).or_insert_with(|| Answer::IfAny(Vec::new()));
        match answer {
            _ if rule.number == libc::SYS_clone3 => {
                *answer = Answer::Always(libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs());
            }
            // Without conditions it is allowed whatever its arguments, also if another list asks for some.
            answer if conditions.is_empty() => *answer = Answer::Always(libc::SECCOMP_RET_ALLOW),
            Answer::IfAny(others) if !others.contains(&conditions) => others.push(conditions),
            Answer::IfAny(_) | Answer::Always(_) => {}
        }
    }
    program(&calls.into_iter().collect::<Vec<_>>(), action)
}

/// The program for which what is in `list` meets `action`, and all else is allowed.
pub(super) fn refusing(list: &[Rule], action: u32) -> BpfProgram {
    let calls: BTreeMap<u32, Answer> = list.iter().map(|rule| (rule.number(), Answer::Always(action))).collect();
    program(&calls.into_iter().collect::<Vec<_>>(), libc::SECCOMP_RET_ALLOW)
}

/// The program with an answer for each of these calls, which are sorted, and `other` for the rest.
fn program(calls: &[(u32, Answer)], other: u32) -> BpfProgram {
    let mut program =
        vec![load(ARCH_AT), jump_if(JUMP_EQUAL, X86_64, 1, 0), end(libc::SECCOMP_RET_KILL_PROCESS), load(NUMBER_AT)];
    program.extend(search(calls, other));
    program
}

/// Looks for the number among these calls.
fn search(calls: &[(u32, Answer)], other: u32) -> BpfProgram {
    let (left, right) = calls.split_at(calls.len() / 2);
    match (left, right) {
        (_, []) => vec![end(other)],
        ([], [(number, answer), ..]) => call(*number, answer, other),
        (_, [(first, _), ..]) => {
            let left = search(left, other);
            let over_left = u32::try_from(left.len()).unwrap_or(u32::MAX);
            // A condition jumps over 255 instructions at most.
            let mut program = vec![jump_if(JUMP_NOT_LESS, *first, 0, 1), jump(over_left)];
            program.extend(left);
            program.extend(search(right, other));
            program
        }
    }
}

/// The answer about the call with this number, and `other` about any other.
fn call(number: u32, answer: &Answer, other: u32) -> BpfProgram {
    let mut program = vec![jump_if(JUMP_EQUAL, number, 1, 0), end(other)];
    match answer {
        Answer::Always(answer) => program.push(end(*answer)),
        Answer::IfAny(alternatives) => {
            alternatives.iter().for_each(|conditions| program.extend(if_all(conditions)));
            program.push(end(other));
        }
    }
    program
}

/// Allows the call if all conditions hold, and otherwise goes on behind.
fn if_all(conditions: &[Condition]) -> BpfProgram {
    // Backwards, as each condition jumps over what is behind it.
    conditions.iter().rev().fold(vec![end(libc::SECCOMP_RET_ALLOW)], |rest, condition| {
        let Condition { index, upper, mask, value } = *condition;
        let over_rest = u8::try_from(rest.len()).unwrap_or(u8::MAX);
        let mut program = vec![load(ARGS_AT + 8 * u32::from(index) + if upper { 4 } else { 0 })];
        if mask != u32::MAX {
            program.push(sock_filter { code: AND, jt: 0, jf: 0, k: mask });
        }
        program.push(jump_if(JUMP_EQUAL, value, 0, over_rest));
        program.extend(rest);
        program
    })
}

fn load(offset: u32) -> sock_filter {
    sock_filter { code: LOAD, jt: 0, jf: 0, k: offset }
}

fn jump(over: u32) -> sock_filter {
    sock_filter { code: JUMP, jt: 0, jf: 0, k: over }
}

fn jump_if(code: u16, constant: u32, over_if: u8, over_if_not: u8) -> sock_filter {
    sock_filter { code, jt: over_if, jf: over_if_not, k: constant }
}

fn end(answer: u32) -> sock_filter {
    sock_filter { code: RETURN, jt: 0, jf: 0, k: answer }
}

#[cfg(test)]
mod tests {
    use super::super::{Thread, Vhost};
    use super::*;

    const OTHER: u32 = libc::SECCOMP_RET_KILL_PROCESS;

    /// The result of the kernel's interpreter for a call: the answer, and the steps that it takes.
    fn run(program: &[sock_filter], arch: u32, number: u32, args: [u64; 6]) -> (u32, usize) {
        let word = |offset: u32| match offset {
            NUMBER_AT => number,
            ARCH_AT => arch,
            _ => {
                let arg = args[usize::try_from((offset - ARGS_AT) / 8).unwrap()];
                u32::try_from(if offset.is_multiple_of(8) { arg & 0xffff_ffff } else { arg >> 32 }).unwrap()
            }
        };
        let (mut at, mut accumulator) = (0, 0);
        for steps in 1.. {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let take = |holds: bool| usize::from(if holds { jt } else { jf });
            match code {
                LOAD => accumulator = word(k),
                AND => accumulator &= k,
                JUMP => at += usize::try_from(k).unwrap(),
                JUMP_EQUAL => at += take(accumulator == k),
                JUMP_NOT_LESS => at += take(accumulator >= k),
                RETURN => return (k, steps),
                code => panic!("{code:#x}"),
            }
        }
        unreachable!()
    }

    /// The answer that the lists mean.
    fn meant(lists: &[&[Rule]], number: u32, args: [u64; 6]) -> u32 {
        let holds = |Condition { index, upper, mask, value }: &Condition| {
            let arg = args[usize::from(*index)];
            let half = if *upper { arg >> 32 } else { arg & 0xffff_ffff };
            u32::try_from(half).unwrap() & mask == *value
        };
        let rules = lists.iter().copied().flatten().filter(|rule| rule.number() == number);
        let is_allowed = rules.clone().any(|rule| rule.conditions().iter().all(holds));
        match is_allowed {
            true if number == u32::try_from(libc::SYS_clone3).unwrap() => {
                libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs()
            }
            true => libc::SECCOMP_RET_ALLOW,
            false => OTHER,
        }
    }

    #[test]
    fn every_call_of_every_kind_of_thread_meets_what_the_lists_mean() {
        for thread in Thread::ALL {
            let lists = thread.lists(Vhost::Some);
            let program = allowing(&lists, OTHER);
            // What the rules compare with, what is next to it, and other halves of it.
            let values = lists.iter().copied().flatten().flat_map(|rule| rule.conditions());
            let mut values: Vec<u64> = values.map(|condition| condition.value.into()).chain([0, u64::MAX]).collect();
            values.sort_unstable();
            values.dedup();
            let listed: Vec<u32> = lists.iter().copied().flatten().map(Rule::number).collect();
            for number in (0..600).chain([0x4000_0000, 0x4000_0010, u32::MAX]) {
                // The arguments of others are not looked at, one of which is next to each.
                let is_near = listed.iter().any(|near| near.abs_diff(number) <= 1);
                for value in values.iter().take(if is_near { usize::MAX } else { 1 }) {
                    for arg in [*value, value ^ 1, value ^ 4, value | 1 << 32] {
                        for index in 0..6 {
                            let mut args = [std::process::id().into(), 0, 0, 0, 0, 0];
                            args[index] = arg;
                            let expected = meant(&lists, number, args);
                            let (answer, _) = run(&program, X86_64, number, args);
                            assert_eq!(answer, expected, "{} {number} {args:x?}", thread.name());
                        }
                    }
                }
            }
            assert_eq!(run(&program, 0x4000_0003, 0, [0; 6]).0, OTHER, "32-bit calls");
        }
    }

    #[test]
    fn number_is_found_in_few_steps() {
        for thread in Thread::ALL {
            let program = allowing(&thread.lists(Vhost::Some), OTHER);
            let steps = (0..600).filter(|number| *number != 16).map(|number| run(&program, X86_64, number, [0; 6]).1);
            assert!(steps.max().unwrap() < 40, "{}", thread.name());
        }
    }

    #[test]
    fn list_of_what_is_refused_allows_the_rest() {
        let list = [Rule::new(libc::SYS_ptrace, "SYS_ptrace"), Rule::new(libc::SYS_mount, "SYS_mount")];
        let program = refusing(&list, OTHER);
        for number in 0..600 {
            let is_listed = list.iter().any(|rule| rule.number() == number);
            let expected = if is_listed { OTHER } else { libc::SECCOMP_RET_ALLOW };
            assert_eq!(run(&program, X86_64, number, [0; 6]).0, expected, "{number}");
        }
    }
}
