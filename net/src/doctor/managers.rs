//! Programs that configure every interface they see, and would take a tap off its bridge.

use std::fs;
use std::path::Path;

use super::Finding;

const WHY: &str =
    "it takes a tap off its bridge some seconds after the start; minivmm puts it back, and frames are lost meanwhile";

/// NetworkManager's configuration, which tells it what to leave alone.
const MANAGER_CONF: [&str; 3] =
    ["etc/NetworkManager/conf.d", "run/NetworkManager/conf.d", "usr/lib/NetworkManager/conf.d"];

/// systemd-networkd's configuration, which tells it what to manage (systemd.network(5)).
const NETWORKD_CONF: [&str; 3] = ["etc/systemd/network", "run/systemd/network", "usr/lib/systemd/network"];

/// Looks below `root`.
pub(super) fn look(root: &Path) -> Vec<Finding> {
    [network_manager(root), networkd(root)].into_iter().flatten().collect()
}

fn network_manager(root: &Path) -> Option<Finding> {
    if !root.join("run/NetworkManager").exists() {
        return None;
    }
    let files = MANAGER_CONF.iter().flat_map(|directory| texts(&root.join(directory), "conf"));
    let main = fs::read_to_string(root.join("etc/NetworkManager/NetworkManager.conf"));
    if files
        .chain(main)
        .any(|text| text.lines().any(|line| line.starts_with("unmanaged-devices") && line.contains("vmtap")))
    {
        return Some(Finding::fine("managers", "NetworkManager leaves vmtap* alone"));
    }
    let fix = "printf '[keyfile]\\nunmanaged-devices+=interface-name:vmtap*;interface-name:mvn-*;interface-name:mvh-*\\n' \
               > /etc/NetworkManager/conf.d/minivmm.conf && nmcli general reload";
    Some(Finding::warning("managers", "NetworkManager runs, and may manage vmtap*", WHY, fix))
}

fn networkd(root: &Path) -> Option<Finding> {
    if !root.join("run/systemd/netif/links").exists() {
        return None;
    }
    let mut texts = NETWORKD_CONF.iter().flat_map(|directory| texts(&root.join(directory), "network"));
    if !texts.any(|text| takes_taps(&text)) {
        return Some(Finding::fine("managers", "systemd-networkd runs, and no .network file matches vmtap*"));
    }
    let fix = "printf '[Match]\\nName=vmtap* mvn-* mvh-*\\n[Link]\\nUnmanaged=yes\\n' > /etc/systemd/network/05-minivmm.network \
               && networkctl reload";
    Some(Finding::warning("managers", "systemd-networkd runs, and a .network file matches every tap", WHY, fix))
}

/// True if a file matches every tap, whatever its name.
fn takes_taps(text: &str) -> bool {
    let mut section = "";
    text.lines().map(str::trim).any(|line| {
        if line.starts_with('[') {
            section = line;
        }
        section == "[Match]"
            && matches!(line.split_once('='), Some(("Name", "*") | ("Type", "ether") | ("Kind", "tun" | "tap")))
    })
}

/// The files of a directory whose names end in `extension`.
fn texts(directory: &Path, extension: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == extension));
    paths.filter_map(|path| fs::read_to_string(path).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_match_every_tap_are_known() {
        for text in ["[Match]\nName=*\n[Network]\nDHCP=yes", "[Match]\nType=ether", "[Match]\nKind=tun"] {
            assert!(takes_taps(text), "{text}");
        }
        for text in ["", "[Match]\nName=en*\n[Network]\nDHCP=yes", "[Link]\nName=*", "[Match]\nKind=bridge"] {
            assert!(!takes_taps(text), "{text}");
        }
    }
}
