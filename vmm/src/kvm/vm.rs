//! One VM: its memory slots, its interrupt controllers and its vCPUs, in the order that KVM is fast in.

use super::Error;
use super::doorbell::KvmDoorbells;
use super::irq::{Line, Pin, Routes, SharedLine, Vector};
use boot::layout;
use devices::doorbell::Doorbells;
use devices::irq::{IntxPin, IrqLine, MsiVector};
use devices::virtio::device::Memory;
use kvm_bindings::{
    KVM_CAP_X2APIC_API, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap, kvm_ioapic_state__bindgen_ty_1, kvm_irqchip,
    kvm_irqchip__bindgen_ty_1, kvm_pic_state, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use std::io;
use std::sync::Arc;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// The number of vCPUs from which on APIC ids no longer fit in the 8 bits of the xAPIC (255 is broadcast).
const XAPIC_CPUS: u32 = 255;

/// The mask bit of an entry of the I/O APIC's redirection table (82093AA datasheet, 3.2.4).
const IOAPIC_PIN_MASKED: u64 = 1 << 16;

/// The mask register of an 8259 with all of its inputs masked, that of the second controller among them.
const PIC_MASKED: u8 = 0xff;
/// The inputs of the first 8259 that may be level-triggered, as KVM sets them up.
const PIC_LEVEL_CAPABLE: u8 = 0xf8;

/// A guest's doing to the pins of its I/O APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IoApic {
    /// Masked all of them, or never opened one.
    Masked,
    /// Left one open.
    Open,
}

/// A VM. Devices hold parts of it; the last of them closes it.
pub(crate) struct Vm {
    fd: Arc<VmFd>,
    routes: Arc<Routes>,
    /// By device number, modulo how many there are.
    intx: Vec<Arc<SharedLine>>,
    /// Keeps the guest's RAM mapped for as long as KVM can reach it.
    _mem: Memory,
}

impl Vm {
    pub(super) fn new(kvm: &Kvm, mem: &Memory, cpus: u32) -> Result<Self, Error> {
        let fd = create(kvm)?;
        // Slots first: with an interrupt controller each of these calls takes 4 to 12 ms.
        for (slot, region) in (0u32..).zip(mem.iter()) {
            add_slot(&fd, slot, region)?;
        }
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP.base)
            .map_err(Error::call("set the identity map address"))?;
        let tss = usize::try_from(layout::KVM_TSS.base).unwrap_or(usize::MAX);
        fd.set_tss_address(tss).map_err(Error::call("set the TSS address"))?;
        let extended = cpus > XAPIC_CPUS;
        if extended {
            enable_x2apic_ids(&fd)?;
        }
        fd.create_irq_chip().map_err(Error::call("create the interrupt controllers"))?;
        mask_pic(&fd)?;
        let fd = Arc::new(fd);
        let line = |gsi| Arc::new(SharedLine::new(fd.clone(), gsi));
        let intx = (layout::INTX_FIRST_GSI..).take(layout::INTX_GSIS as usize).map(line).collect();
        Ok(Self { routes: Arc::new(Routes::new(fd.clone(), extended)), intx, fd, _mem: mem.clone() })
    }

    /// Returns whether MSI addresses carry 15 bits of destination (`KVM_FEATURE_MSI_EXT_DEST_ID`).
    pub(super) fn has_extended_destination(&self) -> bool {
        self.routes.has_extended_destination()
    }

    pub(super) fn create_vcpu(&self, id: u32) -> Result<VcpuFd, Error> {
        self.fd.create_vcpu(id.into()).map_err(Error::call("create a vCPU"))
    }

    /// A line to pin `gsi` of the I/O APIC. Costs nothing until it is raised for the first time.
    ///
    /// # Errors
    /// If the host has no eventfd left.
    pub(crate) fn irq_line(&self, gsi: u32) -> io::Result<Arc<dyn IrqLine>> {
        Ok(Arc::new(Line::new(self.fd.clone(), gsi)?))
    }

    /// Interrupt pin INTA# of the device with number `device` on the root bus, on a line that several devices share.
    /// Costs nothing until it is driven.
    pub(crate) fn intx_pin(&self, device: u8) -> Arc<dyn IntxPin> {
        let line = layout::intx_gsi(device) - layout::INTX_FIRST_GSI;
        Arc::new(Pin(self.intx[line as usize].clone()))
    }

    /// The pins of the I/O APIC as the guest has left them; masked if KVM does not say.
    #[expect(unsafe_code, reason = "the members of a union that KVM filled")]
    pub(crate) fn io_apic(&self) -> IoApic {
        let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
        if self.fd.get_irqchip(&mut chip).is_err() {
            return IoApic::Masked;
        }
        // SAFETY: `chip_id` tells that KVM filled this member. It is plain data.
        let pins = unsafe { chip.chip.ioapic }.redirtbl;
        // SAFETY: both members of the union are plain data of the same size.
        let is_open = |pin: &kvm_ioapic_state__bindgen_ty_1| unsafe { pin.bits } & IOAPIC_PIN_MASKED == 0;
        if pins.iter().any(is_open) { IoApic::Open } else { IoApic::Masked }
    }

    /// `count` MSI-X vectors. They cost nothing until they are routed for the first time.
    ///
    /// # Errors
    /// If the host has no eventfd left.
    pub(crate) fn msi_vectors(&self, count: usize) -> io::Result<Vec<Arc<dyn MsiVector>>> {
        (0..count).map(|_| Ok(Arc::new(Vector::new(self.routes.clone())?) as Arc<dyn MsiVector>)).collect()
    }

    /// The doorbells of this VM.
    pub(crate) fn doorbells(&self) -> Arc<dyn Doorbells> {
        Arc::new(KvmDoorbells::new(self.fd.clone()))
    }
}

