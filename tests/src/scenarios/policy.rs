//! Security groups on a stock kernel, whose bridges are not those of the machine that builds.

use super::Scenario;
use crate::lan::sh;
use crate::stage::Stage;

pub(super) const SCENARIOS: &[Scenario] =
    &[Scenario { name: "policy::holds_on_a_bridge_of_a_stock_kernel", run: bridged }];

fn bridged(stage: &Stage) {
    let program = stage.file("host-cases");
    sh(&format!("cp {} {}", stage.host_cases().display(), program.display()));
    let report = sh(&format!("{} policy_of_a_bridged_guest 2>&1 || true", program.display()));
    println!("{}", report.trim());
    assert!(report.contains("test result: ok. 1 passed;"), "{report}");
}
