//! The result: JSON for machines, a table with the goals beside for people.

use super::vm::Contestant;
use crate::bench::Spread;
use serde::Serialize;

const MINIVMM: &str = Contestant::Minivmm.name();
const NAT: &str = Contestant::MinivmmNat.name();
const QEMU: &str = Contestant::Qemu.name();

/// The project's goals.
pub(super) const GOALS: Goals = Goals {
    small_datagrams: 1.5,
    tcp_to_guest: 1.4,
    tcp_to_host: 1.3,
    cpu_per_gb_to_guest: 0.6,
    cpu_per_gb_to_host: 0.75,
    requests: 1.5,
    nat: 0.9,
};

/// The project's goals, as factors of QEMU's user-space path where nothing else is said.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Goals {
    /// Small datagrams per second, both ways.
    pub small_datagrams: f64,
    /// TCP from the host.
    pub tcp_to_guest: f64,
    /// TCP from the guest.
    pub tcp_to_host: f64,
    /// Processor time per GB from the host, at most.
    pub cpu_per_gb_to_guest: f64,
    /// Processor time per GB from the guest, at most.
    pub cpu_per_gb_to_host: f64,
    /// Requests per second.
    pub requests: f64,
    /// TCP through NAT, as a factor of the same test on a bridge.
    pub nat: f64,
}

/// The result, as it is written to JSON.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Counted rounds.
    pub runs: u32,
    /// Seconds of each test.
    pub seconds: u32,
    /// One for each test and machine.
    pub rows: Vec<Row>,
    /// The goals.
    pub goals: Goals,
}

/// One test on one machine.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The test.
    pub test: &'static str,
    /// The unit of its numbers.
    pub unit: &'static str,
    /// The machine.
    pub contestant: &'static str,
    /// Units per second.
    pub rate: Spread,
    /// Processor time of the VMM with its virtual processors, in us per unit.
    pub cpu_us_per_unit: Spread,
    /// The same without the virtual processors.
    pub vmm_cpu_us_per_unit: Spread,
}

impl Report {
    /// The figures as a table for people.
    pub fn table(&self) -> String {
        let measured = |contestant| self.rows.iter().any(|row| row.contestant == contestant);
        let (base, what) =
            if measured(QEMU) { (QEMU, "QEMU with vhost off") } else { (MINIVMM, "minivmm on a bridge") };
        let mut text = format!(
            "A Linux guest with one CPU, medians of {} x {} s, in proportion to {what}\n\
             {:16} {:14} {:>12} {:>10} {:>6} {:>14} {:>6} {:>14}\n",
            self.runs, self.seconds, "", "", "rate", "unit/s", "x", "CPU us/unit", "x", "of it the VMM"
        );
        for row in &self.rows {
            let over = |figure: fn(&Row) -> f64| {
                let peer = self.row(row.test, base).map(figure);
                peer.map_or(String::new(), |peer| format!("{:.2}", figure(row) / peer))
            };
            text.push_str(&format!(
                "{:16} {:14} {:>12} {:>10} {:>6} {:>14.1} {:>6} {:>14.1}\n",
                row.test,
                row.contestant,
                short(row.rate.median),
                row.unit,
                over(|row| row.rate.median),
                row.cpu_us_per_unit.median,
                over(|row| row.cpu_us_per_unit.median),
                row.vmm_cpu_us_per_unit.median
            ));
        }
        text.push_str(&self.verdicts());
        text
    }

    /// The goals, each with what it is measured by; only those that were measured.
    fn verdicts(&self) -> String {
        let goals = &self.goals;
        let mut text = String::new();
        for (test, goal) in [
            ("tcp to guest", goals.tcp_to_guest),
            ("tcp to host", goals.tcp_to_host),
            ("udp to guest", goals.small_datagrams),
            ("udp to host", goals.small_datagrams),
            ("requests", goals.requests),
        ] {
            if let Some(value) = self.over(test, MINIVMM, QEMU, |row| row.rate.median) {
                let verdict = if value >= goal { "met" } else { "missed" };
                text.push_str(&format!("goal: {test}: {value:.2} of QEMU's, aimed at >= {goal}: {verdict}\n"));
            }
        }
        for (test, goal) in [("tcp to guest", goals.cpu_per_gb_to_guest), ("tcp to host", goals.cpu_per_gb_to_host)] {
            if let Some(value) = self.over(test, MINIVMM, QEMU, |row| row.cpu_us_per_unit.median) {
                let verdict = if value <= goal { "met" } else { "missed" };
                text.push_str(&format!(
                    "goal: {test}: CPU per GB {value:.2} of QEMU's, aimed at <= {goal}: {verdict}\n"
                ));
            }
        }
        for row in self.rows.iter().filter(|row| row.contestant == NAT && row.unit == "GB") {
            if let Some(value) = self.over(row.test, NAT, MINIVMM, |row| row.rate.median) {
                let verdict = if value >= goals.nat { "met" } else { "missed" };
                let test = row.test;
                text.push_str(&format!(
                    "goal: {test}: through NAT {value:.2} of the bridge's, aimed at >= {}: {verdict}\n",
                    goals.nat
                ));
            }
        }
        text
    }

    fn over(&self, test: &str, contestant: &str, peer: &str, figure: fn(&Row) -> f64) -> Option<f64> {
        Some(figure(self.row(test, contestant)?) / figure(self.row(test, peer)?))
    }

    fn row(&self, test: &str, contestant: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.test == test && row.contestant == contestant)
    }
}

/// Three figures.
fn short(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}
