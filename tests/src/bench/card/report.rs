//! The result: JSON for machines, a table with the goals beside for people.

use super::super::Spread;
use serde::Serialize;

/// The project's goals.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Goals {
    /// Small frames per second over QEMU's, both ways.
    pub small_frames_over_qemu: f64,
    /// Super-frames per second over those of a plain loop.
    pub gso_over_plain: f64,
    /// Small frames per second of 4 pairs over those of one, where there are processors for them.
    pub four_pairs_over_one: f64,
    /// Wake-ups per second of all threads of an idle VM.
    pub idle_wakeups_per_s: f64,
}

/// The result, as it is written to JSON.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Counted runs of each.
    pub runs: u32,
    /// Counted seconds of a run.
    pub seconds: f64,
    /// Processors of the host.
    pub processors: usize,
    /// Throughput.
    pub streams: Vec<Stream>,
    /// Round trips.
    pub trips: Vec<Trip>,
    /// VMs that do nothing.
    pub idle: Vec<Idle>,
    /// The goals.
    pub goals: Goals,
}

/// Frames one way.
#[derive(Debug, Clone, Serialize)]
pub struct Stream {
    /// `tx`: from the guest; `rx`: to it.
    pub direction: &'static str,
    /// The frame that is sent.
    pub frame: &'static str,
    /// Queue pairs.
    pub pairs: u16,
    /// Whose card; `plain` for a loop of writes or reads on the same kind of tap without a VM.
    pub contestant: &'static str,
    /// Frames per second.
    pub frames_per_s: Spread,
    /// Gbit/s of frames without check sequences.
    pub gbit_per_s: Spread,
    /// Processor time of the VMM's threads, without the polling virtual processor, or of the plain loop, per frame in
    /// ns.
    pub cpu_ns_per_frame: Spread,
    /// Doorbells per 1000 frames.
    pub doorbells_per_1000: Option<Spread>,
    /// Frames that arrived out of 100 that were sent.
    pub arrived_percent: Spread,
}

/// One frame at a time, out and back.
#[derive(Debug, Clone, Serialize)]
pub struct Trip {
    /// Whose card.
    pub contestant: &'static str,
    /// True if the guest halts until the answer; otherwise it polls.
    pub guest_halts: bool,
    /// Median of a run, in us.
    pub trip_us: Spread,
    /// 99th percentile of a run, in us.
    pub trip_p99_us: Spread,
    /// Guest to peer, median in us; `None` where guest and host have different time stamp counters.
    pub out_us: Option<Spread>,
    /// Peer to guest, median in us.
    pub back_us: Option<Spread>,
}

/// A VM whose card is started and whose processor sleeps.
#[derive(Debug, Clone, Serialize)]
pub struct Idle {
    /// Whose.
    pub contestant: &'static str,
    /// Wake-ups of all its threads per second.
    pub wakeups_per_s: Spread,
}

