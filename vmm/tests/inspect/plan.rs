//! `minivmm net plan`: every step, as text and as JSON, with nothing touched.

use crate::Case;
use crate::host::{bridge, minivmm, said, sh, snapshot, unprivileged};
use serde_json::Value;

pub(crate) const CASES: &[Case] = &[
    ("plan_says_every_step_and_what_undoes_it", says_every_step),
    ("plan_as_json_has_the_steps_as_data_and_in_words", json),
    ("plan_as_json_has_the_rules_for_packets", rules),
    ("plan_touches_nothing", touches_nothing),
    ("plan_needs_no_privilege", needs_no_privilege),
    ("plan_and_doctor_take_the_file_of_a_start", takes_a_file),
    ("plan_is_refused_like_a_start", refused),
];

const FLAGS: [&str; 6] = ["net", "plan", "--name", "web", "--net", "bridge=new0,create=on,mac=52:54:00:00:00:01"];

fn says_every_step() {
    let (code, text, errors) = said(&mut minivmm(&FLAGS));

    assert_eq!((code, errors.as_str()), (0, ""));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "card 0: mac 52:54:00:00:00:01, mtu 1500, 1 queue pairs");
    assert!(lines[1].starts_with("1. create bridge new0 with address 02:"), "{text}");
    assert!(lines[1].ends_with("; at the end: remove bridge new0 if it has no ports left"), "{text}");
    assert_eq!(lines[2], "2. create a tap with 1 queue pairs for card 0; at the end: remove the tap");
    assert!(lines[3].starts_with("3. attach the tap of card 0 to bridge new0"), "{text}");
    assert_eq!(lines[4], "4. create the nftables netdev minivmm-web for card 0; at the end: remove them");
    assert_eq!(lines.len(), 5);
}

fn json() {
    let (code, text, _) = said(minivmm(&FLAGS).arg("--json"));

    assert_eq!(code, 0);
    let plan: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(plan["cards"][0]["mac"], "52:54:00:00:00:01");
    assert_eq!(plan["steps"][1]["step"], "create-tap");
    assert_eq!(plan["steps"][1]["text"], "create a tap with 1 queue pairs for card 0");
    assert_eq!(plan["steps"][1]["undo"], "remove the tap");
    assert!(plan["steps"][1].get("rules").is_none());
}

fn rules() {
    let (code, text, errors) = said(&mut minivmm(&["net", "plan", "--json", "--name", "web", "--net", "host"]));

    assert_eq!((code, errors.as_str()), (0, ""));
    let plan: Value = serde_json::from_str(&text).unwrap();
    let steps = plan["steps"].as_array().unwrap();
    let rules = steps.iter().find_map(|step| step["rules"].as_str()).unwrap();
    assert!(rules.starts_with("table inet minivmm-web {\n"), "{rules}");
    assert!(rules.contains("type filter hook ingress device \"tap0\""), "{rules}");
}

fn touches_nothing() {
    bridge("br0");
    sh("ip tuntap add tap0 mode tap");
    let before = snapshot();

    for net in ["bridge=br0", "bridge=new0,create=on", "tap=tap0"] {
        let (code, _, errors) = said(&mut minivmm(&["net", "plan", "--net", net]));
        assert_eq!(code, 0, "{errors}");
    }

    assert_eq!(snapshot(), before);
}

fn needs_no_privilege() {
    bridge("br0");

    let (code, text, errors) = said(&mut unprivileged(&["net", "plan", "--net", "bridge=br0", "--cpus", "4"]));

    assert_eq!((code, errors.as_str()), (0, ""));
    assert!(text.contains("create a tap with 4 queue pairs"), "{text}");
}

fn takes_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("web.toml");
    std::fs::write(&file, "name = \"web\"\ncpus = 4\n[[net]]\nbridge = \"new0\"\ncreate = true\n").unwrap();
    let file = file.to_str().unwrap();

    let (_, from_file, _) = said(&mut minivmm(&["net", "plan", "--config", file]));
    assert!(from_file.contains("create a tap with 4 queue pairs"), "{from_file}");
    let (_, overridden, _) = said(&mut minivmm(&["net", "plan", "--config", file, "--cpus", "2"]));
    assert!(overridden.contains("create a tap with 2 queue pairs"), "{overridden}");

    let (_, text, _) = said(&mut minivmm(&["doctor", "--config", file, "--net", "bridge=none0"]));
    assert!(text.contains("plan: Bridge none0 does not exist"), "{text}");
    let (_, text, _) = said(&mut minivmm(&["doctor", "--config", file]));
    assert!(text.contains("plan: 4 steps would make the cards"), "{text}");
    let (code, _, errors) = said(&mut minivmm(&["doctor", "--config", "/nowhere.toml"]));
    assert_eq!(code, 64);
    assert!(errors.starts_with("minivmm: --config /nowhere.toml: No such file or directory"), "{errors}");
}

fn refused() {
    let (code, text, errors) = said(&mut minivmm(&["net", "plan", "--net", "bridge=br0"]));

    assert_eq!((code, text.as_str()), (64, ""));
    let hint = "Add create=on to have minivmm make it: --net bridge=br0,create=on";
    assert_eq!(errors, format!("minivmm: Bridge br0 does not exist\nhint: {hint}\n"));
}
