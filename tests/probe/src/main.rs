//! The bare-metal probe guest: drives a VMM's devices register by register and reports what it finds on the serial
//! port.
//!
//! It is a PVH kernel for any VMM: started with `--kernel probe`, it checks what the command line names and ends the
//! VM.
//!
//! Command line words: `probe=SUITE[,SUITE..]` with `platform`, `pci`, `common`, `status`, `msix`, `device` (or one
//! kind: `net`, `blk`, `rng`), `hostile` (or only a card's: `card`), `all` (the default); `probe=idle` does nothing at
//! all, for start-time measurements; `probe=bench` puts the card under load (`bench`); `strict` also checks what only
//! minivmm promises; `echo` says that a peer sends test frames back; `vhost` says that the host's kernel reads a card's
//! rings; `end=reset|panic|triple-fault` ends a clean run so instead of through the debug-exit port.
//!
//! It promises to touch nothing but the devices of bus 0, the legacy ports it names, and its own 32 MiB of memory; to
//! bound every wait; and to report an exception instead of hanging. It does not promise to leave a device configured,
//! and writes to the last sector of writable disks (and restores it).
//!
//! Not supported: virtio-mmio, buses behind bridges, more than one CPU, packed rings, less than 32 MiB of memory.

#![no_std]
#![no_main]

mod acpi;
mod arena;
mod bench;
mod checks;
mod cpu;
mod entry;
mod interrupts;
mod memory;
mod paging;
mod pci;
mod report;
mod start_info;
mod virtio;

use core::panic::PanicInfo;
use report::{End, Exit};
use start_info::StartInfo;

/// Where `entry` arrives in ring 3, with the physical address of the PVH start info.
#[unsafe(no_mangle)]
extern "C" fn ring3_main(start_info: u64) -> ! {
    interrupts::install();
    report::Serial::prepare();
    let start = StartInfo::read(start_info);
    if start.value("probe") == Some("idle") {
        interrupts::sleep();
    }
    if start.value("probe") == Some("bench") {
        bench::run(&start);
    }
    let end = match start.value("end") {
        Some("reset") => End::Reset,
        Some("panic") => End::Panic,
        Some("triple-fault") => End::TripleFault,
        _ => End::Exit,
    };
    checks::run(&start).finish(end)
}

unsafe extern "C" {
    static fault_vector: u8;
    static fault_error: u8;
    static fault_rip: u8;
    static fault_address: u8;
}

/// Where an exception arrives, already back in ring 3.
#[unsafe(no_mangle)]
extern "C" fn fault_report() -> ! {
    let [vector, error, rip, address] =
        [&raw const fault_vector, &raw const fault_error, &raw const fault_rip, &raw const fault_address]
            .map(|cell| cpu::read64(cell.addr() as u64));
    line!("not ok probe exception {vector}: error {error:#x} at {rip:#x}, address {address:#x}");
    report::exit(Exit::Broken)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    line!("not ok probe panic: {info}");
    report::exit(Exit::Broken)
}
