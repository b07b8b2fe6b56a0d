//! Registers of a vCPU: what it starts with, and as text when it has failed.
//!
//! The FPU is left as KVM makes it (all exceptions masked, MXCSR 0x1f80), and so is the local APIC but for one pin.

use super::Error;
use super::vcpu::LocalApic;
use boot::{EntryState, Segment};
use kvm_bindings::{Msrs, kvm_dtable, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

/// Intel SDM volume 4: IA32_MISC_ENABLE, and its fast-strings bit, which firmware sets.
const MSR_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
/// Intel SDM volume 3, 12.11: IA32_MTRR_DEF_TYPE: MTRRs on, memory is write-back where no other says otherwise.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// Offset of the LINT0 entry of the local vector table, and its mask bit (Intel SDM volume 3, 11.5.1).
const LVT_LINT0: usize = 0x350;
const LVT_MASKED: u32 = 1 << 16;
/// The spurious interrupt vector register, and the bit that enables the APIC (11.9).
const SPURIOUS: usize = 0xf0;
const APIC_ENABLED: u32 = 1 << 8;

/// Where a processor begins after a reset or an INIT (Intel SDM volume 3, table 10-1).
const RESET_CS_BASE: u64 = 0xffff_0000;
const RESET_RIP: u64 = 0xfff0;

/// Sets the MSRs that firmware would have set on every processor.
pub(super) fn set_msrs(fd: &VcpuFd) -> Result<(), Error> {
    let value = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let values = [value(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK), value(MSR_MISC_ENABLE, FAST_STRINGS)];
    let operation = "set the MSRs of a vCPU";
    let msrs =
        Msrs::from_entries(&values).map_err(|err| Error::Call { operation, source: std::io::Error::other(err) })?;
    let accepted = fd.set_msrs(&msrs).map_err(Error::call(operation))?;
    if let Some(refused) = values.get(accepted) {
        log::debug!("KVM does not take MSR {:#x}; the guest starts without it", refused.index);
    }
    Ok(())
}

/// Puts the boot vCPU where the kernel begins.
pub(super) fn set_entry(fd: &VcpuFd, entry: &EntryState) -> Result<(), Error> {
    let regs = kvm_regs {
        rip: entry.rip,
        rsp: entry.rsp,
        rsi: entry.rsi,
        rbx: entry.rbx,
        rflags: entry.rflags,
        ..Default::default()
    };
    fd.set_regs(&regs).map_err(Error::call("set the registers of a vCPU"))?;

    let mut sregs = fd.get_sregs().map_err(Error::call("read the system registers of a vCPU"))?;
    let data = segment(&entry.data);
    sregs.cs = segment(&entry.code);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(&entry.task);
    sregs.gdt = table(&entry.gdt);
    sregs.idt = table(&entry.idt);
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (entry.cr0, entry.cr3, entry.cr4, entry.efer);
    fd.set_sregs(&sregs).map_err(Error::call("set the system registers of a vCPU"))?;
    mask_lint0(fd)
}

/// KVM wires LINT0 of the boot vCPU to the 8259 that comes with its interrupt controllers and that this machine does
/// not have (no ACPI table tells of it). Unmasked, an edge on a low GSI would arrive as whatever vector the 8259 was
/// left with.
fn mask_lint0(fd: &VcpuFd) -> Result<(), Error> {
    let mut lapic = fd.get_lapic().map_err(Error::call("read the local APIC of a vCPU"))?;
    let masked = read_register(&lapic, LVT_LINT0) | LVT_MASKED;
    write_register(&mut lapic, LVT_LINT0, masked);
    fd.set_lapic(&lapic).map_err(Error::call("set the local APIC of a vCPU"))
}

/// The guest's doing to the local APIC. Linux shuts it down with all of the local vector table masked and nothing
/// else in it; at the start LINT0 has a delivery mode as well, see [`mask_lint0`].
pub(super) fn local_apic(fd: &VcpuFd) -> LocalApic {
    let is_shut_down = fd.get_lapic().is_ok_and(|lapic| {
        read_register(&lapic, SPURIOUS) & APIC_ENABLED == 0 && read_register(&lapic, LVT_LINT0) == LVT_MASKED
    });
    if is_shut_down { LocalApic::ShutDown } else { LocalApic::Left }
}

/// True where the next instruction is the first after an INIT.
pub(super) fn is_at_reset(fd: &VcpuFd) -> bool {
    let (Ok(regs), Ok(sregs)) = (fd.get_regs(), fd.get_sregs()) else { return false };
    sregs.cs.base == RESET_CS_BASE && regs.rip == RESET_RIP
}

fn read_register(lapic: &kvm_lapic_state, at: usize) -> u32 {
    let mut bytes = [0; 4];
    for (byte, reg) in bytes.iter_mut().zip(&lapic.regs[at..at + 4]) {
        *byte = reg.to_le_bytes()[0];
    }
    u32::from_le_bytes(bytes)
}

fn write_register(lapic: &mut kvm_lapic_state, at: usize, value: u32) {
    for (reg, byte) in lapic.regs[at..at + 4].iter_mut().zip(value.to_le_bytes()) {
        *reg = i8::from_le_bytes([byte]);
    }
}

fn segment(segment: &Segment) -> kvm_segment {
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.kind,
        present: segment.p,
        dpl: segment.dpl,
        db: segment.db,
        s: segment.s,
        l: segment.l,
        g: segment.g,
        avl: segment.avl,
        unusable: 0,
        padding: 0,
    }
}

fn table(table: &boot::DescriptorTable) -> kvm_dtable {
    kvm_dtable { base: table.base, limit: table.limit, ..Default::default() }
}

/// The registers that tell where a guest was, on a few lines.
pub(super) fn describe(fd: &VcpuFd) -> String {
    let (regs, sregs) = match (fd.get_regs(), fd.get_sregs()) {
        (Ok(regs), Ok(sregs)) => (regs, sregs),
        (Err(err), _) | (_, Err(err)) => return format!("registers cannot be read: {err}"),
    };
    format!(
        "rip {:#x} rsp {:#x} rflags {:#x} rax {:#x} rbx {:#x} rcx {:#x} rdx {:#x} rsi {:#x} rdi {:#x} rbp {:#x}; \
         cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}; cs {:#x} base {:#x} ss {:#x} gdt {:#x} idt {:#x}",
        regs.rip,
        regs.rsp,
        regs.rflags,
        regs.rax,
        regs.rbx,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        regs.rbp,
        sregs.cr0,
        sregs.cr2,
        sregs.cr3,
        sregs.cr4,
        sregs.efer,
        sregs.cs.selector,
        sregs.cs.base,
        sregs.ss.selector,
        sregs.gdt.base,
        sregs.idt.base,
    )
}
