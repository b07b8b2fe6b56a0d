//! The interrupt descriptor table, the local APIC, counters of arrived messages, and the pins of the I/O APIC.
//!
//! Handlers run in ring 0 and only count (entry.rs); everything here runs in ring 3. Interrupts are always enabled
//! there. The local APIC is used in xAPIC mode, its mode at reset (Intel SDM 3A, 11.4).

use crate::cpu;
use crate::entry::{FIRST_VECTOR, STUB_BYTES, VECTORS};

const APIC: u64 = 0xfee0_0000;
const APIC_ID: u64 = APIC + 0x20;
const APIC_TASK_PRIORITY: u64 = APIC + 0x80;
const APIC_SPURIOUS: u64 = APIC + 0xf0;
/// The interrupts that wait for the processor, 32 to a register (Intel SDM 3A, 11.8.4).
const APIC_REQUESTS: u64 = APIC + 0x200;
/// A task priority below which no interrupt comes in.
const PRIORITY_OF_ALL: u32 = 0xf0;
/// Register select and window of the I/O APIC, and the first of its redirection entries (82093AA 3.0).
const IO_APIC_SELECT: u64 = 0xfec0_0000;
const IO_APIC_WINDOW: u64 = 0xfec0_0010;
const IO_APIC_ENTRIES: u32 = 0x10;
/// Bits of an entry's lower half.
const ENTRY_ACTIVE_LOW: u32 = 1 << 13;
const ENTRY_LEVEL: u32 = 1 << 15;
const ENTRY_MASKED: u32 = 1 << 16;
const SPURIOUS_VECTOR: u8 = 0xff;
/// Invalid opcode: the exception that one instruction of ring 3 causes on every hypervisor, which cannot be said of
/// `int`.
const INVALID_OPCODE: u8 = 6;
const RING0_CODE: u64 = 0x08;

unsafe extern "C" {
    static idt: u8;
    static exception_stubs: u8;
    static interrupt_stubs: u8;
    static spurious_stub: u8;
    static halt_stub: u8;
    static wait_stub: u8;
    static interrupt_counts: u8;
}

/// Fills the descriptor table and enables the local APIC. Call once, before the first message may arrive.
pub(crate) fn install() {
    let exceptions = (&raw const exception_stubs).addr() as u64;
    let messages = (&raw const interrupt_stubs).addr() as u64;
    for vector in 0..32 {
        gate(vector, exceptions + STUB_BYTES * u64::from(vector));
    }
    for (stub, vector) in (FIRST_VECTOR..).take(VECTORS).enumerate() {
        gate(vector, messages + STUB_BYTES * stub as u64);
    }
    gate(SPURIOUS_VECTOR, (&raw const spurious_stub).addr() as u64);
    cpu::write32(APIC_TASK_PRIORITY, 0);
    cpu::write32(APIC_SPURIOUS, 0x100 | u32::from(SPURIOUS_VECTOR));
}

/// How many messages with vector `FIRST_VECTOR + idx` have arrived since the start, modulo 2^32.
pub(crate) fn count(idx: usize) -> u32 {
    cpu::read32((&raw const interrupt_counts).addr() as u64 + 4 * idx as u64)
}

/// The message address that reaches this CPU: fixed delivery, physical destination (Intel SDM 3A, 11.11.1).
pub(crate) fn message_address() -> u64 {
    let id = cpu::read32(APIC_ID) >> 24;
    APIC | u64::from(id) << 12
}

/// The message data for vector `FIRST_VECTOR + idx`, edge triggered.
pub(crate) fn message_data(idx: usize) -> u32 {
    u32::from(FIRST_VECTOR) + u32::try_from(idx % VECTORS).unwrap_or(0)
}

/// Leads a level-triggered pin of the I/O APIC to this CPU, with vector `FIRST_VECTOR + idx`.
pub(crate) fn route_pin(pin: u8, idx: usize) {
    let id = cpu::read32(APIC_ID) & 0xff00_0000;
    write_entry(pin, 1, id);
    write_entry(pin, 0, message_data(idx) | ENTRY_LEVEL | ENTRY_ACTIVE_LOW);
}

/// Masks a pin of the I/O APIC.
pub(crate) fn mask_pin(pin: u8) {
    write_entry(pin, 0, ENTRY_MASKED);
}

fn write_entry(pin: u8, half: u32, value: u32) {
    cpu::write32(IO_APIC_SELECT, IO_APIC_ENTRIES + 2 * u32::from(pin) + half);
    cpu::write32(IO_APIC_WINDOW, value);
}

/// Runs `f` while no interrupt comes in: what arrives waits and shows in `waits`.
pub(crate) fn held<T>(f: impl FnOnce() -> T) -> T {
    cpu::write32(APIC_TASK_PRIORITY, PRIORITY_OF_ALL);
    let result = f();
    cpu::write32(APIC_TASK_PRIORITY, 0);
    result
}

/// Returns whether an interrupt with vector `FIRST_VECTOR + idx` waits.
pub(crate) fn waits(idx: usize) -> bool {
    let vector = message_data(idx);
    cpu::read32(APIC_REQUESTS + 0x10 * u64::from(vector / 32)) >> (vector % 32) & 1 != 0
}

/// Sleeps for ever; the vCPU uses no time.
pub(crate) fn sleep() -> ! {
    // The handler halts and returns to the same instruction.
    gate(INVALID_OPCODE, (&raw const halt_stub).addr() as u64);
    invalid_opcode()
}

/// Lets [`halt`] be called.
pub(crate) fn prepare_to_halt() {
    gate(INVALID_OPCODE, (&raw const wait_stub).addr() as u64);
}

/// Halts until a message with vector `FIRST_VECTOR` has come besides the `seen` ones.
pub(crate) fn halt(seen: u32) {
    // SAFETY: The handler of `prepare_to_halt` returns behind the instruction and changes no register.
    unsafe { core::arch::asm!("ud2", in("eax") seen, options(nostack)) }
}

/// Removes every handler and causes an exception: the processor shuts down.
pub(crate) fn shut_down() -> ! {
    let table = (&raw const idt).addr() as u64;
    (0..512).for_each(|half| cpu::write64(table + 8 * half, 0));
    invalid_opcode()
}

fn invalid_opcode() -> ! {
    // SAFETY: The exception's handler never returns behind the instruction, if it returns at all.
    unsafe { core::arch::asm!("ud2", options(noreturn)) }
}

fn gate(vector: u8, handler: u64) {
    let address = (&raw const idt).addr() as u64 + 16 * u64::from(vector);
    // Present 64-bit interrupt gate (Intel SDM 3A, 6.14.1).
    let kind = 0x8e00;
    cpu::write64(address, handler & 0xffff | RING0_CODE << 16 | kind << 32 | (handler >> 16 & 0xffff) << 48);
    cpu::write64(address + 8, handler >> 32);
}
