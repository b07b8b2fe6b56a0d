//! Rate limits and impairments of a card's frames: `rate=`, `burst=`, `delay=`, `jitter=`, `loss=`, `seed=`.
//!
//! ```text
//! rate=IN/OUT       bits per second to and from the guest: 100M/20M, 1G/1G, 512k/64k
//! burst=BYTES       bytes that pass at once after a pause: 64K, 1M
//! delay=TIME        delay of every frame, each way: 20ms, 500us, 1s
//! jitter=TIME       variation of the delay, more or less
//! loss=PERCENT      share of frames that are lost, each way: 1%, 0.1%
//! seed=NUMBER       seed of jitter and losses: the same number repeats them
//! ```

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use super::fields::{FieldError, deserialize_as_flag_text, scaled};

/// The slowest and the fastest rate in bits per second. At the slowest, a full frame takes two minutes.
const RATE_MIN: u64 = 100;
const RATE_MAX: u64 = 1_000_000_000_000;

/// Longest delay and jitter: longer than on any path on Earth.
const TIME_MAX: Duration = Duration::from_secs(10);

/// The burst without `burst=`: its minimum in bytes, a frame before segmentation, and the fraction of a second of the
/// rate.
const BURST_MIN: u64 = 64 << 10;
const BURSTS_PER_SECOND: u64 = 100;

/// The rate limits and impairments of a card; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImpairSpec {
    /// Bits per second, each way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<RatePair>,
    /// Bytes that pass at once after a pause; 10 ms of the rate, and at least 64 KiB, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<Burst>,
    /// The delay of every frame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
    /// The variation of the delay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Delay>,
    /// The share of lost frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
    /// The seed of jitter and losses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<Seed>,
}

impl ImpairSpec {
    /// The keys, in the order of the fields.
    const KEYS: &[&str] = &["rate", "burst", "delay", "jitter", "loss", "seed"];

    /// The first given key.
    pub(super) fn first_key(&self) -> Option<&'static str> {
        let there = [
            self.rate.is_some(),
            self.burst.is_some(),
            self.delay.is_some(),
            self.jitter.is_some(),
            self.loss.is_some(),
            self.seed.is_some(),
        ];
        Self::KEYS.iter().zip(there).find(|(_, there)| *there).map(|(key, _)| *key)
    }

    /// The first given key other than `rate` and `burst`.
    pub(super) fn first_key_but_rates(&self) -> Option<&'static str> {
        Self { rate: None, burst: None, ..self.clone() }.first_key()
    }

    /// A key that has no effect, and what it needs.
    pub(super) fn idle_key(&self) -> Option<(&'static str, &'static str)> {
        if self.burst.is_some() && self.rate.is_none() {
            return Some(("burst", "rate=100M/100M"));
        }
        if self.seed.is_some() && self.jitter.is_none() && self.loss.is_none() {
            return Some(("seed", "loss=1% or jitter=5ms"));
        }
        None
    }

    /// The burst of this rate, in bytes.
    pub fn burst_of(&self, bits_per_second: u64) -> u64 {
        self.burst.map_or((bits_per_second / 8 / BURSTS_PER_SECOND).max(BURST_MIN), Burst::bytes)
    }
}

impl fmt::Display for ImpairSpec {
    /// The end of a flag that gives this spec, with a comma before each key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rate, burst, delay, jitter, loss, seed } = self;
        let texts = [
            rate.map(|rate| rate.to_string()),
            burst.map(|burst| burst.bytes().to_string()),
            delay.map(|delay| delay.to_string()),
            jitter.map(|jitter| jitter.to_string()),
            loss.map(|loss| loss.to_string()),
            seed.map(|seed| seed.get().to_string()),
        ];
        Self::KEYS
            .iter()
            .zip(texts)
            .filter_map(|(key, text)| Some((key, text?)))
            .try_for_each(|(key, text)| write!(f, ",{key}={text}"))
    }
}

/// Rates in bits per second, to and from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RatePair {
    /// To the guest.
    pub to_guest: u64,
    /// From the guest.
    pub from_guest: u64,
}

impl FromStr for RatePair {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let rate = |text| scaled(text, &[("k", 1_000), ("M", 1_000_000), ("G", 1_000_000_000), ("", 1)]);
        let pair = text.split_once('/').and_then(|(to, from)| Some((rate(to)?, rate(from)?)));
        match pair {
            Some((to_guest @ RATE_MIN..=RATE_MAX, from_guest @ RATE_MIN..=RATE_MAX)) => {
                Ok(Self { to_guest, from_guest })
            }
            _ => Err(FieldError::Rate(text.to_owned())),
        }
    }
}

