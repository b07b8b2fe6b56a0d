#![no_main]
//! See [`fuzz::card`].

libfuzzer_sys::fuzz_target!(init: fuzz::seeds::write_if_asked("card", fuzz::card::seeds), |bytes: &[u8]| fuzz::card::run(bytes));
