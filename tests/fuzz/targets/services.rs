#![no_main]
//! See [`fuzz::services`].

libfuzzer_sys::fuzz_target!(init: fuzz::seeds::write_if_asked("services", fuzz::services::seeds), |bytes: &[u8]| fuzz::services::run(bytes));
