//! Everything that talks to `/dev/kvm`: the VM and its memory slots, vCPUs and their CPUID, interrupts and doorbells.
//!
//! No ioctl is visible outside of this module. Exits arrive as plain data ([`exit::Exit`]); interrupts and doorbells
//! are the traits of the `devices` crate.
//!
//! The order of the calls in [`vm`] is the start-up time: a memory slot that is set once an interrupt controller exists
//! costs milliseconds, and an eventfd that is registered before anybody needs it costs a grace period of the host
//! kernel.

pub(crate) mod cpuid;
mod doorbell;
mod error;
pub(crate) mod exit;
mod irq;
pub(crate) mod kick;
mod registers;
mod speed;
mod system;
mod topology;
pub(crate) mod vcpu;
mod vm;

pub(crate) use error::Error;
pub(crate) use speed::Speed;
pub(crate) use system::{Created, KvmSystem};
pub(crate) use vcpu::{LocalApic, Vcpu};
pub(crate) use vm::{IoApic, Vm};