impl Report {
    /// The figures as a table for people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "Card with a polling guest, medians of {} x {} s, {} processors; x: QEMU's over minivmm's\n\
             {:2} {:7} {:>5} {:7} {:>10} {:>15} {:>7} {:>12} {:>6} {:>8} {:>7} {:>7}\n",
            self.runs,
            self.seconds,
            self.processors,
            "",
            "frame",
            "pairs",
            "",
            "frames/s",
            "(min..max)",
            "Gbit/s",
            "CPU ns/frame",
            "bells",
            "arrived",
            "rate x",
            "CPU x"
        );
        for stream in &self.streams {
            let thousands = |value: f64| format!("{:.0}k", value / 1e3);
            let spread = &stream.frames_per_s;
            text.push_str(&format!(
                "{:2} {:7} {:>5} {:7} {:>10.0} {:>15} {:>7.2} {:>12.0} {:>6} {:>7.0}% {:>7} {:>7}\n",
                stream.direction,
                stream.frame,
                stream.pairs,
                stream.contestant,
                spread.median,
                format!("({}..{})", thousands(spread.min), thousands(spread.max)),
                stream.gbit_per_s.median,
                stream.cpu_ns_per_frame.median,
                stream.doorbells_per_1000.map_or("-".to_owned(), |bells| format!("{:.0}", bells.median)),
                stream.arrived_percent.median,
                self.over_qemu(stream, Figure::Rate),
                self.over_qemu(stream, Figure::Cpu),
            ));
        }
        for trip in &self.trips {
            let maybe =
                |spread: &Option<Spread>| spread.map_or("-".to_owned(), |spread| format!("{:.1}", spread.median));
            text.push_str(&format!(
                "ping-pong 64, guest {:5} {:8} {:>8.1} us (p99 {:.1}), out {}, back {}\n",
                if trip.guest_halts { "halts" } else { "polls" },
                trip.contestant,
                trip.trip_us.median,
                trip.trip_p99_us.median,
                maybe(&trip.out_us),
                maybe(&trip.back_us)
            ));
        }
        for idle in &self.idle {
            text.push_str(&format!("idle {:8} {:.1} wake-ups/s\n", idle.contestant, idle.wakeups_per_s.median));
        }
        text.push_str(&self.verdicts());
        text
    }

    /// How many times as good as QEMU's a figure of minivmm is, as text.
    fn over_qemu(&self, stream: &Stream, figure: Figure) -> String {
        let case = (stream.direction, stream.frame, stream.pairs);
        if stream.contestant != "minivmm" {
            return String::new();
        }
        self.ratio((case, "minivmm"), (case, "QEMU"), figure).map_or(String::new(), |ratio| format!("{ratio:.2}"))
    }

    /// How many times as good the first is.
    fn ratio(&self, over: Key, under: Key, figure: Figure) -> Option<f64> {
        let find = |((direction, frame, pairs), contestant): Key| {
            self.streams
                .iter()
                .find(|s| (s.direction, s.frame, s.pairs, s.contestant) == (direction, frame, pairs, contestant))
        };
        let (over, under) = (find(over)?, find(under)?);
        let ratio = match figure {
            Figure::Rate => over.frames_per_s.median / under.frames_per_s.median,
            Figure::Cpu => under.cpu_ns_per_frame.median / over.cpu_ns_per_frame.median,
        };
        ratio.is_finite().then_some(ratio)
    }

    /// The goals, each with what it is measured by; only those that were measured.
    fn verdicts(&self) -> String {
        let mut text = String::new();
        let mut say = |what: String, value: Option<f64>, goal: Goal| {
            let Some(value) = value else { return };
            let (sign, limit, met) = match goal {
                Goal::AtLeast(limit) => (">=", limit, value >= limit),
                Goal::AtMost(limit) => ("<=", limit, value <= limit),
            };
            let verdict = if met { "met" } else { "missed" };
            text.push_str(&format!("goal: {what}: {value:.2}, aimed at {sign} {limit}: {verdict}\n"));
        };
        let goals = &self.goals;
        for direction in ["tx", "rx"] {
            let (small, four, super_frame) = ((direction, "64", 1), (direction, "64", 4), (direction, "64K-gso", 1));
            for (figure, what) in [(Figure::Rate, "frames/s"), (Figure::Cpu, "frames per CPU second")] {
                let over_qemu = self.ratio((small, "minivmm"), (small, "QEMU"), figure);
                let over_plain = self.ratio((super_frame, "minivmm"), (super_frame, "plain"), figure);
                say(
                    format!("{direction} 64: {what} over QEMU's"),
                    over_qemu,
                    Goal::AtLeast(goals.small_frames_over_qemu),
                );
                say(
                    format!("{direction} 64K-gso: {what} over the plain loop's"),
                    over_plain,
                    Goal::AtLeast(goals.gso_over_plain),
                );
            }
            let four_over_one = self.ratio((four, "minivmm"), (small, "minivmm"), Figure::Rate);
            let what = format!(
                "{direction} 64: frames/s of 4 pairs over 1 (takes 5 processors, here are {})",
                self.processors
            );
            say(what, four_over_one, Goal::AtLeast(goals.four_pairs_over_one));
        }
        let idle = self.idle.iter().find(|idle| idle.contestant == "minivmm").map(|idle| idle.wakeups_per_s.median);
        say("idle: wake-ups/s".to_owned(), idle, Goal::AtMost(goals.idle_wakeups_per_s));
        text
    }
}

#[derive(Debug, Clone, Copy)]
enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

/// A row of the table: direction, frame and pairs, then whose.
type Key = ((&'static str, &'static str, u16), &'static str);

#[derive(Debug, Clone, Copy)]
enum Figure {
    /// Frames per second.
    Rate,
    /// Processor time per frame.
    Cpu,
}
