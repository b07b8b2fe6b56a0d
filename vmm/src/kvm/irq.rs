//! Interrupts: with irqfd lines of the I/O APIC and MSI-X vectors, with `KVM_IRQ_LINE` the pins of PCI functions.
//!
//! Nothing is registered with KVM before it is first used: an irqfd costs a grace period of the host kernel, and most
//! of a machine's vectors are never used at all.

use crate::event;
use boot::layout::IOAPIC_PINS;
use devices::irq::{IntxPin, IrqLine, Level, MsiMessage, MsiVector};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use nix::poll::{PollFd, PollFlags};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Bits 11 to 5 of an MSI address carry bits 14 to 8 of the destination under `KVM_FEATURE_MSI_EXT_DEST_ID`.
const EXTENDED_DESTINATION_SHIFT: u32 = 5;
const EXTENDED_DESTINATION_MASK: u32 = 0x7f;

/// A line to a pin of the I/O APIC.
pub(super) struct Line {
    vm: Arc<VmFd>,
    gsi: u32,
    event: EventFd,
    /// Filled by the first edge, with the error number if KVM refused the irqfd.
    assigned: OnceLock<Result<(), i32>>,
}

impl Line {
    pub(super) fn new(vm: Arc<VmFd>, gsi: u32) -> io::Result<Self> {
        Ok(Self { vm, gsi, event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?, assigned: OnceLock::new() })
    }
}

impl IrqLine for Line {
    fn raise(&self) -> io::Result<()> {
        self.assigned
            .get_or_init(|| self.vm.register_irqfd(&self.event, self.gsi).map_err(|err| err.errno()))
            .map_err(io::Error::from_raw_os_error)?;
        self.event.write(1)
    }
}

/// A level-triggered pin of the I/O APIC and the functions that share it.
///
/// `KVM_IRQ_LINE` and not an irqfd with resampling: the device knows at each moment whether it wants to be served, so
/// there is nothing to sample again, and nothing has to be made before a driver does without MSI-X. The price is a call
/// where the level changes.
pub(super) struct SharedLine {
    vm: Arc<VmFd>,
    gsi: u32,
    /// Functions that assert it.
    asserting: Mutex<u32>,
}

impl SharedLine {
    pub(super) fn new(vm: Arc<VmFd>, gsi: u32) -> Self {
        Self { vm, gsi, asserting: Mutex::new(0) }
    }
}

/// The interrupt pin of one function.
pub(super) struct Pin(pub(super) Arc<SharedLine>);

impl IntxPin for Pin {
    fn drive(&self, level: Level) -> io::Result<()> {
        let mut asserting = lock(&self.0.asserting);
        let others = match level {
            Level::Asserted => *asserting,
            Level::Idle => asserting.saturating_sub(1),
        };
        if others == 0 {
            self.0.vm.set_irq_line(self.0.gsi, level == Level::Asserted)?;
        }
        *asserting = others + u32::from(level == Level::Asserted);
        Ok(())
    }

    fn line(&self) -> u8 {
        // Never more than the pins of an I/O APIC; 255 means that there is no line (PCI 3.0 6.2.4).
        u8::try_from(self.0.gsi).unwrap_or(u8::MAX)
    }
}

/// The VM's interrupt routing table. KVM takes it whole, so all vectors share it.
pub(super) struct Routes {
    vm: Arc<VmFd>,
    extended_destination: bool,
    next_gsi: AtomicU32,
    messages: Mutex<BTreeMap<u32, MsiMessage>>,
}

impl Routes {
    pub(super) fn new(vm: Arc<VmFd>, extended_destination: bool) -> Self {
        Self { vm, extended_destination, next_gsi: AtomicU32::new(IOAPIC_PINS), messages: Mutex::new(BTreeMap::new()) }
    }

    pub(super) fn has_extended_destination(&self) -> bool {
        self.extended_destination
    }

    /// Delivers `gsi` to `message` from now on. KVM is asked only if that is a change.
    fn set(&self, gsi: u32, message: MsiMessage) -> io::Result<()> {
        let mut messages = lock(&self.messages);
        let old = messages.insert(gsi, message);
        if old == Some(message) {
            return Ok(());
        }
        let result = self.publish(&messages);
        if result.is_err() {
            match old {
                Some(old) => messages.insert(gsi, old),
                None => messages.remove(&gsi),
            };
        }
        result
    }

