//! The registers as a driver sees them, with a device that only remembers.

use super::*;
use crate::irq::Level;
use crate::irq::fake::{FakePin, FakeVector};
use crate::virtio::device::{Activation, StartError};
use crate::virtio::threads::OwnThreads;
use std::sync::atomic::{AtomicUsize, Ordering};
use virtio_queue::QueueT;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

const BAR: u64 = 0xc000_0000;
const FEATURE: u64 = 1 << 5;
const RING_RESET: u64 = 1 << 40;

#[derive(Default)]
struct Log {
    starts: AtomicUsize,
    stops: AtomicUsize,
    queues: AtomicUsize,
    rung: AtomicUsize,
    /// Queue indices stopped, and restarted with their sizes.
    stopped: Mutex<Vec<u16>>,
    restarted: Mutex<Vec<(u16, u16)>>,
}

struct FakeDevice {
    log: Arc<Log>,
    doorbells: Vec<EventFd>,
}

impl Device for FakeDevice {
    fn kind(&self) -> Kind {
        Kind::Net
    }
    fn features(&self) -> u64 {
        FEATURE | RING_RESET
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[256, 64]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(u8::try_from(offset).unwrap_or(0));
    }
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        self.log.starts.fetch_add(1, Ordering::Relaxed);
        self.log.queues.store(activation.queues.len(), Ordering::Relaxed);
        self.doorbells = activation.queues.into_iter().map(|q| q.doorbell).collect();
        activation.interrupts.signal_queue(0);
        Ok(())
    }
    fn stop_queue(&mut self, idx: u16) {
        self.log.stopped.lock().unwrap().push(idx);
    }
    fn restart_queue(&mut self, activation: Activation) {
        let queues = activation.queues.iter().map(|queue| (queue.idx, queue.queue.size()));
        self.log.restarted.lock().unwrap().extend(queues);
    }
    fn stop(&mut self) {
        let rung = self.doorbells.iter().filter(|d| d.read().is_ok()).count();
        self.log.rung.fetch_add(rung, Ordering::Relaxed);
        self.log.stops.fetch_add(1, Ordering::Relaxed);
    }
    fn counters(&self) -> Vec<Counter> {
        Vec::new()
    }
}

#[derive(Default)]
struct FakeDoorbells(Mutex<Vec<u64>>);

impl Doorbells for FakeDoorbells {
    fn assign(&self, addr: u64, _event: &EventFd) -> io::Result<()> {
        self.0.lock().unwrap().push(addr);
        Ok(())
    }
    fn deassign(&self, addr: u64, _event: &EventFd) -> io::Result<()> {
        self.0.lock().unwrap().retain(|a| *a != addr);
        Ok(())
    }
}

struct Slot {
    pci: Arc<VirtioPci>,
    log: Arc<Log>,
    vectors: Vec<Arc<FakeVector>>,
    pin: Arc<FakePin>,
    doorbells: Arc<FakeDoorbells>,
}

impl Slot {
    fn new() -> Self {
        let log = Arc::new(Log::default());
        let device = FakeDevice { log: log.clone(), doorbells: Vec::new() };
        let mem = Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let vectors: Vec<_> = (0..3).map(|_| Arc::new(FakeVector::default())).collect();
        let dyn_vectors = vectors.iter().map(|v| v.clone() as _).collect();
        let doorbells = Arc::new(FakeDoorbells::default());
        let pin = Arc::new(FakePin::default());
        let wiring = Wiring {
            vectors: dyn_vectors,
            pin: pin.clone(),
            doorbells: doorbells.clone(),
            threads: Arc::new(OwnThreads),
        };
        let pci = VirtioPci::new(Box::new(device), mem, wiring).unwrap();
        pci.remapped(Some(BAR));
        Self { pci, log, vectors, pin, doorbells }
    }

    fn config(&self, register: u16) -> u16 {
        let mut data = [0; 2];
        self.pci.read_config(register, &mut data);
        u16::from_le_bytes(data)
    }

