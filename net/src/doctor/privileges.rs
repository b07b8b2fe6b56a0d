//! Privileges of the process: devices and capabilities.

use std::fs::{self, File};
use std::io;

use super::{Finding, Needs};
use crate::error::Error;

/// Numbers of capabilities (linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;

const AS_ROOT: &str = "run minivmm as root";

pub(super) fn look(needs: Needs) -> Vec<Finding> {
    let mut findings = Vec::new();
    if needs.tap {
        findings.push(device("tun", "/dev/net/tun", Error::OpenTun));
    }
    if needs.vhost {
        findings.push(device("vhost", "/dev/vhost-net", Error::OpenVhost));
    }
    let held = capabilities();
    if needs.link && held & 1 << CAP_NET_ADMIN == 0 {
        let why = "taps cannot be attached to bridges, and macvtaps cannot be created";
        findings.push(Finding::problem(
            "privileges",
            "This process lacks CAP_NET_ADMIN",
            why,
            Some(AS_ROOT.to_owned()),
        ));
    }
    if held & 1 << CAP_NET_RAW == 0 {
        let what = "This process lacks CAP_NET_RAW";
        findings.push(if needs.forwarding {
            Finding::problem("privileges", what, "DHCP requests on a tap cannot be answered", Some(AS_ROOT.to_owned()))
        } else {
            Finding::warning(
                "privileges",
                what,
                "addresses of guests cannot be learned, and --wait-net is refused",
                AS_ROOT,
            )
        });
    }
    findings
}

fn device(about: &'static str, path: &str, error: impl FnOnce(io::Error) -> Error) -> Finding {
    match File::options().read(true).write(true).open(path) {
        Ok(_) => Finding::fine(about, format!("{path} can be opened")),
        Err(source) => {
            let report = error(source).report();
            Finding::problem(about, report.message, "no card can be connected to the host", report.hint)
        }
    }
}

/// The effective capabilities of this process (proc(5)), one bit each.
fn capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}
