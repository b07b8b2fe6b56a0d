//! `minivmm doctor`: what keeps a VM from running here, or its cards from working, and what changes it.

use super::list;
use crate::cli::Inspection;
use crate::confine;
use crate::error::Error;
use crate::exit;
use crate::kvm::{self, Speed};
use net::doctor::{Finding, Level, examine};
use net::error_chain;
use serde_json::{Value, json};

/// Looks, and returns what was found with the exit code that says whether a start would work.
///
/// # Errors
/// The host does not say what there is.
pub(super) fn report(inspection: &Inspection) -> Result<(String, u8), Error> {
    // First, while there is one thread.
    let mut findings = vec![confinement(), kvm()];
    findings.extend(examine(&inspection.request)?);
    if inspection.request.cards.is_empty() {
        findings.extend(list::all_not_kept().into_iter().map(not_kept));
    }
    let problems = findings.iter().filter(|finding| finding.level == Level::Problem).count();
    let text =
        if inspection.json { super::pretty(&as_json(&findings, problems)) } else { as_text(&findings, problems) };
    Ok((text, if problems == 0 { 0 } else { exit::HOST }))
}

/// A promise to a VM that runs.
fn not_kept(text: String) -> Finding {
    Finding::trouble("running", text, "it was promised at the start of that VM, and its keeper cannot keep it")
}

fn kvm() -> Finding {
    let speed = kvm::KvmSystem::open().and_then(|host| host.speed());
    match speed {
        Ok(Speed::Native(took)) => {
            Finding::fine("kvm", format!("It runs on the processor (a loop took {} us)", took.as_micros()))
        }
        Ok(Speed::Emulated(took)) => Finding::problem(
            "kvm",
            format!("It emulates what a kernel does (a loop took {} ms)", took.as_millis()),
            "Linux does not boot on it, or takes minutes",
            Some(
                "use a machine with hardware virtualization, or switch nested virtualization on in the outer VM"
                    .to_owned(),
            ),
        ),
        Err(err) => {
            let hint = err.hint();
            Finding::problem("kvm", error_chain(&Error::from(err)), "no VM runs here", hint)
        }
    }
}

/// How a VM of this user would be confined.
fn confinement() -> Finding {
    match confine::rehearse() {
        Ok(report) if report.missing.is_empty() => Finding::fine("confinement", report.to_string()),
        Ok(report) => Finding {
            fix: Some(
                "start minivmm as root, or allow user namespaces: sysctl user.max_user_namespaces, and on Ubuntu \
                 kernel.apparmor_restrict_unprivileged_userns=0"
                    .to_owned(),
            ),
            ..Finding::trouble(
                "confinement",
                report.to_string(),
                "a guest that takes its VMM over has fewer walls around it",
            )
        },
        Err(err) => {
            Finding::trouble("confinement", format!("Cannot try it: {err}"), "it is not known how a VM is confined")
        }
    }
}

fn as_json(findings: &[Finding], problems: usize) -> Value {
    json!({ "works": problems == 0, "findings": findings })
}

fn as_text(findings: &[Finding], problems: usize) -> String {
    let mut text: String = findings.iter().map(one).collect();
    text.push_str(&match problems {
        0 => "A VM with these cards would work here\n".to_owned(),
        1 => "1 problem keeps it from working\n".to_owned(),
        _ => format!("{problems} problems keep it from working\n"),
    });
    text
}

fn one(finding: &Finding) -> String {
    let level = match finding.level {
        Level::Fine => "ok",
        Level::Warning => "warning",
        Level::Problem => "PROBLEM",
    };
    let mut text = format!("{level:8} {}: {}\n", finding.about, finding.what);
    if !finding.why.is_empty() {
        text.push_str(&format!("{:8} why: {}\n", "", finding.why));
    }
    if let Some(fix) = &finding.fix {
        text.push_str(&format!("{:8} fix: {}\n", "", fix));
    }
    text
}