    /// The Interrupt Status bit, as a driver reads it with the command register.
    fn interrupt_status(&self) -> bool {
        let mut data = [0; 4];
        self.pci.read_config(4, &mut data);
        let wide = data[2] & 8 != 0;
        assert_eq!(self.config(6) & 8 != 0, wide, "the status register by itself");
        wide
    }

    fn msix_control(&self) -> u16 {
        (self.config(0x34) & 0xff) + 2
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut data = [0; N];
        self.pci.read_bar(at, &mut data);
        data
    }

    fn status(&self) -> u8 {
        self.read::<1>(0x14)[0]
    }

    fn set_status(&self, status: u8) {
        self.pci.write_bar(0x14, &[status]);
    }

    fn accept(&self, features: u64) {
        for (select, bits) in [(0_u32, features), (1, features >> 32)] {
            self.pci.write_bar(0x08, &select.to_le_bytes());
            self.pci.write_bar(0x0c, &bits.to_le_bytes()[..4]);
        }
    }

    fn set_up_queue(&self, queue: u16) {
        self.pci.write_bar(0x16, &queue.to_le_bytes());
        for (register, address) in [(0x20, 0x1000_u64), (0x28, 0x3000), (0x30, 0x4000)] {
            self.pci.write_bar(register, &address.to_le_bytes()[..4]);
            self.pci.write_bar(register + 4, &[0; 4]);
        }
        self.pci.write_bar(0x1c, &1_u16.to_le_bytes());
    }

    fn run(&self) {
        self.run_with(FEATURE);
    }

    fn run_with(&self, features: u64) {
        self.set_status(1);
        self.set_status(3);
        self.accept(1 << 32 | features);
        self.set_status(0xb);
        self.set_up_queue(0);
        self.set_status(0xf);
    }
}

#[test]
fn driver_that_follows_the_steps_gets_a_running_device() {
    let slot = Slot::new();
    slot.run();
    assert_eq!(slot.status(), 0xf);
    assert_eq!(slot.log.starts.load(Ordering::Relaxed), 1);
    assert_eq!(slot.log.queues.load(Ordering::Relaxed), 1);
}

#[test]
fn device_that_loses_bus_mastering_stops_and_waits_for_a_reset() {
    let slot = Slot::new();
    slot.pci.write_config(4, &[6, 0]);
    slot.run();
    slot.pci.write_config(4, &[2, 0]);
    assert_eq!(slot.log.stops.load(Ordering::Relaxed), 1);
    assert_eq!(slot.status(), 0x4f);

    slot.set_status(0);
    slot.pci.write_config(4, &[6, 0]);
    slot.run();
    assert_eq!((slot.status(), slot.log.starts.load(Ordering::Relaxed)), (0xf, 2));
}

#[test]
fn skipped_and_cleared_steps_change_nothing() {
    let slot = Slot::new();
    for status in [2, 8, 4, 0xc] {
        slot.set_status(status);
        assert_eq!(slot.status(), 0, "{status:#x}");
    }
    slot.set_status(1);
    slot.set_status(5);
    assert_eq!(slot.status(), 1);
    slot.set_status(3);
    slot.set_status(2);
    assert_eq!(slot.status(), 3);
}

#[test]
fn features_that_were_not_offered_or_no_version_1_are_refused() {
    for features in [FEATURE, 1 << 32 | 1 << 7] {
        let slot = Slot::new();
        slot.set_status(3);
        slot.accept(features);
        slot.set_status(0xb);
        assert_eq!(slot.status(), 3);
    }
}

#[test]
fn reset_brings_everything_back_at_any_time() {
    let slot = Slot::new();
    for round in 1..=3 {
        slot.run();
        slot.set_status(0);
        assert_eq!(slot.status(), 0);
        assert_eq!(slot.log.stops.load(Ordering::Relaxed), round);
        assert_eq!(slot.read::<2>(0x1c), [0; 2]);
        assert_eq!(slot.read::<8>(0x20), [0; 8]);
    }
}

