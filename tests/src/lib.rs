//! The tests' own machinery: the host VM, the place where a test runs, the fixture that stories are told with.
//!
//! The binary `tests` is its command line.

pub mod hostvm;
