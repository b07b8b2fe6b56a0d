//! The ready line, as a script reads it while a stock guest starts: that its network is ready, or that it never will
//! be.

use super::Scenario;
use crate::codes::NO_ADDRESS;
use crate::lan::{Lan, sh};
use crate::stage::Stage;
use serde_json::{Value, json};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "ready::a_guest_is_ready_once_its_cards_have_used_their_leases_and_is_listed", run: ready },
    Scenario { name: "ready::a_guest_that_nobody_gives_an_address_ends_with_its_own_code", run: never_ready },
];

fn ready(stage: &Stage) {
    let lan = Lan::new();
    let host = lan.address();
    let minivmm = stage.minivmm().display().to_string();
    let vm = stage
        .vm()
        .name("ready")
        .net(lan.net())
        .net(format!("{},vhost=on", lan.net()))
        .flag("--wait-net", 150)
        .script(&format!(
            "for card in eth0 eth1; do
                 ping -c 1 -I $card {host} >/dev/null; echo $card-ping=$?
                 echo $card=$(ip -4 -o address show $card | awk '{{ sub(\"/.*\", \"\", $4); print $4 }}')
             done
             until [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do sleep 0.05; done"
        ))
        .start();

    let line = vm.ready_line();
    println!("{line}");
    let addresses: Vec<_> = ["eth0", "eth1"].iter().map(|card| json!([vm.value(card)])).collect();
    let said = |cards: &Value| -> Vec<Value> {
        cards.as_array().expect("cards").iter().map(|card| card["addresses"].clone()).collect()
    };
    assert_eq!(said(&line["cards"]), addresses);
    assert_eq!(line["name"], "ready");

    let list = sh(&format!("{minivmm} net list --json"));
    println!("{}", sh(&format!("{minivmm} net list")));
    let list: Value = serde_json::from_str(&list).expect("JSON from minivmm net list");
    assert_eq!(said(&list[0]["cards"]), addresses);
    assert!(list[0]["cards"].as_array().expect("cards").iter().all(|card| card["link"] == "up"));

    sh(&format!("{minivmm} link ready net0 down"));
    assert_eq!(vm.wait_exit(), 0);
}

fn never_ready(stage: &Stage) {
    let vm = stage.vm().net("bridge=quiet,create=on").flag("--wait-net", 20).script("sleep 600").start();

    assert_eq!(vm.wait_exit(), NO_ADDRESS);

    let log = vm.log();
    println!("{log}");
    assert!(log.contains("minivmm: net0 has no address after 20 s\n"), "the sentence");
    assert_eq!(sh("ip -o link show type bridge"), "");
}
