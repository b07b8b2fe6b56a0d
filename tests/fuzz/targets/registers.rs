#![no_main]
//! See [`fuzz::registers`].

libfuzzer_sys::fuzz_target!(init: fuzz::seeds::write_if_asked("registers", fuzz::registers::seeds), |bytes: &[u8]| fuzz::registers::run(bytes));
