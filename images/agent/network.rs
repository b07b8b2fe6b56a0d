//! Bringing up the cards, all at the same time: fixed addresses where the command line has them, busybox's DHCP client on
//! the others. A client that got its lease stays in the background and renews it.

use std::fs::File;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::cards;
use crate::cmdline::{FixedAddress, Network};
use crate::console::say;
use crate::power::Stop;
use crate::spawn::{applet, start};
use crate::supervisor::{Event, Supervisor};

/// Between two DHCP requests. Short: on a virtual link it is lost only while the bridge or server comes up.
const REQUEST_INTERVAL: Duration = Duration::from_secs(1);
/// A request may still be under way when the last one is sent.
const SLACK: Duration = Duration::from_secs(2);

/// Sets an address: card, address with prefix, gateway or nothing.
const FIXED: &str = r#"
ip link set dev "$1" up && ip addr add "$2" dev "$1" || exit 1
[ -z "$3" ] || ip route add default via "$3" dev "$1""#;

/// A program under way for one card.
struct Task {
    pid: Pid,
    /// What to say when it fails.
    failure: String,
}

/// Brings up all cards and waits until each has its address or has failed, which is then said.
///
/// # Errors
/// The wish to stop, if it came meanwhile.
pub(crate) fn bring_up(network: &Network, supervisor: &mut Supervisor) -> Result<(), Stop> {
    let mut tasks: Vec<Task> = task("Cannot raise lo", &["ip", "link", "set", "dev", "lo", "up"]).into_iter().collect();
    let mut deadline = Instant::now() + SLACK;
    if let Network::On { fixed, dhcp_patience } = network {
        deadline += *dhcp_patience;
        tasks.extend(fixed.iter().filter_map(set_fixed));
        let free = cards::names().into_iter().filter(|name| fixed.iter().all(|address| address.card != *name));
        tasks.extend(free.filter_map(|card| ask_dhcp(&card, *dhcp_patience)));
    }
    while !tasks.is_empty() {
        match supervisor.next(Some(deadline)) {
            Event::Ended { pid, code } => {
                let ended = tasks.iter().position(|task| task.pid == pid).map(|idx| tasks.swap_remove(idx));
                if let Some(task) = ended.filter(|_| code != 0) {
                    say!("{}", task.failure);
                }
            }
            Event::Stop(stop) => return Err(stop),
            Event::Deadline => {
                tasks.drain(..).for_each(|task| say!("{} (still trying)", task.failure));
            }
        }
    }
    Ok(())
}

fn set_fixed(wish: &FixedAddress) -> Option<Task> {
    let address = format!("{}/{}", wish.address, wish.prefix_bits);
    let gateway = wish.gateway.map(|gateway| gateway.to_string()).unwrap_or_default();
    let failure = format!("Cannot give {} the address {address}", wish.card);
    task(&failure, &["sh", "-c", FIXED, "sh", &wish.card, &address, &gateway])
}

fn ask_dhcp(card: &str, patience: Duration) -> Option<Task> {
    let failure = format!("No DHCP lease for {card} within {} s", patience.as_secs());
    let tries = patience.as_secs().max(1).to_string();
    let interval = REQUEST_INTERVAL.as_secs().to_string();
    task(&failure, &["udhcpc", "-i", card, "-n", "-t", &tries, "-T", &interval, "-A", &interval])
}

fn task(failure: &str, arguments: &[&str]) -> Option<Task> {
    let mut command = applet(arguments);
    // The chatter of the tools is kept for whoever debugs the guest, off the console.
    if let Ok(log) = File::options().create(true).append(true).open("/run/network.log")
        && let Ok(copy) = log.try_clone()
    {
        command.stdout(log).stderr(copy);
    }
    match start(&mut command) {
        Ok(pid) => Some(Task { pid, failure: failure.to_owned() }),
        Err(error) => {
            say!("{failure}: {error}");
            None
        }
    }
}
