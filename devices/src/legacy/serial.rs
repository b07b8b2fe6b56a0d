//! A 16550A serial port: 8 ports, one interrupt, output to a writer, input from the VMM.
//!
//! The registers are vm-superio's. Output is written to the host byte by byte on the vCPU thread; a host that does not
//! take a byte loses it, which is counted, and the guest never notices. Input is limited by the receive FIFO: what does
//! not fit stays with the VMM, which is told when there is room again.

use crate::bus::BusDevice;
use crate::irq::IrqLine;
use crate::legacy::byte_ports::{self, lock};
use std::convert::Infallible;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use vm_superio::Trigger;
use vm_superio::serial::SerialEvents;
use vmm_sys_util::eventfd::EventFd;

/// Length in ports.
pub const PORTS: u64 = 8;

/// Modem control register. Leaving its loopback mode makes room for input, like reading.
const MODEM_CONTROL: u64 = 4;

/// Where output goes. Called under the port's lock by vCPU threads, so it should not block for long.
pub type Output = Box<dyn Write + Send>;

/// Bytes that the host did not take, since the port was built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// Output bytes that could not be written.
    pub output_bytes: u64,
    /// Interrupts that could not be delivered.
    pub interrupts: u64,
}

/// The port.
pub struct Serial {
    core: Mutex<vm_superio::Serial<Line, Arc<Notes>, Output>>,
    notes: Arc<Notes>,
}

impl Serial {
    /// A port that interrupts on `line` and writes to `output`.
    ///
    /// `drained` is signalled when there may be room for input that was refused, and only then: once for each refusal,
    /// so that a guest that keeps reading an empty port wakes no thread. It should be non-blocking.
    pub fn new(line: Arc<dyn IrqLine>, output: Output, drained: EventFd) -> Self {
        let notes = Arc::new(Notes {
            drained,
            input_waits: AtomicBool::new(false),
            lost_output_bytes: AtomicU64::new(0),
            lost_interrupts: AtomicU64::new(0),
        });
        let line = Line { line, notes: notes.clone() };
        Self { core: Mutex::new(vm_superio::Serial::with_events(line, notes.clone(), output)), notes }
    }

