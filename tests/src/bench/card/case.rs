//! The measurements, and the rows of the report that their runs become.

use super::frame::Shape;
use super::report::{Idle, Report, Stream, Trip};
use super::vm::Vmm;
use crate::bench::Spread;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Tx,
    Rx,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Case {
    Stream(Direction, Shape, u16),
    Pong(Guest),
    Idle,
}

/// The guest's way of waiting for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guest {
    Polls,
    Halts,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contestant {
    Plain,
    Vm(Vmm),
}

/// The result of one run. Times are in seconds.
pub(super) enum Sample {
    Stream(Moved),
    Pong(Times),
    Idle { wakeups_per_s: f64 },
}

/// Round trips, in seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// Median.
    pub(super) there_and_back: f64,
    /// 99th percentile.
    pub(super) p99: f64,
    /// Medians out and back, where guest and host have one time stamp counter.
    pub(super) one_way: Option<[f64; 2]>,
}

/// Frames and what they took. Times are in seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moved {
    pub(super) frames: f64,
    pub(super) seconds: f64,
    pub(super) cpu: f64,
    pub(super) doorbells: Option<f64>,
    /// Part of the frames that arrived.
    pub(super) arrived: f64,
}

/// Everything that is measured, in the order of the report.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for direction in [Direction::Tx, Direction::Rx] {
        for shape in [Shape::SMALL, Shape::ALONE, Shape::FULL, Shape::GSO] {
            // What the host sends is never joined.
            if direction == Direction::Rx && shape == Shape::ALONE {
                continue;
            }
            cases.extend([1, 2, 4].map(|pairs| Case::Stream(direction, shape, pairs)));
        }
    }
    cases.extend([Case::Pong(Guest::Polls), Case::Pong(Guest::Halts), Case::Idle]);
    cases
}

impl Direction {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tx => "tx",
            Self::Rx => "rx",
        }
    }
}

impl Contestant {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Vm(vmm) => vmm.name(),
        }
    }
}

impl Case {
    pub(super) fn name(self) -> String {
        match self {
            Self::Stream(direction, shape, pairs) => format!("{}-{}-{pairs}", direction.name(), shape.name),
            Self::Pong(Guest::Polls) => "pong".to_owned(),
            Self::Pong(Guest::Halts) => "pong-halting".to_owned(),
            Self::Idle => "idle".to_owned(),
        }
    }

    /// Who is measured; another minivmm too if there is one.
    pub(super) fn contestants(self, before: bool) -> Vec<Contestant> {
        let vms = [Some(Vmm::Minivmm), before.then_some(Vmm::Before), Some(Vmm::Qemu)];
        let vms = vms.into_iter().flatten().map(Contestant::Vm);
        let plain = matches!(self, Self::Stream(_, _, 1)).then_some(Contestant::Plain);
        vms.chain(plain).collect()
    }

    pub(super) fn add_to(self, report: &mut Report, contestant: &'static str, samples: &[Sample]) {
        let spread = |of: &dyn Fn(&Sample) -> Option<f64>| Spread::of(samples.iter().filter_map(of));
        let maybe =
            |of: &dyn Fn(&Sample) -> Option<f64>| samples.iter().all(|sample| of(sample).is_some()).then(|| spread(of));
        match self {
            Self::Stream(direction, shape, pairs) => report.streams.push(Stream {
                direction: direction.name(),
                frame: shape.name,
                pairs,
                contestant,
                frames_per_s: spread(&|s| s.moved().map(|m| m.frames / m.seconds)),
                gbit_per_s: spread(&|s| s.moved().map(|m| m.frames * shape.bytes as f64 * 8e-9 / m.seconds)),
                cpu_ns_per_frame: spread(&|s| s.moved().map(|m| m.cpu * 1e9 / m.frames)),
                doorbells_per_1000: maybe(&|s| s.moved().and_then(|m| Some(m.doorbells? * 1e3 / m.frames))),
                arrived_percent: spread(&|s| s.moved().map(|m| m.arrived * 100.0)),
            }),
            Self::Pong(guest) => report.trips.push(Trip {
                contestant,
                guest_halts: guest == Guest::Halts,
                trip_us: spread(&|s| s.trip().map(|t| t.there_and_back * 1e6)),
                trip_p99_us: spread(&|s| s.trip().map(|t| t.p99 * 1e6)),
                out_us: maybe(&|s| s.trip()?.one_way.map(|[out, _]| out * 1e6)),
                back_us: maybe(&|s| s.trip()?.one_way.map(|[_, back]| back * 1e6)),
            }),
            Self::Idle => report.idle.push(Idle { contestant, wakeups_per_s: spread(&Sample::wakeups_per_s) }),
        }
    }
}

impl Sample {
    fn moved(&self) -> Option<&Moved> {
        match self {
            Self::Stream(moved) => Some(moved),
            _ => None,
        }
    }

    fn trip(&self) -> Option<&Times> {
        match self {
            Self::Pong(times) => Some(times),
            _ => None,
        }
    }

    fn wakeups_per_s(&self) -> Option<f64> {
        match self {
            Self::Idle { wakeups_per_s } => Some(*wakeups_per_s),
            _ => None,
        }
    }
}
