//! Channel 2 of the 8254 timer with port 0x61, by which a kernel without a paravirtual clock finds out how fast its TSC
//! is.
//!
//! Linux counts TSC cycles while the channel counts down in mode 0 (`arch/x86/kernel/tsc.c`): by its high byte
//! (`quick_pit_calibrate`) or until its output rises (`pit_calibrate_tsc`). For either an access has to be short: about
//! 15 us for the first and 10 us for the second. No other mode is emulated, and neither are the channels that would
//! have an interrupt (0) or refresh memory (1): what is written there is dropped, and they read 0.
//!
//! It has no thread. The count follows from the time at which it began.

use crate::bus::BusDevice;
use crate::legacy::byte_ports::{self, lock};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Length in ports: the counters 0 to 2, then the control word.
pub const PORTS: u64 = 4;

/// Ticks in a second: a third of the NTSC colour carrier's 3.579545 MHz.
const HERTZ: u128 = 1_193_182;

const COUNTER_2: u64 = 2;
const CONTROL: u64 = 3;
/// Port 0x61's offset among those of the keyboard controller.
const PORT_B: u64 = 1;

/// Port 0x61: the channel's gate, the speaker's, and the channel's output.
const GATE: u8 = 1 << 0;
const SPEAKER: u8 = 1 << 1;
const OUTPUT: u8 = 1 << 5;

/// The count that a written 0 stands for.
const WHOLE: u32 = 1 << 16;

/// The timer.
#[derive(Default)]
pub struct Pit {
    channel: Mutex<Channel>,
}

/// Which byte of a word is next.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Half {
    #[default]
    Low,
    High,
}

impl Half {
    fn flip(&mut self) -> Self {
        let now = *self;
        *self = if now == Self::Low { Self::High } else { Self::Low };
        now
    }
}

#[derive(Default)]
struct Channel {
    /// Low two bits of port 0x61.
    port_b: u8,
    low: u8,
    write: Half,
    read: Half,
    /// The count as it was when it was latched.
    latched: Option<u16>,
    /// The count that was written, once it was.
    start: Option<u32>,
    /// How long it has counted before `since`.
    counted: Duration,
    /// When it began to count, unless its gate is shut.
    since: Option<Instant>,
}

impl Channel {
    fn ticks(&self, now: Instant) -> u128 {
        let time = self.counted + self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        time.as_nanos() * HERTZ / Duration::from_secs(1).as_nanos()
    }

    /// The count: it goes on through 0.
    #[expect(clippy::cast_possible_truncation, reason = "the counter has 16 bits")]
    fn count(&self, now: Instant) -> u16 {
        self.start.map_or(0, |start| u128::from(start).wrapping_sub(self.ticks(now)) as u16)
    }

    /// Mode 0: low until the count is through.
    fn output(&self, now: Instant) -> bool {
        self.start.is_some_and(|start| self.ticks(now) >= u128::from(start))
    }

    /// A control word: bits 7:6 the channel, 5:4 how it is accessed, or 0 to latch its count.
    fn control(&mut self, word: u8, now: Instant) {
        if word >> 6 != 2 {
            return;
        }
        if word >> 4 & 3 == 0 {
            self.latched.get_or_insert(self.count(now));
            return;
        }
        *self = Self { port_b: self.port_b, ..Self::default() };
    }

    fn write(&mut self, byte: u8, now: Instant) {
        match self.write.flip() {
            Half::Low => {
                self.low = byte;
                self.start = None;
            }
            Half::High => {
                let count = u32::from(u16::from_le_bytes([self.low, byte]));
                self.start = Some(if count == 0 { WHOLE } else { count });
                self.counted = Duration::ZERO;
                self.since = (self.port_b & GATE != 0).then_some(now);
            }
        }
    }

    fn read(&mut self, now: Instant) -> u8 {
        let [low, high] = self.latched.unwrap_or_else(|| self.count(now)).to_le_bytes();
        match self.read.flip() {
            Half::Low => low,
            Half::High => {
                self.latched = None;
                high
            }
        }
    }

    fn write_port_b(&mut self, value: u8, now: Instant) {
        let is_open = value & GATE != 0;
        if let Some(since) = self.since.take_if(|_| !is_open) {
            self.counted += now.saturating_duration_since(since);
        }
        if is_open && self.since.is_none() && self.start.is_some() {
            self.since = Some(now);
        }
        self.port_b = value & (GATE | SPEAKER);
    }

    fn read_port_b(&self, now: Instant) -> u8 {
        self.port_b | if self.output(now) { OUTPUT } else { 0 }
    }
}