impl fmt::Display for RatePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.to_guest, self.from_guest)
    }
}

/// Bytes that may pass at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Burst(u64);

impl Burst {
    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Burst {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        match scaled(text, &[("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30), ("", 1)]) {
            Some(bytes @ 1..=0x4000_0000) => Ok(Self(bytes)),
            _ => Err(FieldError::Burst(text.to_owned())),
        }
    }
}

impl fmt::Display for Burst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A delay of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delay(Duration);

impl Delay {
    /// The time.
    pub fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for Delay {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let micros = scaled(text, &[("us", 1), ("ms", 1_000), ("s", 1_000_000)]);
        match micros.map(Duration::from_micros) {
            Some(time) if time <= TIME_MAX => Ok(Self(time)),
            _ => Err(FieldError::Delay(text.to_owned())),
        }
    }
}

impl fmt::Display for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}us", self.0.as_micros())
    }
}

/// A share of frames, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss(u32);

impl Loss {
    /// In millionths.
    pub fn ppm(self) -> u32 {
        self.0
    }
}

impl FromStr for Loss {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let refuse = || FieldError::Loss(text.to_owned());
        let (whole, part) =
            text.strip_suffix('%').map(|text| text.split_once('.').unwrap_or((text, ""))).ok_or_else(refuse)?;
        // Four digits after the point are millionths.
        let digits = format!("{whole}{part:0<4}");
        let plain = !whole.is_empty() && part.len() <= 4 && digits.bytes().all(|byte| byte.is_ascii_digit());
        let ppm = digits.parse().ok().filter(|ppm| plain && *ppm <= 1_000_000);
        ppm.map(Self).ok_or_else(refuse)
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = format!("{:04}", self.0 % 10_000);
        match part.trim_end_matches('0') {
            "" => write!(f, "{}%", self.0 / 10_000),
            part => write!(f, "{}.{part}%", self.0 / 10_000),
        }
    }
}

/// The seed of the random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(u64);

impl Seed {
    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for Seed {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        scaled(text, &[("", 1)]).map(Self).ok_or_else(|| FieldError::Seed(text.to_owned()))
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

macro_rules! serialize_as_flag_text {
    ($($name:ty),+) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )+};
}

serialize_as_flag_text!(RatePair, Burst, Delay, Loss, Seed);

deserialize_as_flag_text!(RatePair, Burst, Delay, Loss, Seed);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_and_written_back() {
        let rates: RatePair = "100M/512k".parse().unwrap();
        assert_eq!((rates.to_guest, rates.from_guest), (100_000_000, 512_000));
        assert_eq!(rates.to_string().parse(), Ok(rates));
        assert_eq!("64K".parse::<Burst>().unwrap().bytes(), 65_536);
        for (text, micros) in [("20ms", 20_000), ("500us", 500), ("10s", 10_000_000)] {
            let time: Delay = text.parse().unwrap();
            assert_eq!((time.get(), time.to_string().parse()), (Duration::from_micros(micros), Ok(time)));
        }
        for (text, ppm) in [("1%", 10_000), ("0.1%", 1_000), ("100%", 1_000_000), ("0.0001%", 1), ("2.50%", 25_000)] {
            let loss: Loss = text.parse().unwrap();
            assert_eq!((loss.ppm(), loss.to_string().parse()), (ppm, Ok(loss)), "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in ["100M", "100M/", "/1M", "1m/1M", "99/100", "2T/1M", "1.5M/1M", "-1M/1M", "99999999999999999999/1M"]
        {
            assert!(text.parse::<RatePair>().is_err(), "{text}");
        }
        for text in ["", "0", "K", "2G", "1.5K"] {
            assert!(text.parse::<Burst>().is_err(), "{text}");
        }
        for text in ["20", "ms", "11s", "20 ms", "1.5ms", "-1ms"] {
            assert!(text.parse::<Delay>().is_err(), "{text}");
        }
        for text in ["1", "%", ".5%", "101%", "100.0001%", "0.00001%", "1.-5%", "-1%", "1e2%"] {
            assert!(text.parse::<Loss>().is_err(), "{text}");
        }
        assert!("0x7".parse::<Seed>().is_err());
    }

    #[test]
    fn burst_is_ten_milliseconds_and_no_less_than_a_large_frame() {
        let spec = ImpairSpec::default();
        assert_eq!((spec.burst_of(1_000_000_000), spec.burst_of(1_000_000)), (1_250_000, 65_536));
        let spec = ImpairSpec { burst: Some("2K".parse().unwrap()), ..spec };
        assert_eq!(spec.burst_of(1_000_000_000), 2048);
    }
}