#[test]
fn doorbells_follow_the_bar_and_survive_a_reset() {
    let slot = Slot::new();
    slot.run();
    assert_eq!(*slot.doorbells.0.lock().unwrap(), [BAR + 0x3000, BAR + 0x3004]);
    slot.set_status(0);
    assert_eq!(slot.doorbells.0.lock().unwrap().len(), 2);
    slot.pci.remapped(Some(0xd000_0000));
    assert_eq!(*slot.doorbells.0.lock().unwrap(), [0xd000_3000, 0xd000_3004]);
    slot.pci.remapped(None);
    assert!(slot.doorbells.0.lock().unwrap().is_empty());
}

#[test]
fn notification_without_doorbell_has_the_same_effect() {
    let slot = Slot::new();
    slot.run();
    slot.pci.write_bar(0x3000, &[0, 0]);
    slot.pci.write_bar(0x3000 + 4 * 900, &[0, 0]);
    slot.set_status(0);
    assert_eq!(slot.log.rung.load(Ordering::Relaxed), 1);
}

#[test]
fn queue_without_rings_in_memory_is_not_enabled() {
    let slot = Slot::new();
    slot.pci.write_bar(0x1c, &[1, 0]);
    assert_eq!(slot.read::<2>(0x1c), [0, 0]);
    slot.pci.write_bar(0x20, &0xfff_f000_u64.to_le_bytes());
    slot.pci.write_bar(0x28, &0x3000_u64.to_le_bytes());
    slot.pci.write_bar(0x30, &0x4000_u64.to_le_bytes());
    slot.pci.write_bar(0x1c, &[1, 0]);
    assert_eq!(slot.read::<2>(0x1c), [0, 0]);
}

#[test]
fn enabled_queue_is_fixed() {
    let slot = Slot::new();
    slot.set_up_queue(0);
    slot.pci.write_bar(0x18, &16_u16.to_le_bytes());
    slot.pci.write_bar(0x20, &0x9000_u64.to_le_bytes());
    slot.pci.write_bar(0x1c, &[0, 0]);
    assert_eq!(slot.read::<2>(0x18), 256_u16.to_le_bytes());
    assert_eq!(slot.read::<8>(0x20), 0x1000_u64.to_le_bytes());
    assert_eq!(slot.read::<2>(0x1c), [1, 0]);
}

#[test]
fn odd_queue_sizes_are_ignored() {
    let slot = Slot::new();
    for size in [0_u16, 3, 512, 0xffff] {
        slot.pci.write_bar(0x18, &size.to_le_bytes());
        assert_eq!(slot.read::<2>(0x18), 256_u16.to_le_bytes(), "{size}");
    }
    slot.pci.write_bar(0x18, &32_u16.to_le_bytes());
    assert_eq!(slot.read::<2>(0x18), 32_u16.to_le_bytes());
}

#[test]
fn queue_that_does_not_exist_has_size_zero() {
    let slot = Slot::new();
    slot.pci.write_bar(0x16, &2_u16.to_le_bytes());
    assert_eq!(slot.read::<2>(0x16), [2, 0]);
    assert_eq!(slot.read::<2>(0x18), [0, 0]);
    assert_eq!(slot.read::<2>(0x1a), [0xff, 0xff]);
    slot.pci.write_bar(0x1c, &[1, 0]);
    assert_eq!(slot.read::<2>(0x1c), [0, 0]);
}

#[test]
fn vector_that_does_not_exist_reads_back_as_none() {
    let slot = Slot::new();
    slot.pci.write_bar(0x10, &2_u16.to_le_bytes());
    assert_eq!(slot.read::<2>(0x10), [2, 0]);
    slot.pci.write_bar(0x10, &3_u16.to_le_bytes());
    assert_eq!(slot.read::<2>(0x10), [0xff, 0xff]);
}

#[test]
fn write_of_another_width_is_dropped() {
    let slot = Slot::new();
    slot.pci.write_bar(0x16, &[1]);
    slot.pci.write_bar(0x14, &[1, 0]);
    slot.pci.write_bar(0x10, &[0, 0, 1, 0]);
    slot.pci.write_bar(0x15, &[9]);
    assert_eq!(slot.read::<8>(0x10), [0xff, 0xff, 2, 0, 0, 0, 0, 0]);
}

