//! The MC146818 real-time clock with its 128 bytes of CMOS memory, at an index and a data port.
//!
//! Keeps the host's `CLOCK_REALTIME` as UTC, plus an offset of whole seconds that the guest makes by setting the clock;
//! the host's own clock is never touched. A working clock is worth having: a guest that finds one which neither works
//! nor is declared absent spends seconds of its boot on waiting for it.
//!
//! Linux needs of it (`drivers/rtc/rtc-mc146818-lib.c`, `rtc-cmos.c`): update-in-progress that clears within 10 ms, two
//! readings that agree, the valid bit in register D with its other bits zero. It has no interrupt: alarm, periodic and
//! update-ended interrupts cannot be enabled and register C reads 0. The alarm bytes are plain memory. Without an
//! interrupt in the clock's ACPI device Linux registers it as a clock without alarms.

use crate::bus::BusDevice;
use crate::legacy::byte_ports::{self, lock};
use crate::legacy::calendar::Date;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Length in ports: index at offset 0, data at offset 1.
pub const PORTS: u64 = 2;

const INDEX_PORT: u64 = 0;
const DATA_PORT: u64 = 1;

/// Bit 7 of the index port masks NMIs on a PC; the rest selects the byte.
const INDEX_MASK: u8 = 0x7f;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY_OF_WEEK: u8 = 0x06;
const DAY_OF_MONTH: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
/// The byte that PCs keep the century in. The FADT's CENTURY field must name it.
pub const CENTURY: u8 = 0x32;

/// Register A bit 7, update in progress: the time may change while it is read.
const A_UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// A 32.768 kHz time base and a 1024 Hz square wave, as a PC's firmware leaves it.
const A_AT_RESET: u8 = 0x26;
/// Register B bit 7: the clock stands still and can be set.
const B_SET: u8 = 1 << 7;
/// Register B bit 2: binary instead of BCD.
const B_BINARY: u8 = 1 << 2;
/// Register B bit 1: hours 0 to 23 instead of 1 to 12 with a PM bit.
const B_24_HOURS: u8 = 1 << 1;
/// The bits of register B that do something here. Interrupt enables, square wave and daylight saving read back as 0.
const B_WRITABLE: u8 = B_SET | B_BINARY | B_24_HOURS;
/// Bit 7 of the hours in 12-hour mode.
const HOURS_PM: u8 = 1 << 7;
/// Register D bit 7: memory and time are valid.
const D_VALID: u8 = 1 << 7;

/// How long before a second begins update-in-progress is set: t_BUC of the data sheet, in nanoseconds.
const UPDATE_NS: u32 = 244_000;
const SECONDS_PER_DAY: i64 = 86_400;

/// The device.
pub struct Rtc {
    state: Mutex<State>,
    clock: fn() -> Duration,
}

struct State {
    index: u8,
    /// All bytes as last written; those of the time are only meant while the clock stands still.
    ram: [u8; 128],
    /// Guest time minus host time.
    offset_secs: i64,
}

impl Default for Rtc {
    fn default() -> Self {
        Self::new()
    }
}

impl Rtc {
    /// A clock that shows the host's time.
    pub fn new() -> Self {
        Self::with_clock(host_time)
    }

