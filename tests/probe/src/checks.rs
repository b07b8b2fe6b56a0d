//! The checks, by subject, and which of them a suite name selects.
//!
//! Every check starts with a device in any state and leaves it reset. A check of something that the specification
//! leaves open, but minivmm promises, runs only with the word `strict` on the command line, so that the rest holds on
//! every VMM.

mod block;
mod bus;
mod coalescing;
mod common;
mod config_space;
mod entropy;
mod fragments;
mod hostile;
mod hostile_card;
mod hostile_commands;
mod live;
mod messages;
mod net;
mod pin;
mod platform;
mod queue_reset;
mod segments;
mod status;

use core::fmt;
use crate::report::{Check, Report};
use crate::start_info::StartInfo;
use crate::virtio::{Device, Kind};
use crate::{acpi, arena, interrupts, line, pci};

/// No more devices than slots of a bus.
const DEVICES_MAX: usize = 32;

/// The parameters of the checks, from the command line.
#[derive(Clone, Copy)]
pub(crate) struct Terms {
    /// Also what only minivmm promises.
    pub(crate) strict: bool,
    /// A peer on the card's network sends frames with the probe's EtherType back (`checks/net.rs`).
    pub(crate) echo: bool,
    /// The host's kernel reads a card's receive and transmit rings (vhost-net). It looks at receive buffers only when
    /// there is a frame for them, and gives a card up where minivmm itself would go on.
    pub(crate) vhost: bool,
}

/// One virtio device and the terms, as handed to every check of a device.
#[derive(Clone, Copy)]
pub(crate) struct Subject {
    /// The device.
    pub(crate) device: Device,
    /// The terms.
    pub(crate) terms: Terms,
    idx: usize,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.device.kind.name(), self.idx)
    }
}

/// A check of one device.
type DeviceCheck = fn(&Subject) -> Check;

/// Runs the suites named in `probe=a,b,c`; `all` or nothing means every one.
pub(crate) fn run(start: &StartInfo) -> Report {
    let mut report = Report::default();
    let terms = Terms { strict: start.flag("strict"), echo: start.flag("echo"), vhost: start.flag("vhost") };
    let wanted = start.value("probe").unwrap_or("all");
    let selected = |suite: &str| wanted.split(',').any(|w| w == suite || w == "all");

    if selected("platform") {
        platform::run(&mut report, start, terms);
    }
    let ecam = acpi::ecam(start.rsdp);
    if selected("pci") {
        bus::run(&mut report, ecam);
    }
    let mut counts = [0usize; 4];
    let devices = pci::enumerate(ecam).filter_map(Device::probe).take(DEVICES_MAX);
    let mut found = 0;
    for device in devices {
        found += 1;
        let slot = match device.kind {
            Kind::Net => 0,
            Kind::Block => 1,
            Kind::Entropy => 2,
            Kind::Other(_) => 3,
        };
        let subject = Subject { device, terms, idx: counts[slot] };
        counts[slot] += 1;
        line!(
            "# {subject} is 00:{:02x}.{}, {} queues seen",
            device.function.devfn >> 3,
            device.function.devfn & 7,
            device.get16(crate::virtio::common::NUM_QUEUES)
        );
        for (suite, checks) in [
            ("pci", config_space::CHECKS),
            ("common", common::CHECKS),
            ("status", status::CHECKS),
            ("msix", messages::CHECKS),
            ("pin", pin::CHECKS),
            ("hostile", hostile::CHECKS),
        ] {
            if selected(suite) {
                run_all(&mut report, &subject, checks);
            }
        }
        if (selected("hostile") || selected("card")) && device.kind == Kind::Net {
            run_all(&mut report, &subject, hostile_card::CHECKS);
            run_all(&mut report, &subject, hostile_commands::CHECKS);
        }
        let own = match device.kind {
            Kind::Net => net::CHECKS,
            Kind::Block => block::CHECKS,
            Kind::Entropy => entropy::CHECKS,
            Kind::Other(_) => &[],
        };
        if selected("device") || selected(device.kind.name()) {
            run_all(&mut report, &subject, own);
            if device.kind == Kind::Net {
                run_all(&mut report, &subject, fragments::CHECKS);
                run_all(&mut report, &subject, segments::CHECKS);
                run_all(&mut report, &subject, queue_reset::CHECKS);
                run_all(&mut report, &subject, coalescing::CHECKS);
            }
        }
    }
    if found == 0 {
        line!("# no virtio device on bus 0");
    }
    report
}

fn run_all(report: &mut Report, subject: &Subject, checks: &[(&str, DeviceCheck)]) {
    for &(name, check) in checks {
        report.check(subject, name, || {
            let device = subject.device.located();
            device.reset()?;
            arena::reset();
            let outcome = check(&Subject { device, ..*subject });
            // The reset keeps the device away from the arena, which the next check uses; the first failure is the
            // telling one.
            let back = device.reset();
            if let Some(msix) = device.msix {
                msix.control(crate::virtio::msix::Control::Off);
            }
            outcome.and(back)
        });
    }
}

/// Counter of messages used by the checks for entry `entry`.
pub(crate) fn messages_for(entry: u16) -> u32 {
    interrupts::count(usize::from(entry))
}
