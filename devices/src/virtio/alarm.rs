//! The timer of a worker: it goes off at the earliest of the times that it was set for.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};
use vmm_sys_util::timerfd::TimerFd;

/// A timer that is set only when there is something to wait for. An alarm whose reason has gone is not taken back: it
/// goes off once in vain, which is cheaper than a system call for each.
pub(crate) struct Alarm {
    timer: TimerFd,
    set_for: Option<Instant>,
}

impl Alarm {
    /// An alarm that is not set.
    ///
    /// # Errors
    /// If the host has no timer left.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { timer: TimerFd::new()?, set_for: None })
    }

    /// Goes off at `time`, unless it does so earlier anyway.
    ///
    /// # Errors
    /// As `timerfd_settime(2)`.
    pub(crate) fn set(&mut self, time: Option<Instant>) -> io::Result<()> {
        let Some(time) = time.filter(|time| self.set_for.is_none_or(|earlier| *time < earlier)) else { return Ok(()) };
        // Zero would switch the timer off.
        let delay = time.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        self.timer.reset(delay, None)?;
        self.set_for = Some(time);
        Ok(())
    }

    /// Returns whether it has gone off by `now`, or is about to.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.set_for.is_some_and(|time| time <= now)
    }

    /// It went off, and is quiet from now on. The timer is not read: that would block if it was set again meanwhile.
    ///
    /// # Errors
    /// As `timerfd_settime(2)`.
    pub(crate) fn acknowledge(&mut self) -> io::Result<()> {
        self.set_for = None;
        self.timer.clear()?;
        Ok(())
    }
}

impl AsRawFd for Alarm {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

    /// Waits until the alarm goes off; `false` after 5 s.
    fn goes_off(alarm: &Alarm) -> bool {
        let epoll = Epoll::new().unwrap();
        epoll.ctl(ControlOperation::Add, alarm.as_raw_fd(), EpollEvent::new(EventSet::IN, 0)).unwrap();
        epoll.wait(5000, &mut [EpollEvent::default()]).unwrap() == 1
    }

    #[test]
    fn earliest_time_counts() {
        let mut alarm = Alarm::new().unwrap();
        let (now, hour) = (Instant::now(), Duration::from_secs(3600));
        alarm.set(None).unwrap();
        assert_eq!(alarm.set_for, None);
        alarm.set(Some(now + hour)).unwrap();
        alarm.set(Some(now + 2 * hour)).unwrap();
        assert_eq!(alarm.set_for, Some(now + hour));
        // In the past: it goes off at once.
        alarm.set(Some(now)).unwrap();
        assert!(goes_off(&alarm));
        alarm.acknowledge().unwrap();
        assert_eq!((alarm.set_for, alarm.timer.is_armed().unwrap()), (None, false));
    }
}