    /// Gives `bytes` to the guest. Returns how many the receive FIFO took; the caller offers the rest again after
    /// `drained` was signalled.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut core = lock(&self.core);
        // The one error left is a full FIFO: it took nothing.
        let taken = core.enqueue_raw_bytes(bytes).unwrap_or(0);
        self.notes.input_waits.store(taken < bytes.len(), Ordering::Relaxed);
        taken
    }

    /// The bytes that were lost so far.
    pub fn lost(&self) -> Lost {
        Lost {
            output_bytes: self.notes.lost_output_bytes.load(Ordering::Relaxed),
            interrupts: self.notes.lost_interrupts.load(Ordering::Relaxed),
        }
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut core = lock(&self.core);
        byte_ports::read(offset, data, |port| match u8::try_from(port) {
            Ok(register) => core.read(register),
            Err(_) => 0xff,
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut core = lock(&self.core);
        byte_ports::write(offset, data, |port, value| {
            if let Ok(register) = u8::try_from(port) {
                // A byte that the host did not take has been counted by `Notes::tx_lost_byte`.
                let _ = core.write(register, value);
            }
            if port == MODEM_CONTROL {
                self.notes.in_buffer_empty();
            }
        });
    }
}

struct Line {
    line: Arc<dyn IrqLine>,
    notes: Arc<Notes>,
}

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        if self.line.raise().is_err() {
            self.notes.lost_interrupts.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Events besides the registers. The counters are only read for reports, hence relaxed.
struct Notes {
    drained: EventFd,
    /// True while the VMM has input that was refused. Only used under the port's lock.
    input_waits: AtomicBool,
    lost_output_bytes: AtomicU64,
    lost_interrupts: AtomicU64,
}

impl SerialEvents for Notes {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {
        self.lost_output_bytes.fetch_add(1, Ordering::Relaxed);
    }

    fn in_buffer_empty(&self) {
        if !self.input_waits.swap(false, Ordering::Relaxed) {
            return;
        }
        // A non-blocking event refuses only when its counter is full, and then it is signalled already.
        let _ = self.drained.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io;
    use std::sync::atomic::AtomicUsize;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    const DATA: u64 = 0;
    const IER: u64 = 1;
    const LINE_STATUS: u64 = 5;

    #[derive(Default)]
    struct FakeLine(AtomicUsize);

    impl IrqLine for FakeLine {
        fn raise(&self) -> io::Result<()> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    struct BrokenLine;

    impl IrqLine for BrokenLine {
        fn raise(&self) -> io::Result<()> {
            Err(io::ErrorKind::Other.into())
        }
    }

    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct ClosedPipe;

    impl Write for ClosedPipe {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn event() -> (EventFd, EventFd) {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        (event.try_clone().unwrap(), event)
    }

    fn port(output: impl Write + Send + 'static) -> Serial {
        Serial::new(Arc::new(FakeLine::default()), Box::new(output), event().0)
    }

    fn read(serial: &Serial, register: u64) -> u8 {
        let mut data = [0];
        serial.read(register, &mut data);
        data[0]
    }

    #[test]
    fn output_reaches_the_writer() {
        let screen = Screen::default();
        let serial = port(screen.clone());

        serial.write(DATA, b"h");
        serial.write(DATA, b"i");

        assert_eq!(*screen.0.lock().unwrap(), b"hi");
    }

    #[test]
    fn wide_write_is_split_into_registers() {
        let screen = Screen::default();
        let serial = port(screen.clone());

        serial.write(DATA, b"x\x05");

        assert_eq!(*screen.0.lock().unwrap(), b"x");
        assert_eq!(read(&serial, IER), 5);
    }

    #[test]
    fn closed_output_is_counted_and_the_guest_goes_on() {
        let serial = port(ClosedPipe);

        serial.write(DATA, b"x");

        assert_eq!(serial.lost().output_bytes, 1);
        assert_eq!(read(&serial, LINE_STATUS) & 0x60, 0x60);
    }

    #[test]
    fn broken_interrupt_is_counted_and_input_is_kept() {
        let serial = Serial::new(Arc::new(BrokenLine), Box::new(Screen::default()), event().0);
        serial.write(IER, &[1]);

        let taken = serial.input(b"a");

        assert_eq!((taken, serial.lost().interrupts), (1, 1));
        assert_eq!(read(&serial, DATA), b'a');
    }

    #[test]
    fn input_interrupts_and_is_read_in_order() {
        let line = Arc::new(FakeLine::default());
        let serial = Serial::new(line.clone(), Box::new(Screen::default()), event().0);
        serial.write(IER, &[1]);

        assert_eq!(serial.input(b"ab"), 2);

        assert_eq!(line.0.load(Ordering::Relaxed), 1);
        assert_eq!((read(&serial, DATA), read(&serial, DATA)), (b'a', b'b'));
    }

    #[test]
    fn full_fifo_takes_the_rest_after_it_was_drained() {
        let (drained, heard) = event();
        let line = Arc::new(FakeLine::default());
        let serial = Serial::new(line, Box::new(Screen::default()), drained);

        assert_eq!(serial.input(&[b'a'; 100]), 64);
        assert_eq!(serial.input(b"b"), 0);
        assert!(heard.read().is_err());
        for _ in 0..64 {
            read(&serial, DATA);
        }

        assert!(heard.read().is_ok());
        assert_eq!(serial.input(&[b'a'; 36]), 36);
    }

    #[test]
    fn guest_that_reads_an_empty_port_wakes_nobody() {
        let (drained, heard) = event();
        let serial = Serial::new(Arc::new(FakeLine::default()), Box::new(Screen::default()), drained);

        read(&serial, DATA);
        assert_eq!(serial.input(b"a"), 1);
        read(&serial, DATA);
        serial.write(MODEM_CONTROL, &[0x08]);

        assert!(heard.read().is_err());
    }

    #[test]
    fn leaving_loopback_asks_for_input_again() {
        let (drained, heard) = event();
        let line = Arc::new(FakeLine::default());
        let serial = Serial::new(line, Box::new(Screen::default()), drained);
        serial.write(MODEM_CONTROL, &[0x10]);
        assert_eq!(serial.input(b"a"), 0);
        assert!(heard.read().is_err());

        serial.write(MODEM_CONTROL, &[0x08]);

        assert!(heard.read().is_ok());
        assert_eq!(serial.input(b"a"), 1);
    }

    proptest! {
        #[test]
        fn any_access_is_harmless(
            accesses in prop::collection::vec(
                (any::<bool>(), 0..8u64, prop::collection::vec(any::<u8>(), 1..9)),
                0..64,
            ),
        ) {
            let serial = port(Screen::default());
            for (is_write, offset, mut data) in accesses {
                if is_write {
                    serial.write(offset, &data);
                } else {
                    serial.read(offset, &mut data);
                }
                serial.input(&data);
            }
        }
    }
}
