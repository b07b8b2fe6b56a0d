//! The few non-PCI devices that a stock kernel needs to boot, tell the time, report a panic and power off.
