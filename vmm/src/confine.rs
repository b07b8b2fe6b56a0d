//! Confinement: once the VMM holds every descriptor, it gives up what it could get besides.
//!
//! | what | how | whose |
//! |---|---|---|
//! | the host's files, network, processes and users | [`jail`] | the process's |
//! | capabilities, and the way to new ones | `capset`, `no_new_privs` | a thread's, inherited |
//! | files, TCP, signals to others, abstract sockets | [`landlock`] | a thread's, inherited |
//! | system calls | [`seccomp`] | a thread's, inherited, by what it is for |
//! | core dumps, a look into its memory | [`fences`] | the process's |
//!
//! Nothing of it can be undone. The VMM enters the jail before it starts any thread; the last of all is main's own
//! filter for system calls. What a VM is confined by is in its log (`--log debug`).

pub(crate) mod fences;
mod jail;
pub(crate) mod landlock;
mod rehearsal;
mod report;
pub(crate) mod seccomp;

pub(crate) use jail::{Confinement, Users, enter, follow, keeper, services};
pub(crate) use rehearsal::rehearse;
pub(crate) use report::Report;
