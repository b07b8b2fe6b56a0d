//! `minivmm net list`: the cards of every VM in this network namespace.
//!
//! A VM is known by its socket in the folder of its user, and by its taps. The VM itself answers its user; to others
//! its taps say what everybody may know.

use crate::client;
use crate::error::Error;
use crate::name::{self, VmName};
use crate::request::{Reply, Request};
use net::inventory::{self, Entry, inventory};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The table's columns: headings, and the keys of a card.
const COLUMNS: [(&str, &str); 11] = [
    ("VM", "vm"),
    ("CARD", "card"),
    ("MODE", "mode"),
    ("NETWORK", "network"),
    ("TAP", "tap"),
    ("MAC", "mac"),
    ("ADDRESSES", "addresses"),
    ("FORWARDS", "forwards"),
    ("LINK", "link"),
    ("RECEIVED", "received"),
    ("SENT", "sent"),
];

/// Every VM with its cards, as a list of objects.
///
/// # Errors
/// The host does not say what there is.
pub(super) fn list() -> Result<Value, Error> {
    let links = inventory()?;
    let names = name::running().map_err(Error::host("read /proc/net/unix"))?;
    let known: BTreeMap<&str, Value> =
        names.iter().map(|name| (name.as_str(), with_dropped(vm(name, &links), name))).collect();
    let of_others = links.values().filter_map(|entry| entry.card.as_ref()).map(|card| card.vm.as_str());
    let of_others = of_others.filter(|name| !known.contains_key(name)).map(|name| (name, unknown(name, &links)));
    let vms: BTreeMap<&str, Value> = of_others.chain(known.clone()).collect();
    Ok(vms.into_values().collect())
}

/// The same as a table, with a line below it for each card that shares an address, and for what its keeper cannot keep.
pub(super) fn table(vms: &Value) -> String {
    let cards = || {
        let vms = vms.as_array().into_iter().flatten();
        vms.flat_map(|vm| vm["cards"].as_array().into_iter().flatten().map(move |card| (vm, card)))
    };
    let mut rows = vec![COLUMNS.map(|(heading, _)| heading.to_owned())];
    rows.extend(
        cards().map(|(vm, card)| COLUMNS.map(|(_, key)| cell(if key == "vm" { &vm["name"] } else { &card[key] }))),
    );
    let widths: Vec<usize> =
        (0..COLUMNS.len()).map(|idx| rows.iter().map(|row| row[idx].len()).max().unwrap_or(0)).collect();
    let line = |row: &[String; COLUMNS.len()]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    let below = cards().flat_map(|(vm, card)| shared(vm, card).into_iter().chain(not_kept(vm, card)));
    rows.iter().map(line).chain(below).collect()
}

/// The promises about a card that its keeper cannot keep, a line for each.
fn not_kept(vm: &Value, card: &Value) -> Vec<String> {
    let texts = card["not_kept"].as_array().into_iter().flatten().filter_map(Value::as_str);
    texts.map(|text| format!("{} {}: {text}\n", cell(&vm["name"]), cell(&card["card"]))).collect()
}

/// The promises that keepers of VMs in this network namespace cannot keep, each with VM and card. Empty where the VMs
/// cannot be asked.
pub(super) fn all_not_kept() -> Vec<String> {
    let vms = list().unwrap_or_default();
    let mut texts = Vec::new();
    for vm in vms.as_array().into_iter().flatten() {
        texts.extend(vm["cards"].as_array().into_iter().flatten().flat_map(|card| not_kept(vm, card)));
    }
    texts.iter().map(|text| text.trim_end().to_owned()).collect()
}

/// The line of a card whose guest is not the only one with its addresses.
fn shared(vm: &Value, card: &Value) -> Option<String> {
    let conflicts = &card["conflicts"];
    let times = |kind: &str, what| {
        let count = conflicts[kind].as_u64().filter(|count| *count > 0)?;
        Some(format!("{what} ({count}x)"))
    };
    let shared: Vec<String> =
        [times("mac", "its MAC address"), times("address", "an IP address of it")].into_iter().flatten().collect();
    let card = format!("{} {}", cell(&vm["name"]), cell(&card["card"]));
    (!shared.is_empty())
        .then(|| format!("{card} has an address conflict: another host has been seen with {}\n", shared.join(" and ")))
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) if !items.is_empty() => items.iter().map(cell).collect::<Vec<_>>().join(","),
        Value::Object(traffic) => traffic.get("bytes").and_then(Value::as_u64).map_or_else(|| "-".to_owned(), size),
        _ => "-".to_owned(),
    }
}