#[test]
fn interrupt_arrives_through_msix_and_neither_isr_status_nor_pin_tell_of_it() {
    let slot = Slot::new();
    slot.pci.write_config(slot.msix_control(), &0x8000_u16.to_le_bytes());
    slot.pci.write_bar(0x8010, &0xfee0_0000_u64.to_le_bytes());
    slot.pci.write_bar(0x8018, &[0x41, 0, 0, 0, 0, 0, 0, 0]);
    slot.set_status(3);
    slot.accept(1 << 32);
    slot.set_status(0xb);
    slot.set_up_queue(0);
    slot.pci.write_bar(0x1a, &1_u16.to_le_bytes());
    slot.set_status(0xf);
    assert_eq!(slot.vectors[1].delivered(), 1);
    assert_eq!(slot.read::<1>(0x1000), [0], "the ISR status is for drivers without MSI-X");
    assert_eq!((slot.pin.levels(), slot.interrupt_status()), (vec![], false));
}

#[test]
fn without_msix_the_pin_is_asserted_until_the_isr_status_is_read() {
    let slot = Slot::new();
    assert_eq!(slot.config(0x3c), u16::from(FakePin::LINE) | 0x0100, "interrupt line and pin INTA#");
    slot.run();
    assert_eq!((slot.pin.levels(), slot.interrupt_status()), (vec![Level::Asserted], true));
    assert_eq!(slot.read::<1>(0x1000), [1]);
    assert_eq!((slot.pin.levels(), slot.interrupt_status()), (vec![Level::Asserted, Level::Idle], false));
    assert_eq!(slot.read::<1>(0x1000), [0]);
    assert_eq!(slot.pin.levels().len(), 2, "nothing changed");
}

#[test]
fn interrupt_disable_silences_the_pin_and_not_the_status_bit() {
    let slot = Slot::new();
    slot.pci.write_config(4, &0x0400_u16.to_le_bytes());
    slot.run();
    assert_eq!((slot.pin.levels(), slot.interrupt_status()), (vec![], true));
    slot.pci.write_config(4, &[0, 0]);
    assert_eq!(slot.pin.levels(), [Level::Asserted]);
    slot.pci.write_config(5, &[4]);
    assert_eq!(slot.pin.levels(), [Level::Asserted, Level::Idle]);
}

#[test]
fn what_ends_the_reason_lets_go_of_the_pin() {
    let ends: [fn(&Slot); 3] = [
        |slot| slot.set_status(0),
        |slot| slot.pci.write_config(slot.msix_control(), &0x8000_u16.to_le_bytes()),
        |slot| {
            slot.pci.write_config(4, &[4, 0]);
            slot.pci.write_config(4, &[0, 0]);
        },
    ];
    for end in ends {
        let slot = Slot::new();
        slot.run();
        end(&slot);
        assert_eq!((slot.pin.levels(), slot.interrupt_status()), (vec![Level::Asserted, Level::Idle], false));
    }
}

#[test]
fn configuration_window_reaches_the_bar() {
    let slot = Slot::new();
    let window = {
        let mut at = [0; 1];
        slot.pci.read_config(0x34, &mut at);
        loop {
            let mut header = [0; 4];
            slot.pci.read_config(at[0].into(), &mut header);
            if header[0] == 9 && header[3] == 5 {
                break u16::from(at[0]);
            }
            at = [header[1]];
        }
    };
    slot.pci.write_config(window + 8, &0x14_u32.to_le_bytes());
    slot.pci.write_config(window + 12, &1_u32.to_le_bytes());
    slot.pci.write_config(window + 16, &[1]);
    assert_eq!(slot.status(), 1);
    let mut data = [0; 1];
    slot.pci.read_config(window + 16, &mut data);
    assert_eq!(data, [1]);
    for (offset, len) in [(0x1_0000_u32, 4_u32), (1, 4), (0, 3), (u32::MAX, 1)] {
        slot.pci.write_config(window + 8, &offset.to_le_bytes());
        slot.pci.write_config(window + 12, &len.to_le_bytes());
        slot.pci.write_config(window + 16, &[0xff; 4]);
    }
    assert_eq!(slot.status(), 1);
}

