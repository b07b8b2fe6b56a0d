//! The few non-PCI devices that a stock kernel needs to boot, tell the time, report a panic and power off.
//!
//! Each is a [`BusDevice`](crate::bus::BusDevice) for the I/O port bus. None has a thread, and none opens anything.
//! The guest's requests to the machine as a whole (power off, reset, an exit code) go to the VMM through
//! [`event::Events`].

mod byte_ports;
mod calendar;
pub mod debug_exit;
pub mod event;
pub mod i8042;
pub mod pit;
pub mod power;
pub mod pvpanic;
pub mod reset;
pub mod reset_control;
pub mod rtc;
pub mod serial;
