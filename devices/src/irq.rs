//! How a device interrupts the guest: traits that the VMM implements with irqfd and `KVM_IRQ_LINE`.

use std::io;
use vmm_sys_util::eventfd::EventFd;

/// An edge-triggered interrupt line of the I/O APIC.
///
/// Called from any thread.
pub trait IrqLine: Send + Sync {
    /// Raises one edge.
    ///
    /// # Errors
    /// If the host cannot deliver it; the caller counts or logs that, the guest misses one interrupt.
    fn raise(&self) -> io::Result<()>;
}

/// The level of a function's interrupt pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// It wants to be served.
    Asserted,
    /// It has nothing to say.
    Idle,
}

/// The interrupt pin INTA# of one PCI function: level triggered, on a line that other functions may share (PCI 3.0
/// 2.2.6).
///
/// Only for a driver that does without MSI-X. Called by workers and vCPU threads, one after the other.
pub trait IntxPin: Send + Sync {
    /// Asserts the pin or lets go of it. Called for changes only; the pin is idle at first. The line stays asserted as
    /// long as one of its functions wants that.
    ///
    /// # Errors
    /// If the host refuses; the line stays as it was.
    fn drive(&self, level: Level) -> io::Result<()>;

    /// The global system interrupt of the line, which firmware would leave in the Interrupt Line register.
    fn line(&self) -> u8;
}

/// The message of an MSI: PCI 3.0 6.8.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiMessage {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// One MSI-X vector of one device.
///
/// A signal while nothing is routed is held, not lost: it is *pending* (the PBA bit) and is delivered when a route is
/// set again. With irqfd this falls out of the eventfd's counter: no route means that it is not read, and KVM looks at
/// it when the irqfd is assigned.
pub trait MsiVector: Send + Sync {
    /// Delivers the interrupt, or holds it. Called by workers and vCPU threads; takes no lock.
    ///
    /// # Errors
    /// If the host cannot deliver it.
    fn signal(&self) -> io::Result<()>;

    /// Delivers to `message` from now on, or holds what comes while it is `None`. Called by vCPU threads, under the
    /// lock of the device's MSI-X table.
    ///
    /// # Errors
    /// If the host refuses the route.
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()>;

    /// Returns whether a signal is being held.
    fn pending(&self) -> bool;

    /// Forgets a signal that is being held (the device was reset).
    fn clear(&self);

    /// The event that stands for [`signal`](Self::signal), for a backend in the kernel that signals by itself. It stays
    /// the same, routed or not. `None` if a signal takes more than writing to an event.
    fn event(&self) -> Option<&EventFd> {
        None
    }
}

#[cfg(test)]
pub(crate) mod fake {
    //! A vector and a pin that remember.

    use super::{IntxPin, Level, MsiMessage, MsiVector};
    use std::io;
    use std::sync::Mutex;

    #[derive(Default)]
    struct State {
        routed: Option<MsiMessage>,
        held: u32,
        delivered: u32,
    }

    /// Every level that it was driven to.
    #[derive(Default)]
    pub(crate) struct FakePin(Mutex<Vec<Level>>);

    impl FakePin {
        pub(crate) const LINE: u8 = 17;

        pub(crate) fn levels(&self) -> Vec<Level> {
            self.0.lock().unwrap().clone()
        }
    }

    impl IntxPin for FakePin {
        fn drive(&self, level: Level) -> io::Result<()> {
            self.0.lock().unwrap().push(level);
            Ok(())
        }

        fn line(&self) -> u8 {
            Self::LINE
        }
    }

    #[derive(Default)]
    pub(crate) struct FakeVector(Mutex<State>);

    impl FakeVector {
        pub(crate) fn routed(&self) -> Option<MsiMessage> {
            self.0.lock().unwrap().routed
        }

        pub(crate) fn delivered(&self) -> u32 {
            self.0.lock().unwrap().delivered
        }
    }

    impl MsiVector for FakeVector {
        fn signal(&self) -> io::Result<()> {
            let mut state = self.0.lock().unwrap();
            if state.routed.is_some() {
                state.delivered += 1;
            } else {
                state.held += 1;
            }
            Ok(())
        }

        fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
            let mut state = self.0.lock().unwrap();
            state.routed = message;
            if message.is_some() {
                state.delivered += u32::from(state.held > 0);
                state.held = 0;
            }
            Ok(())
        }

        fn pending(&self) -> bool {
            self.0.lock().unwrap().held > 0
        }

        fn clear(&self) {
            self.0.lock().unwrap().held = 0;
        }
    }
}