    /// Hands the whole table to KVM. The I/O APIC's pins are in it because this table replaces KVM's default one; the
    /// pins of the 8259 are not, because this machine has none.
    fn publish(&self, messages: &BTreeMap<u32, MsiMessage>) -> io::Result<()> {
        let entries: Vec<_> = (0..IOAPIC_PINS)
            .map(ioapic_entry)
            .chain(messages.iter().map(|(&gsi, &message)| msi_entry(gsi, message, self.extended_destination)))
            .collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(io::Error::other)?;
        self.vm.set_gsi_routing(&table).map_err(io::Error::from)
    }
}

/// One MSI-X vector of one device.
///
/// While no irqfd is assigned the eventfd's counter holds a signal; KVM looks at the counter when the irqfd is
/// assigned.
pub(super) struct Vector {
    routes: Arc<Routes>,
    event: EventFd,
    gsi: u32,
    /// True while the irqfd is assigned. Only `route` looks at it.
    assigned: Mutex<bool>,
}

impl Vector {
    pub(super) fn new(routes: Arc<Routes>) -> io::Result<Self> {
        Ok(Self {
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            gsi: routes.next_gsi.fetch_add(1, Ordering::Relaxed),
            routes,
            assigned: Mutex::new(false),
        })
    }

    fn drain(&self) {
        // An empty counter answers EAGAIN, which is what this is for.
        let _ = self.event.read();
    }
}

impl MsiVector for Vector {
    fn signal(&self) -> io::Result<()> {
        self.event.write(1)
    }

    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        let mut assigned = lock(&self.assigned);
        match message {
            Some(message) => {
                self.routes.set(self.gsi, message)?;
                if !*assigned {
                    self.routes.vm.register_irqfd(&self.event, self.gsi)?;
                    *assigned = true;
                    // KVM has seen a held signal and delivers it, but leaves the counter as it was. What is read here
                    // was either there before the call, and is on its way, or KVM's wake-up has already taken it.
                    self.drain();
                }
            }
            None if *assigned => {
                self.routes.vm.unregister_irqfd(&self.event, self.gsi)?;
                *assigned = false;
            }
            None => {}
        }
        Ok(())
    }

    fn pending(&self) -> bool {
        let mut fds = [PollFd::new(event::fd(&self.event), PollFlags::POLLIN)];
        event::poll(&mut fds, Some(Duration::ZERO)).is_ok_and(|ready| ready > 0)
    }

    fn clear(&self) {
        self.drain();
    }

    fn event(&self) -> Option<&EventFd> {
        Some(&self.event)
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        if let Err(err) = self.route(None) {
            log::debug!("Cannot release GSI {}: {err}", self.gsi);
        }
    }
}

/// No data behind these locks can be left half-changed, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ioapic_entry(pin: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi: pin,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin },
        },
        ..Default::default()
    }
}

fn msi_entry(gsi: u32, message: MsiMessage, extended: bool) -> kvm_irq_routing_entry {
    let (address_lo, address_hi) = split_address(message.address, extended);
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            msi: kvm_irq_routing_msi { address_lo, address_hi, data: message.data, ..Default::default() },
        },
        ..Default::default()
    }
}

/// An MSI address as KVM takes it: with 32-bit APIC ids, bits 31 to 8 of the high half are those of the destination.
#[expect(clippy::cast_possible_truncation, reason = "the halves of a 64-bit address")]
fn split_address(address: u64, extended: bool) -> (u32, u32) {
    let (low, high) = (address as u32, (address >> 32) as u32);
    if !extended {
        return (low, high);
    }
    let destination = (low >> EXTENDED_DESTINATION_SHIFT) & EXTENDED_DESTINATION_MASK;
    let low = low & !(EXTENDED_DESTINATION_MASK << EXTENDED_DESTINATION_SHIFT);
    (low, high | destination << 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_destination_moves_to_the_high_half() {
        assert_eq!(split_address(0xfee0_1020, true), (0xfee0_1000, 0x100));
        assert_eq!(split_address(0xfeef_ffe0, true), (0xfeef_f000, 0x7f00));
    }

    #[test]
    fn address_is_untouched_without_extended_destination() {
        assert_eq!(split_address(0x1_fee0_1020, false), (0xfee0_1020, 1));
    }
}
