//! Jails: minivmm's processes give up, for good, capabilities, users, namespaces and the root folder.
//!
//! ```text
//! supervisor: begin -> fork VMM -> enclose itself in new namespaces and an empty root
//!                         '------> join the supervisor's namespaces -> become another user -> drop capabilities
//! ```
//!
//! A process joins namespaces that its supervisor has made, because making them takes a millisecond, in which the
//! VMM sets up its machine.

pub mod capabilities;
mod identity;
mod namespaces;
pub mod pidfd;
pub mod process;
mod root;

pub use identity::{Identity, Role};
pub use namespaces::{Outer, begin, enclose, isolate, join};
