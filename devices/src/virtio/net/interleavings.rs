//! Every interleaving of the threads that share a card's state, by `loom`: drains, filters, coalescing, the interrupt
//! pin and MSI-X.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test -p devices --lib interleavings
//! ```
//!
//! Shown for two threads and a few operations each: no update is lost, no wait is for ever, no interrupt is dropped or
//! doubled, and what a thread reads behind a wake-up is what was written before it.
//!
//! Not shown: more threads, rings in guest memory (raw atomics that `loom` does not see), the kernel's half of a vector
//! or pin, the event loop of a worker (a real epoll), and time-outs (`loom` waits for ever, so a wait that needs its
//! deadline is a deadlock).

use crate::irq::fake::FakePin;
use crate::irq::{Level, MsiMessage, MsiVector};
use crate::pci::config::COMMAND_INTX_DISABLE;
use crate::pci::msix::{ENTRY_SIZE, Msix};
use crate::virtio::chain::Chain;
use crate::virtio::interrupt::Interrupts;
use crate::virtio::net::coalesce::{Coalescer, Direction, Params, Request, Settings};
use crate::virtio::net::drain::{Drain, TIMEOUT};
use crate::virtio::net::filter::{Filter, Shared};
use crate::virtio::ring::Ring;
use crate::virtio::test_driver::{Desc, TestDriver};
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Condvar, Mutex};
use loom::thread;
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// Message control: MSI-X enable.
const MSIX_ENABLE: u16 = 1 << 15;
/// Offset of an entry's vector control, and its mask bit.
const VECTOR_CONTROL: u64 = 12;
const MASKED: [u8; 4] = [1, 0, 0, 0];
const UNMASKED: [u8; 4] = [0; 4];

#[test]
fn drained_pair_is_empty_once_the_control_queue_goes_on() {
    loom::model(|| {
        let drain = Arc::new(Drain::default());
        let emptied = Arc::new(AtomicBool::new(false));
        drain.request();
        let worker = thread::spawn({
            let (drain, emptied) = (drain.clone(), emptied.clone());
            move || {
                assert!(drain.is_requested());
                // Relaxed: the drain orders it.
                emptied.store(true, Ordering::Relaxed);
                drain.complete();
            }
        });
        drain.wait(Instant::now() + TIMEOUT.max(std::time::Duration::from_secs(60)));
        assert!(emptied.load(Ordering::Relaxed));
        assert!(!drain.is_requested());
        worker.join().unwrap();
        assert!(!drain.is_requested());
    });
}

/// The filter of a card whose address ends with `last`.
fn filter(last: u8) -> Filter {
    Filter::new([2, 0, 0, 0, 0, last], false)
}

#[test]
fn filter_that_was_copied_after_the_last_version_is_the_last_filter() {
    loom::model(|| {
        let shared = Arc::new(Shared::new(filter(1)));
        let control = thread::spawn({
            let shared = shared.clone();
            move || {
                for last in [2, 3] {
                    shared.change(|current| {
                        *current = filter(last);
                        true
                    });
                }
            }
        });
        let (mut seen, mut copy) = (shared.version(), shared.copy());
        for _ in 0..2 {
            let version = shared.version();
            if version != seen {
                (seen, copy) = (version, shared.copy());
            }
        }
        control.join().unwrap();
        if seen == 2 {
            assert_eq!(copy, filter(3));
        }
        assert_eq!((shared.version(), shared.copy()), (2, filter(3)));
    });
}

#[test]
fn parameters_for_all_queues_reach_a_queue_that_is_enabled_meanwhile() {
    loom::model(|| {
        let settings = Arc::new(Settings::new(1));
        let params = Params { max_packets: 7, max_usecs: 70 };
        let worker = thread::spawn({
            let settings = settings.clone();
            move || Coalescer::new(settings, 0)
        });
        assert!(settings.obey(Request::SetAll(Direction::Receive, params)));
        worker.join().unwrap();
        assert_eq!(settings.get(0), Some(params));
    });
}

#[test]
fn worker_that_is_woken_after_a_change_holds_nothing_back_by_the_old_parameters() {
    // One model, whose ring is used by one thread only.
    loom::model(|| {
        let mut driver = TestDriver::new();
        driver.add(&[Desc::writable(0x8000, 64)]);
        let (active, mem, interrupts) = driver.activate();
        let mut ring = Ring::new(active, mem, interrupts).unwrap().0;
        let settings = Arc::new(Settings::new(1));
        let mut coalescer = Coalescer::new(settings.clone(), 0);
        assert!(settings.obey(Request::Set(0, Params { max_packets: 64, max_usecs: 1_000_000 })));
        // Stands for the worker's eventfd.
        let woken = Arc::new((Mutex::new(false), Condvar::new()));
        let control = thread::spawn({
            let (settings, woken) = (settings.clone(), woken.clone());
            move || {
                assert!(settings.obey(Request::Set(0, Params::default())));
                *woken.0.lock().unwrap() = true;
                woken.1.notify_one();
            }
        });

        let head = ring.pop(&mut Chain::default()).unwrap().unwrap();
        ring.push_used(head, 64);
        coalescer.count();
        coalescer.notify(&mut ring);
        let mut is_woken = woken.0.lock().unwrap();
        while !*is_woken {
            is_woken = woken.1.wait(is_woken).unwrap();
        }
        coalescer.notify(&mut ring);

        assert_eq!((driver.interrupts_seen(), coalescer.deadline()), (1, None));
        drop(is_woken);
        control.join().unwrap();
    });
}