    fn with_clock(clock: fn() -> Duration) -> Self {
        let mut ram = [0; 128];
        ram[usize::from(REGISTER_A)] = A_AT_RESET;
        ram[usize::from(REGISTER_B)] = B_24_HOURS;
        Self { state: Mutex::new(State { index: 0, ram, offset_secs: 0 }), clock }
    }
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = lock(&self.state);
        byte_ports::read(offset, data, |port| match port {
            DATA_PORT => state.get(state.index, (self.clock)()),
            _ => 0xff,
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = lock(&self.state);
        byte_ports::write(offset, data, |port, value| match port {
            INDEX_PORT => state.index = value & INDEX_MASK,
            DATA_PORT => state.set(value, (self.clock)()),
            _ => {}
        });
    }
}

/// Time since 1970. A host that believes to be before that is taken to be at 1970.
fn host_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl State {
    /// The byte at `index` at host time `now`.
    fn get(&self, index: u8, now: Duration) -> u8 {
        let stored = self.ram[usize::from(index & INDEX_MASK)];
        match index {
            REGISTER_A if self.updates_soon(now) => stored | A_UPDATE_IN_PROGRESS,
            REGISTER_C => 0,
            REGISTER_D => D_VALID,
            _ if self.is_stopped() => stored,
            _ => self.format().encode(index, self.time(now)).unwrap_or(stored),
        }
    }

    /// Writes the byte at the current index at host time `now`.
    fn set(&mut self, value: u8, now: Duration) {
        let index = self.index;
        match index {
            REGISTER_A => self.store(index, value & !A_UPDATE_IN_PROGRESS),
            REGISTER_B => self.set_control(value & B_WRITABLE, now),
            REGISTER_C | REGISTER_D => {}
            _ if is_time(index) && !self.is_stopped() => {
                self.freeze(now);
                self.store(index, value);
                self.thaw(now);
            }
            _ => self.store(index, value),
        }
    }

    fn set_control(&mut self, value: u8, now: Duration) {
        let was_stopped = self.is_stopped();
        self.store(REGISTER_B, value);
        match (was_stopped, self.is_stopped()) {
            (false, true) => self.freeze(now),
            (true, false) => self.thaw(now),
            _ => {}
        }
    }

    fn store(&mut self, index: u8, value: u8) {
        self.ram[usize::from(index & INDEX_MASK)] = value;
    }

    fn is_stopped(&self) -> bool {
        self.ram[usize::from(REGISTER_B)] & B_SET != 0
    }

    fn format(&self) -> Format {
        Format(self.ram[usize::from(REGISTER_B)])
    }

    fn updates_soon(&self, now: Duration) -> bool {
        !self.is_stopped() && now.subsec_nanos() >= 1_000_000_000 - UPDATE_NS
    }

    /// Guest time in seconds since 1970.
    fn time(&self, now: Duration) -> i64 {
        host_secs(now).saturating_add(self.offset_secs)
    }

    /// Puts the time into memory, where the guest changes it.
    fn freeze(&mut self, now: Duration) {
        let (format, time) = (self.format(), self.time(now));
        for index in TIME {
            if let Some(value) = format.encode(index, time) {
                self.store(index, value);
            }
        }
    }

    /// Goes on from the time in memory. One that does not exist (a 31st of April, half-written digits) leaves the clock
    /// as it was.
    fn thaw(&mut self, now: Duration) {
        if let Some(time) = self.format().decode(&self.ram) {
            self.offset_secs = time.saturating_sub(host_secs(now));
        }
    }
}

/// The bytes that make up the time.
const TIME: [u8; 8] = [SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY_OF_MONTH, MONTH, YEAR, CENTURY];

fn is_time(index: u8) -> bool {
    TIME.contains(&index)
}

fn host_secs(now: Duration) -> i64 {
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

/// How register B wants the time written.
#[derive(Clone, Copy)]
struct Format(u8);

impl Format {
    /// The byte at `index` at guest time `time`, or `None` if that byte is not part of the time.
    fn encode(self, index: u8, time: i64) -> Option<u8> {
        let days = time.div_euclid(SECONDS_PER_DAY);
        let second_of_day = time.rem_euclid(SECONDS_PER_DAY);
        let date = Date::from_days(days);
        let number = match index {
            SECONDS => second_of_day % 60,
            MINUTES => second_of_day / 60 % 60,
            HOURS => return Some(self.encode_hour(second_of_day / 3600)),
            DAY_OF_WEEK => Date::day_of_week(days),
            DAY_OF_MONTH => date.day,
            MONTH => date.month,
            YEAR => date.year,
            CENTURY => date.year.div_euclid(100),
            _ => return None,
        };
        Some(self.encode_number(number))
    }

    fn encode_hour(self, hour: i64) -> u8 {
        if self.0 & B_24_HOURS != 0 {
            return self.encode_number(hour);
        }
        let pm = if hour >= 12 { HOURS_PM } else { 0 };
        self.encode_number((hour + 11) % 12 + 1) | pm
    }

    /// The last two digits of `number`.
    fn encode_number(self, number: i64) -> u8 {
        let digits = u8::try_from(number.rem_euclid(100)).unwrap_or(0);
        if self.0 & B_BINARY != 0 { digits } else { ((digits / 10) << 4) | (digits % 10) }
    }

    /// The time in `ram` in seconds since 1970, or `None` if it does not exist.
    fn decode(self, ram: &[u8; 128]) -> Option<i64> {
        let number = |index: u8| self.decode_number(ram[usize::from(index)]);
        let hour = self.decode_hour(ram[usize::from(HOURS)])?;
        let (minute, second) = (number(MINUTES)?, number(SECONDS)?);
        if minute > 59 || second > 59 {
            return None;
        }
        let date =
            Date { year: number(CENTURY)? * 100 + number(YEAR)?, month: number(MONTH)?, day: number(DAY_OF_MONTH)? };
        Some(date.to_days()? * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second)
    }

    fn decode_hour(self, byte: u8) -> Option<i64> {
        if self.0 & B_24_HOURS != 0 {
            return self.decode_number(byte).filter(|hour| *hour <= 23);
        }
        let pm = if byte & HOURS_PM != 0 { 12 } else { 0 };
        self.decode_number(byte & !HOURS_PM).filter(|hour| (1..=12).contains(hour)).map(|hour| hour % 12 + pm)
    }

    fn decode_number(self, byte: u8) -> Option<i64> {
        let (tens, ones) = (byte >> 4, byte & 0xf);
        if self.0 & B_BINARY != 0 {
            (byte <= 99).then_some(i64::from(byte))
        } else {
            (tens <= 9 && ones <= 9).then(|| i64::from(tens * 10 + ones))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 2026-11-22 23:59:58.5 UTC, a Sunday.
    const EVENING: Duration = Duration::new(1_795_391_998, 500_000_000);

    fn rtc() -> Rtc {
        Rtc::with_clock(|| EVENING)
    }

    fn read(rtc: &Rtc, index: u8) -> u8 {
        let mut data = [0];
        rtc.write(0, &[index]);
        rtc.read(1, &mut data);
        data[0]
    }

    fn write(rtc: &Rtc, index: u8, value: u8) {
        rtc.write(0, &[index]);
        rtc.write(1, &[value]);
    }

    /// Century, year, month, day, day of week, hours, minutes, seconds.
    fn time(rtc: &Rtc) -> [u8; 8] {
        [CENTURY, YEAR, MONTH, DAY_OF_MONTH, DAY_OF_WEEK, HOURS, MINUTES, SECONDS].map(|index| read(rtc, index))
    }

    #[test]
    fn time_is_bcd_and_24_hours_at_reset() {
        assert_eq!(time(&rtc()), [0x20, 0x26, 0x11, 0x22, 1, 0x23, 0x59, 0x58]);
    }

    #[test]
    fn binary_12_hours_has_a_pm_bit() {
        let rtc = rtc();

        write(&rtc, REGISTER_B, B_BINARY);

        assert_eq!(time(&rtc), [20, 26, 11, 22, 1, 0x80 | 11, 59, 58]);
    }

    #[test]
    fn midnight_and_noon_are_12_in_12_hours() {
        let format = Format(0);

        assert_eq!(format.encode(HOURS, 0), Some(0x12));
        assert_eq!(format.encode(HOURS, 12 * 3600), Some(0x92));
        assert_eq!(format.decode_hour(0x12), Some(0));
        assert_eq!(format.decode_hour(0x92), Some(12));
    }

    #[test]
    fn clock_set_by_the_guest_goes_on_from_there() {
        // In the order of Linux' mc146818_set_time: stop, write, start.
        let rtc = rtc();

        write(&rtc, REGISTER_B, B_SET | B_24_HOURS);
        for (index, value) in [
            (YEAR, 0x00),
            (MONTH, 0x02),
            (DAY_OF_MONTH, 0x29),
            (HOURS, 0x23),
            (MINUTES, 0x59),
            (SECONDS, 0x59),
            (CENTURY, 0x20),
        ] {
            write(&rtc, index, value);
        }
        assert_eq!(read(&rtc, SECONDS), 0x59);
        write(&rtc, REGISTER_B, B_24_HOURS);

        let state = lock(&rtc.state);
        let later = EVENING + Duration::from_secs(1);
        let date = [CENTURY, YEAR, MONTH, DAY_OF_MONTH, DAY_OF_WEEK, HOURS].map(|index| state.get(index, later));
        assert_eq!(date, [0x20, 0x00, 0x03, 0x01, 4, 0x00]);
    }

    #[test]
    fn date_that_does_not_exist_leaves_the_clock_alone() {
        let rtc = rtc();
        let before = time(&rtc);

        write(&rtc, MONTH, 0x13);
        write(&rtc, HOURS, 0x1f);

        assert_eq!(time(&rtc), before);
    }

    #[test]
    fn single_byte_of_the_running_clock_can_be_set() {
        let rtc = rtc();

        write(&rtc, MINUTES, 0x30);

        assert_eq!(time(&rtc), [0x20, 0x26, 0x11, 0x22, 1, 0x23, 0x30, 0x58]);
    }

    #[test]
    fn update_in_progress_is_set_just_before_a_second_and_not_while_stopped() {
        let rtc = rtc();
        let just_before = Duration::new(1, 999_900_000);

        let running = lock(&rtc.state).get(REGISTER_A, just_before);
        write(&rtc, REGISTER_B, B_SET);
        let stopped = lock(&rtc.state).get(REGISTER_A, just_before);

        assert_eq!(read(&rtc, REGISTER_A) & A_UPDATE_IN_PROGRESS, 0);
        assert_eq!((running, stopped), (0xa6, 0x26));
    }

    #[test]
    fn interrupts_cannot_be_enabled() {
        let rtc = rtc();

        write(&rtc, REGISTER_B, !B_SET);

        assert_eq!(read(&rtc, REGISTER_B), B_BINARY | B_24_HOURS);
        assert_eq!(read(&rtc, REGISTER_C), 0);
    }

    #[test]
    fn register_d_says_valid_whatever_is_written() {
        let rtc = rtc();

        write(&rtc, REGISTER_D, 0x7f);

        assert_eq!(read(&rtc, REGISTER_D), D_VALID);
    }

    #[test]
    fn memory_and_alarm_keep_what_is_written() {
        let rtc = rtc();

        write(&rtc, 0x01, 0xaa);
        write(&rtc, 0x7f, 0x55);

        assert_eq!((read(&rtc, 0x01), read(&rtc, 0x7f)), (0xaa, 0x55));
    }

    #[test]
    fn nmi_bit_of_the_index_is_ignored() {
        assert_eq!(read(&rtc(), 0x80 | MINUTES), 0x59);
    }

    #[test]
    fn word_write_sets_index_and_data() {
        let rtc = rtc();

        rtc.write(0, &[0x40, 0x77]);

        assert_eq!(read(&rtc, 0x40), 0x77);
    }

    #[test]
    fn index_port_reads_all_ones() {
        let mut data = [0];

        rtc().read(0, &mut data);

        assert_eq!(data, [0xff]);
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(time in -62_167_219_200..253_402_300_800i64, control: u8) {
            let mut ram = [0; 128];
            let format = Format(control);
            for index in TIME {
                ram[usize::from(index)] = format.encode(index, time).unwrap();
            }
            prop_assert_eq!(format.decode(&ram), Some(time));
        }

        #[test]
        fn any_writes_are_harmless(
            writes in prop::collection::vec((0..2u64, prop::collection::vec(any::<u8>(), 1..9)), 0..64),
        ) {
            let rtc = rtc();
            for (offset, mut data) in writes {
                rtc.write(offset, &data);
                rtc.read(offset, &mut data);
            }
        }
    }
}
