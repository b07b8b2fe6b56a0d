//! PCI as a stock kernel finds it: one root bus with a host bridge, reached through ECAM and through ports CF8/CFC.
//!
//! Functions are conventional PCI headers of type 0 with one 64-bit memory BAR and MSI-X. There are no INTx pins, no
//! bridges and no I/O BARs.

pub mod bdf;
pub mod config;
pub mod function;
pub mod host_bridge;
pub mod msix;
pub mod root;