#[test]
fn queue_is_reset_and_enabled_again_with_another_size_while_the_device_runs() {
    let slot = Slot::new();
    slot.run_with(RING_RESET);
    slot.pci.write_bar(0x1a, &1_u16.to_le_bytes());
    slot.pci.write_bar(0x3a, &[1, 0]);
    assert_eq!(*slot.log.stopped.lock().unwrap(), [0]);
    // queue_reset, queue_enable, address, size and vector as after a reset of the device.
    assert_eq!((slot.read::<2>(0x3a), slot.read::<2>(0x1c), slot.read::<8>(0x20)), ([0; 2], [0; 2], [0; 8]));
    assert_eq!((slot.read::<2>(0x18), slot.read::<2>(0x1a)), (256_u16.to_le_bytes(), [0xff; 2]));

    slot.pci.write_bar(0x18, &16_u16.to_le_bytes());
    slot.set_up_queue(0);
    assert_eq!((slot.read::<2>(0x1c), slot.read::<2>(0x18)), ([1, 0], [16, 0]));
    assert_eq!(*slot.log.restarted.lock().unwrap(), [(0, 16)]);
    assert_eq!(slot.status(), 0xf);
}

#[test]
fn queue_that_is_not_enabled_can_be_reset_without_effect() {
    let slot = Slot::new();
    slot.run_with(RING_RESET);
    for queue in [1_u16, 2, 0xffff] {
        slot.pci.write_bar(0x16, &queue.to_le_bytes());
        slot.pci.write_bar(0x3a, &[1, 0]);
    }
    // Never enabled before DRIVER_OK: too late.
    slot.set_up_queue(1);
    assert_eq!(slot.read::<2>(0x1c), [0, 0]);
    slot.pci.write_bar(0x16, &[0, 0]);
    for _ in 0..3 {
        slot.pci.write_bar(0x3a, &[1, 0]);
    }
    assert_eq!(*slot.log.stopped.lock().unwrap(), [0]);
    // Without addresses.
    slot.pci.write_bar(0x1c, &[1, 0]);
    assert_eq!((slot.read::<2>(0x1c), slot.status()), ([0, 0], 0xf));
    assert!(slot.log.restarted.lock().unwrap().is_empty());
}

#[test]
fn queue_reset_before_driver_ok_only_forgets_the_set_up() {
    let slot = Slot::new();
    slot.set_status(1);
    slot.set_status(3);
    slot.accept(1 << 32 | RING_RESET);
    slot.set_status(0xb);
    slot.set_up_queue(0);
    slot.pci.write_bar(0x3a, &[1, 0]);
    assert_eq!((slot.read::<2>(0x1c), slot.read::<8>(0x20)), ([0; 2], [0; 8]));
    slot.set_up_queue(0);
    slot.set_status(0xf);
    assert_eq!((slot.log.starts.load(Ordering::Relaxed), slot.log.queues.load(Ordering::Relaxed)), (1, 1));
    assert!(slot.log.stopped.lock().unwrap().is_empty());
}

#[test]
fn queue_reset_without_the_feature_is_ignored() {
    let slot = Slot::new();
    slot.run();
    slot.pci.write_bar(0x3a, &[1, 0]);
    assert_eq!(slot.read::<2>(0x1c), [1, 0]);
    assert!(slot.log.stopped.lock().unwrap().is_empty());
}

proptest::proptest! {
    #[test]
    fn any_access_is_harmless(
        accesses in proptest::collection::vec(
            (0..0x1_1000_u64, 1..=8_usize, proptest::prelude::any::<u64>(), proptest::bool::ANY),
            0..200,
        ),
    ) {
        let slot = Slot::new();
        for (at, len, value, write) in accesses {
            let mut data = value.to_le_bytes();
            if write {
                slot.pci.write_bar(at, &data[..len]);
                slot.pci.write_config(u16::try_from(at & 0xfff).unwrap(), &data[..len]);
            } else {
                slot.pci.read_bar(at, &mut data[..len]);
                slot.pci.read_config(u16::try_from(at & 0xfff).unwrap(), &mut data[..len]);
            }
        }
    }
}