impl Pit {
    /// A timer that counts nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Port 0x61 among the keyboard controller's ports 0x60 to 0x64; `behind` answers the others.
    pub fn port_b(pit: Arc<Self>, behind: Arc<dyn BusDevice>) -> Arc<dyn BusDevice> {
        Arc::new(PortB { pit, behind })
    }
}

impl BusDevice for Pit {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let (mut channel, now) = (lock(&self.channel), Instant::now());
        byte_ports::read(offset, data, |port| match port {
            COUNTER_2 => channel.read(now),
            _ => 0,
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (mut channel, now) = (lock(&self.channel), Instant::now());
        byte_ports::write(offset, data, |port, value| match port {
            COUNTER_2 => channel.write(value, now),
            CONTROL => channel.control(value, now),
            _ => {}
        });
    }
}

struct PortB {
    pit: Arc<Pit>,
    behind: Arc<dyn BusDevice>,
}

impl BusDevice for PortB {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data) {
            (PORT_B, [value]) => *value = lock(&self.pit.channel).read_port_b(Instant::now()),
            (_, data) => self.behind.read(offset, data),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (PORT_B, [value]) => lock(&self.pit.channel).write_port_b(*value, Instant::now()),
            _ => self.behind.write(offset, data),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Channel 2, both bytes, mode 0, binary: what Linux writes.
    const MODE_0: u8 = 0xb0;

    fn after(us: u64, start: Instant) -> Instant {
        start + Duration::from_micros(us)
    }

    fn counting(count: u16) -> (Channel, Instant) {
        let (mut channel, now) = (Channel::default(), Instant::now());
        channel.write_port_b(GATE, now);
        channel.control(MODE_0, now);
        for byte in count.to_le_bytes() {
            channel.write(byte, now);
        }
        (channel, now)
    }

    #[test]
    fn output_rises_when_the_count_is_through() {
        // Linux's CAL_LATCH for 10 ms.
        let (channel, start) = counting(11_931);
        assert_eq!(channel.read_port_b(after(9_990, start)), GATE);
        assert_eq!(channel.read_port_b(after(10_010, start)), GATE | OUTPUT);
    }

    #[test]
    fn count_is_read_low_byte_first_and_falls_by_256_in_214_us() {
        let (mut channel, start) = counting(0xffff);
        let mut word = |us| u16::from_le_bytes([channel.read(after(us, start)), channel.read(after(us, start))]);
        assert_eq!(word(0), 0xffff);
        assert_eq!((word(1_000), word(10_000)), (0xffff - 1_193, 0xffff - 11_931));
        // 71590 ticks in 60 ms: once through zero.
        assert_eq!(word(60_000), u16::try_from(0x1_ffff - 71_590).unwrap());
    }

    #[test]
    fn latched_count_stays_until_it_is_read() {
        let (mut channel, start) = counting(0xffff);
        channel.control(0x80, after(1_000, start));
        let word = [channel.read(after(9_000, start)), channel.read(after(9_000, start))];
        assert_eq!(u16::from_le_bytes(word), 0xffff - 1_193);
        assert_ne!(channel.read(after(9_000, start)), word[0]);
    }

    #[test]
    fn shut_gate_stops_the_count() {
        let (mut channel, start) = counting(0xffff);
        channel.write_port_b(0, after(1_000, start));
        assert_eq!(channel.count(after(9_000, start)), 0xffff - 1_193);
        channel.write_port_b(GATE, after(9_000, start));
        assert_eq!(channel.count(after(10_000, start)), 0xffff - 2_386);
    }

    #[test]
    fn nothing_counts_before_both_bytes_are_written() {
        let (mut channel, start) = counting(100);
        channel.write(5, after(1, start));
        assert_eq!((channel.count(after(500, start)), channel.read_port_b(after(500, start))), (0, GATE));
    }

    #[test]
    fn port_b_is_the_timers_and_the_others_are_not() {
        struct Behind;
        impl BusDevice for Behind {
            fn read(&self, _offset: u64, data: &mut [u8]) {
                data.fill(0x55);
            }
            fn write(&self, _offset: u64, _data: &[u8]) {}
        }
        let ports = Pit::port_b(Arc::new(Pit::new()), Arc::new(Behind));
        let (mut port_b, mut command) = ([0xff], [0xff]);

        ports.write(1, &[0xff]);
        ports.read(1, &mut port_b);
        ports.read(4, &mut command);

        assert_eq!((port_b, command), ([GATE | SPEAKER], [0x55]));
    }

    #[test]
    fn other_channels_read_zero_and_any_access_is_harmless() {
        let pit = Pit::new();
        for offset in 0..PORTS {
            for value in 0..=255 {
                pit.write(offset, &[value]);
                pit.write(offset, &[value; 4]);
            }
        }
        let mut data = [0xff; 2];
        pit.read(0, &mut data);
        assert_eq!(data, [0, 0]);
    }
}