/// Creates the VM. A signal that arrives meanwhile makes KVM give up with EINTR; it is asked again.
fn create(kvm: &Kvm) -> Result<VmFd, Error> {
    loop {
        match kvm.create_vm() {
            Err(errno) if errno.errno() == libc::EINTR => {}
            result => return result.map_err(Error::call("create a VM")),
        }
    }
}

/// Masks the 8259 that comes with KVM's interrupt controllers and that no ACPI table tells of. A kernel that gives up
/// the I/O APIC (`noapic`, `nosmp`) has LINT0 open to it without driving it: an interrupt of a device would arrive
/// as an exception, as the vectors of an 8259 begin at 0.
fn mask_pic(fd: &VmFd) -> Result<(), Error> {
    let pic = kvm_pic_state { imr: PIC_MASKED, elcr_mask: PIC_LEVEL_CAPABLE, ..Default::default() };
    let chip = kvm_irqchip__bindgen_ty_1 { pic };
    let chip = kvm_irqchip { chip_id: KVM_IRQCHIP_PIC_MASTER, chip, ..Default::default() };
    fd.set_irqchip(&chip).map_err(Error::call("mask the 8259"))
}

#[expect(unsafe_code, reason = "KVM is given the address of guest memory")]
fn add_slot(fd: &VmFd, slot: u32, region: &<Memory as GuestMemoryBackend>::R) -> Result<(), Error> {
    let slot = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: region.start_addr().0,
        memory_size: region.len(),
        userspace_addr: region.as_ptr().addr() as u64,
    };
    // SAFETY: the address and length are those of a live mapping, which `Vm::_mem` keeps mapped for as long as the VM
    // exists. What the guest does with its memory is not seen through any Rust reference: vm-memory hands out none.
    unsafe { fd.set_user_memory_region(slot) }.map_err(Error::call("set a memory slot"))
}

/// Lets APIC ids and destinations be 32 bits wide.
fn enable_x2apic_ids(fd: &VmFd) -> Result<(), Error> {
    if !fd.check_extension(Cap::X2ApicApi) {
        return Err(Error::Capability("x2APIC ids above 255"));
    }
    let mut cap = kvm_enable_cap { cap: KVM_CAP_X2APIC_API, ..Default::default() };
    cap.args[0] = u64::from(KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK);
    fd.enable_cap(&cap).map_err(Error::call("enable x2APIC ids above 255"))
}
