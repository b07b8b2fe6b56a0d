//! `--policy` and `minivmm net policy`.

use crate::Case;
use crate::host::{bridge, minivmm, said, sh, unprivileged};
use crate::vm::Vm;
use serde_json::{Value, json};
use std::fs;

pub(crate) const CASES: &[Case] = &[
    ("policy_of_a_running_vm_is_shown_and_replaced", replaced),
    ("policy_file_that_is_wrong_changes_nothing", wrong),
    ("policy_step_is_in_the_plan", planned),
];

fn started(args: &[&str]) -> Vm {
    let mut vm = Vm::start(&[args, &["--log", "debug"]].concat());
    while !vm.error_line().contains("vCPUs are running") {}
    vm
}

fn in_force() -> Value {
    let (code, text, errors) = said(&mut minivmm(&["net", "policy", "web"]));
    assert_eq!((code, errors.as_str()), (0, ""));
    serde_json::from_str(&text).unwrap()
}

fn replaced() {
    bridge("br0");
    let directory = tempfile::tempdir().unwrap();
    let (toml, json) = (directory.path().join("web.toml"), directory.path().join("web.json"));
    fs::write(&toml, "[[ingress]]\nprotocol = \"tcp\"\nports = [22, \"80-89\"]\n").unwrap();
    let open = json!({ "default": { "ingress": "accept", "egress": "accept" }, "ingress": [], "egress": [] });
    fs::write(&json, open.to_string()).unwrap();
    let [toml, json] = [toml, json].map(|path| path.to_str().unwrap().to_owned());
    let mut web = started(&["--name", "web", "--net", "bridge=br0", "--policy", &toml]);

    let rule = json!({ "protocol": "tcp", "ports": [22, "80-89"], "action": "accept" });
    let first = json!({ "default": { "ingress": "drop", "egress": "accept" }, "ingress": [rule], "egress": [] });
    assert_eq!(in_force(), first);
    assert!(sh("nft list table netdev minivmm-web/policy0").contains("tcp dport { 22, 80-89 } goto new-to"));

    assert_eq!(said(&mut minivmm(&["net", "policy", "web", &json])), (0, String::new(), String::new()));
    assert_eq!(in_force(), open);
    assert!(!sh("nft list table netdev minivmm-web/policy0").contains("80-89"));

    // Whoever may not is told so, and a VM without a policy says that.
    let (code, _, errors) = said(&mut unprivileged(&["net", "policy", "web"]));
    assert_eq!(code, 64);
    assert!(errors.starts_with("minivmm: Only root and the user who started this VM"), "{errors}");
    assert_eq!(web.quit().0, 131);
    assert_eq!(sh("nft list ruleset"), "");
    let mut web = started(&["--name", "web", "--net", "bridge=br0"]);
    assert_eq!(in_force(), Value::Null);
    web.quit();
}

fn wrong() {
    bridge("br0");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("web.toml");
    fs::write(&path, "[[ingress]]\nprotocol = \"tcp\"\nport = 22\n").unwrap();
    let path = path.to_str().unwrap();
    let mut web = started(&["--name", "web", "--net", "bridge=br0", "--policy", "/dev/null"]);
    let before = (in_force(), sh("nft -s list ruleset"));

    for args in [&["net", "policy", "web", path][..], &["--net", "bridge=br0", "--policy", path]] {
        let (code, _, errors) = said(&mut minivmm(args));
        assert_eq!(code, 64);
        assert!(errors.contains(&format!("{path}: line 3: unknown field `port`, expected one of ")), "{errors}");
    }
    fs::write(path, "[[egress]]\ncards = [3]\n").unwrap();
    let (code, _, errors) = said(&mut minivmm(&["net", "policy", "web", path]));
    assert_eq!(code, 64);
    assert!(errors.starts_with("minivmm: The policy has a rule for card 3, and the VM has 1\nhint: "), "{errors}");
    let (code, _, errors) = said(&mut minivmm(&["net", "policy", "nobody", path]));
    assert_eq!(code, 64);
    assert!(errors.starts_with("minivmm: No VM with the name nobody"), "{errors}");

    assert_eq!((in_force(), sh("nft -s list ruleset")), before);
    web.quit();
}

fn planned() {
    let args = ["net", "plan", "--net", "nat", "--name", "web", "--policy", "/dev/null"];
    let (code, text, errors) = said(&mut minivmm(&args));
    assert_eq!(code, 0, "{errors}");
    let place =
        |part: &str| text.lines().position(|line| line.contains(part)).unwrap_or_else(|| panic!("{part}: {text}"));
    // Before the first frame can come.
    assert!(place("create a tap") < place("minivmm-web/policy0"));
    assert!(place("minivmm-web/policy0") < place("attach the tap"));
}