/// Bytes as people read them, in the largest unit that leaves a whole number.
fn size(bytes: u64) -> String {
    let mut rest = bytes;
    for unit in ["", "K", "M", "G"] {
        if rest < 1024 {
            return format!("{rest}{unit}");
        }
        rest /= 1024;
    }
    format!("{rest}T")
}

fn vm(name: &VmName, links: &BTreeMap<String, Entry>) -> Value {
    match client::query(name, &Request::Network) {
        Ok(Reply::Network(Value::Array(cards))) => {
            let cards: Value = cards.into_iter().map(|card| with_link(card, links)).collect();
            json!({ "name": name.as_str(), "cards": cards })
        }
        Ok(Reply::Refused(sentence)) => {
            json!({ "name": name.as_str(), "note": sentence, "cards": taps(name.as_str(), links) })
        }
        Ok(_) => {
            json!({ "name": name.as_str(), "note": "It answers another question", "cards": taps(name.as_str(), links) })
        }
        Err(err) => {
            json!({ "name": name.as_str(), "note": net::error_chain(&err), "cards": taps(name.as_str(), links) })
        }
    }
}

/// A VM whose folder is another user's, or in another mount namespace.
fn unknown(name: &str, links: &BTreeMap<String, Entry>) -> Value {
    json!({ "name": name, "note": "It is another user's, or in another container", "cards": taps(name, links) })
}

/// Adds the frames that the VM's rules have dropped, if this user may read them.
fn with_dropped(mut vm: Value, name: &VmName) -> Value {
    if let Ok(dropped) = inventory::dropped(name.as_str()) {
        vm["dropped"] = json!(dropped);
    }
    vm
}

/// Adds the host's view of its tap to the VM's view of a card.
fn with_link(mut card: Value, links: &BTreeMap<String, Entry>) -> Value {
    let entry = card["tap"].as_str().and_then(|tap| links.get(tap));
    let network = entry.and_then(|entry| entry.card.as_ref().map(|card| &card.net).or(entry.master.as_ref()));
    card["network"] = json!(network);
    card["link"] = json!(entry.map(link));
    card["received"] = json!(entry.map(|entry| entry.received));
    card["sent"] = json!(entry.map(|entry| entry.sent));
    card
}

/// The cards of a VM as its taps show them.
fn taps(name: &str, links: &BTreeMap<String, Entry>) -> Value {
    let cards = links.iter().filter_map(|(tap, entry)| {
        let card = entry.card.as_ref().filter(|card| card.vm == name)?;
        let addresses = card.ip4.map(|ip| ip.to_string()).into_iter().chain(card.ip6.map(|ip| ip.to_string()));
        Some(json!({
            "card": format!("net{}", card.card),
            "mode": card.mode.name(),
            "bridge": entry.master,
            "network": card.net,
            "tap": tap,
            "addresses": addresses.collect::<Vec<_>>(),
            "link": link(entry),
            "received": entry.received,
            "sent": entry.sent,
        }))
    });
    cards.collect()
}

fn link(entry: &Entry) -> &'static str {
    if entry.up { "up" } else { "down" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_that_are_not_kept_have_lines_below_the_table() {
        let card = json!({ "card": "net0", "not_kept": ["Network mvn-default is down", "Its tap is off"] });
        let text = table(&json!([{ "name": "web", "cards": [card] }]));
        let below: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(below, ["web net0: Network mvn-default is down", "web net0: Its tap is off"]);
    }

    #[test]
    fn card_that_shares_its_addresses_has_a_line_below_the_table() {
        let vms = json!([
            { "name": "db", "cards": [{ "card": "net0" }] },
            { "name": "web", "cards": [
                { "card": "net0", "conflicts": { "mac": 2, "address": 3 } },
                { "card": "net1", "conflicts": { "mac": 0, "address": 1 } },
            ] },
        ]);
        let text = table(&vms);
        let below: Vec<&str> = text.lines().skip(4).collect();
        assert_eq!(
            below,
            [
                "web net0 has an address conflict: another host has been seen with its MAC address (2x) and an IP \
                 address of it (3x)",
                "web net1 has an address conflict: another host has been seen with an IP address of it (1x)",
            ]
        );
    }
}
