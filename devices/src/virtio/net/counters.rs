//! The counters of a card, for each queue.
//!
//! A count is written by the worker of its pair only and read by anybody, Relaxed, since each stands for itself. With
//! one writer an addition is a load and a store: no locked instruction for each frame. The block of a pair has cache
//! lines of its own, so that one worker's counting does not slow another's.

use crate::virtio::device::Counter;
use crate::virtio::interrupt::Interrupts;
use std::io::Error;
use std::sync::atomic::{AtomicU64, Ordering};

/// A monotonic count with one writer.
#[derive(Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    /// Adds `n`. From the thread that owns the count.
    pub(super) fn add(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counts of one queue pair. Aligned to two cache lines, which processors fetch together.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Counters {
    /// Frames given to the guest.
    pub(super) rx_frames: Count,
    /// Their bytes, without the virtio header.
    pub(super) rx_bytes: Count,
    /// Wake-ups because the driver notified that buffers are there.
    pub(super) rx_doorbells: Count,
    /// Times a burst was cut so that others get their turn.
    pub(super) rx_budget_exhausted: Count,
    /// Frames that were longer than all the buffers the guest can post.
    pub(super) rx_too_long: Count,
    /// Frames that the guest does not want: another address, another VLAN.
    pub(super) rx_filtered: Count,
    /// Frames that came while the link was down.
    pub(super) rx_link_down: Count,
    /// Receive buffers that cannot take a frame: too small for a header, or not writable.
    pub(super) rx_bad_buffers: Count,
    /// Frames passed to the queue that the driver's indirection table names.
    pub(super) rx_steered: Count,
    /// Frames for which that queue had no room.
    pub(super) rx_steered_lost: Count,
    /// Attempts to receive from a port that has gone or is detached.
    pub(super) rx_port_gone: Count,
    /// Other errors of the host when receiving.
    pub(super) rx_host_errors: Count,
    /// Frames taken from the guest and given to the tap.
    pub(super) tx_frames: Count,
    /// Their bytes, without the virtio header.
    pub(super) tx_bytes: Count,
    /// Frames among them that left in one frame with others of their flow.
    pub(super) tx_joined: Count,
    /// Wake-ups because the driver notified that frames are there.
    pub(super) tx_doorbells: Count,
    /// Times a burst was cut so that others get their turn.
    pub(super) tx_budget_exhausted: Count,
    /// Times the tap had no room and the frame waited.
    pub(super) tx_waits: Count,
    /// Chains that are not a frame: too short, too long, or not readable.
    pub(super) tx_malformed: Count,
    /// Frames that were to be sent while the link was down.
    pub(super) tx_link_down: Count,
    /// Frames whose header the host refused: it asks for what the frame does not have.
    pub(super) tx_bad_header: Count,
    /// Frames that met an interface that is down.
    pub(super) tx_port_down: Count,
    /// Frames for a port that has gone or is detached.
    pub(super) tx_port_gone: Count,
    /// Frames for which the host had no memory.
    pub(super) tx_no_memory: Count,
    /// Frames that the host refused for another reason.
    pub(super) tx_host_errors: Count,
    /// Wake-ups because the driver notified that commands are there.
    pub(super) ctrl_doorbells: Count,
    /// Control commands that were obeyed.
    pub(super) ctrl_ok: Count,
    /// Control commands that were refused.
    pub(super) ctrl_refused: Count,
}

type Get = fn(&Counters) -> &Count;

const RX: [(&str, Get); 12] = [
    ("frames", |c| &c.rx_frames),
    ("bytes", |c| &c.rx_bytes),
    ("doorbells", |c| &c.rx_doorbells),
    ("budget_exhausted", |c| &c.rx_budget_exhausted),
    ("too_long", |c| &c.rx_too_long),
    ("filtered", |c| &c.rx_filtered),
    ("link_down", |c| &c.rx_link_down),
    ("bad_buffers", |c| &c.rx_bad_buffers),
    ("steered", |c| &c.rx_steered),
    ("steered_lost", |c| &c.rx_steered_lost),
    ("port_gone", |c| &c.rx_port_gone),
    ("host_errors", |c| &c.rx_host_errors),
];

const TX: [(&str, Get); 13] = [
    ("frames", |c| &c.tx_frames),
    ("bytes", |c| &c.tx_bytes),
    ("joined", |c| &c.tx_joined),
    ("doorbells", |c| &c.tx_doorbells),
    ("budget_exhausted", |c| &c.tx_budget_exhausted),
    ("waits", |c| &c.tx_waits),
    ("malformed", |c| &c.tx_malformed),
    ("link_down", |c| &c.tx_link_down),
    ("bad_header", |c| &c.tx_bad_header),
    ("port_down", |c| &c.tx_port_down),
    ("port_gone", |c| &c.tx_port_gone),
    ("no_memory", |c| &c.tx_no_memory),
    ("host_errors", |c| &c.tx_host_errors),
];

const CTRL: [(&str, Get); 3] =
    [("doorbells", |c| &c.ctrl_doorbells), ("ok", |c| &c.ctrl_ok), ("refused", |c| &c.ctrl_refused)];

impl Counters {
    /// The counts of pair `idx` by name: `rx.0.frames`, `tx.0.frames`, and for the first pair, which serves the control
    /// queue, `ctrl.ok`. `interrupts` is missing as long as no driver has run.
    pub(super) fn report(&self, idx: u16, interrupts: Option<&Interrupts>) -> Vec<Counter> {
        let mut report = Vec::new();
        for (side, queue, counts) in [("rx", 2 * idx, &RX[..]), ("tx", 2 * idx + 1, &TX[..])] {
            let named = |name: &str, value| Counter { name: format!("{side}.{idx}.{name}").into(), value };
            report.extend(counts.iter().map(|(name, get)| named(name, get(self).get())));
            let interrupts = interrupts.map(|interrupts| interrupts.of_queue(queue)).unwrap_or_default();
            report.push(named("interrupts", interrupts.sent));
            report.push(named("interrupts_suppressed", interrupts.suppressed));
        }
        if idx == 0 {
            report.extend(self.report_ctrl());
        }
        report
    }

    /// The counts of the control queue by name, such as `ctrl.ok`.
    pub(super) fn report_ctrl(&self) -> impl Iterator<Item = Counter> {
        CTRL.iter().map(|(name, get)| Counter { name: format!("ctrl.{name}").into(), value: get(self).get() })
    }

    /// Where a frame goes that could not be sent because of `error` (tun_get_user of the kernel).
    pub(super) fn tx_error(&self, error: &Error) -> &Count {
        match error.raw_os_error() {
            Some(libc::EINVAL) => &self.tx_bad_header,
            Some(libc::EIO | libc::ENETDOWN) => &self.tx_port_down,
            Some(libc::EBADFD | libc::ENODEV | libc::ENXIO) => &self.tx_port_gone,
            Some(libc::ENOMEM | libc::ENOBUFS) => &self.tx_no_memory,
            _ => &self.tx_host_errors,
        }
    }

    /// The counter for a receive call that gave `error`.
    pub(super) fn rx_error(&self, error: &Error) -> &Count {
        match error.raw_os_error() {
            Some(libc::EBADFD | libc::ENODEV | libc::ENXIO) => &self.rx_port_gone,
            _ => &self.rx_host_errors,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(report: &[Counter], name: &str) -> Option<u64> {
        report.iter().find(|counter| counter.name == name).map(|counter| counter.value)
    }

    #[test]
    fn each_pair_reports_its_own_queues_and_the_first_the_control_queue() {
        let (first, second) = (Counters::default(), Counters::default());
        first.rx_frames.add(3);
        second.tx_bytes.add(60);
        second.tx_bytes.add(40);

        let report = [first.report(0, None), second.report(1, None)].concat();

        assert_eq!(value(&report, "rx.0.frames"), Some(3));
        assert_eq!(value(&report, "rx.1.frames"), Some(0));
        assert_eq!(value(&report, "tx.1.bytes"), Some(100));
        assert_eq!(value(&report, "ctrl.ok"), Some(0));
        assert_eq!(report.iter().filter(|counter| counter.name.starts_with("ctrl.")).count(), CTRL.len());
    }

    #[test]
    fn interrupts_are_those_of_the_pairs_queues() {
        let interrupts = Interrupts::new(Vec::new(), 5);
        interrupts.signal_queue(3);
        interrupts.spare_queue(2);

        let report = Counters::default().report(1, Some(&interrupts));

        assert_eq!(
            (value(&report, "tx.1.interrupts"), value(&report, "tx.1.interrupts_suppressed")),
            (Some(1), Some(0))
        );
        assert_eq!(
            (value(&report, "rx.1.interrupts"), value(&report, "rx.1.interrupts_suppressed")),
            (Some(0), Some(1))
        );
    }

    #[test]
    fn errors_are_counted_by_kind() {
        let counters = Counters::default();
        for errno in [libc::EINVAL, libc::EIO, libc::EIO, libc::EBADFD, libc::ENOBUFS, libc::EPERM] {
            counters.tx_error(&Error::from_raw_os_error(errno)).add(1);
        }

        let report = counters.report(0, None);

        let kinds = ["bad_header", "port_down", "port_gone", "no_memory", "host_errors"];
        assert_eq!(kinds.map(|kind| value(&report, &format!("tx.0.{kind}")).unwrap()), [1, 2, 1, 1, 1]);
    }

    #[test]
    fn block_of_a_pair_has_cache_lines_of_its_own() {
        assert_eq!(align_of::<Counters>() % 128, 0);
    }
}
