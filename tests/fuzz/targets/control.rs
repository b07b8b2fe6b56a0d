#![no_main]
//! See [`fuzz::control`].

libfuzzer_sys::fuzz_target!(init: fuzz::seeds::write_if_asked("control", fuzz::control::seeds), |bytes: &[u8]| fuzz::control::run(bytes));
