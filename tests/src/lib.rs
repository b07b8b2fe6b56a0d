//! The tests' own machinery: the host VM, the place where a test runs, the fixtures of scenarios.
//!
//! The binary `tests` is its command line. [`all`] is what `./run tests` does, [`demo`] what `./run demo` does, and
//! [`kernels`] what `./run kernels` does.

pub mod all;
pub mod bench;
pub mod codes;
pub mod debian;
pub mod demo;
pub mod docs;
pub mod guest;
pub mod hostvm;
pub mod kernels;
pub mod lan;
pub mod namespace;
pub mod peer;
pub mod place;
pub mod probe;
pub mod scenarios;
pub mod sniffer;
pub mod stage;
pub mod traffic;
pub mod vm;
pub mod workspace;