/// A device without MSI-X, and its pin.
fn with_pin() -> (Arc<Interrupts>, Arc<FakePin>) {
    let pin = Arc::new(FakePin::default());
    (Arc::new(Interrupts::new(Vec::new(), 1).with_pin(pin.clone())), pin)
}

fn level(pin: &FakePin) -> Level {
    pin.levels().last().copied().unwrap_or(Level::Idle)
}

#[test]
fn interrupt_status_is_read_or_asserts_the_pin() {
    loom::model(|| {
        let (interrupts, pin) = with_pin();
        let worker = thread::spawn({
            let interrupts = interrupts.clone();
            move || interrupts.signal_queue(0)
        });
        let read = interrupts.take_isr();
        worker.join().unwrap();
        let expected = if read == 0 { Level::Asserted } else { Level::Idle };
        assert_eq!((level(&pin), interrupts.wants_pin()), (expected, read == 0));
    });
}

#[test]
fn pin_follows_the_command_register_and_msix_enable() {
    for disable in [true, false] {
        loom::model(move || {
            let (interrupts, pin) = with_pin();
            let worker = thread::spawn({
                let interrupts = interrupts.clone();
                move || interrupts.signal_queue(0)
            });
            if disable {
                interrupts.follow_command(COMMAND_INTX_DISABLE);
            } else {
                interrupts.set_enabled(true);
            }
            worker.join().unwrap();
            assert_eq!(level(&pin), Level::Idle);
            if disable {
                interrupts.follow_command(0);
                assert_eq!(level(&pin), Level::Asserted);
            }
        });
    }
}

#[test]
fn fault_is_reported_by_one_of_two_workers() {
    loom::model(|| {
        let (interrupts, _) = with_pin();
        let other = thread::spawn({
            let interrupts = interrupts.clone();
            move || interrupts.set_needs_reset()
        });
        let first = interrupts.set_needs_reset();
        assert!(first != other.join().unwrap());
        assert!(interrupts.needs_reset());
    });
}

/// A vector as KVM's eventfd is one: a signal is delivered while it is routed and held otherwise.
#[derive(Default)]
struct Vector(Mutex<VectorState>);

#[derive(Default)]
struct VectorState {
    routed: Option<MsiMessage>,
    held: bool,
    delivered: u32,
}

impl MsiVector for Vector {
    fn signal(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        match state.routed {
            Some(_) => state.delivered += 1,
            None => state.held = true,
        }
        Ok(())
    }

    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.routed = message;
        if message.is_some() && std::mem::take(&mut state.held) {
            state.delivered += 1;
        }
        Ok(())
    }

    fn pending(&self) -> bool {
        self.0.lock().unwrap().held
    }

    fn clear(&self) {
        self.0.lock().unwrap().held = false;
    }
}

/// A function with two unmasked vectors, of which queue 0 has the first.
fn with_msix() -> (Arc<Interrupts>, Msix, [Arc<Vector>; 2]) {
    let vectors = [Arc::new(Vector::default()), Arc::new(Vector::default())];
    let dynamic: Vec<Arc<dyn MsiVector>> = vectors.iter().map(|vector| vector.clone() as _).collect();
    let mut msix = Msix::new(&dynamic);
    let interrupts = Arc::new(Interrupts::new(dynamic, 1));
    msix.set_control(MSIX_ENABLE);
    interrupts.set_enabled(true);
    interrupts.set_queue_vector(0, 0);
    for entry in 0..2 {
        msix.write_table(entry * ENTRY_SIZE + VECTOR_CONTROL, &UNMASKED);
    }
    (interrupts, msix, vectors)
}

fn delivered(vector: &Vector) -> u32 {
    vector.0.lock().unwrap().delivered
}

#[test]
fn interrupt_of_a_vector_that_is_masked_and_unmasked_is_delivered_once() {
    loom::model(|| {
        let (interrupts, mut msix, vectors) = with_msix();
        let worker = thread::spawn({
            let interrupts = interrupts.clone();
            move || interrupts.signal_queue(0)
        });
        msix.write_table(VECTOR_CONTROL, &MASKED);
        let mut pending = [0];
        msix.read_pba(0, &mut pending);
        let before = delivered(&vectors[0]);
        assert!(pending[0] == 0 || before == 0, "both pending and delivered");
        msix.write_table(VECTOR_CONTROL, &UNMASKED);
        worker.join().unwrap();
        msix.read_pba(0, &mut pending);
        assert_eq!((delivered(&vectors[0]), pending), (1, [0]));
    });
}

#[test]
fn interrupt_of_a_vector_that_stays_masked_is_delivered_or_pending() {
    loom::model(|| {
        let (interrupts, mut msix, vectors) = with_msix();
        let worker = thread::spawn({
            let interrupts = interrupts.clone();
            move || interrupts.signal_queue(0)
        });
        msix.write_table(VECTOR_CONTROL, &MASKED);
        worker.join().unwrap();
        let mut pending = [0];
        msix.read_pba(0, &mut pending);
        assert_eq!(delivered(&vectors[0]) + u32::from(pending[0]), 1);
    });
}

#[test]
fn interrupt_of_a_queue_that_gets_another_vector_comes_by_one_of_the_two() {
    loom::model(|| {
        let (interrupts, _msix, vectors) = with_msix();
        let worker = thread::spawn({
            let interrupts = interrupts.clone();
            move || interrupts.signal_queue(0)
        });
        interrupts.set_queue_vector(0, 1);
        worker.join().unwrap();
        assert_eq!(delivered(&vectors[0]) + delivered(&vectors[1]), 1);
        assert_eq!(interrupts.of_queue(0).sent, 1);
    });
}
