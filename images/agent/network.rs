//! Bringing up the cards, all at the same time: fixed addresses where the command line has them, busybox's DHCP client
//! on the others. A client stays in the background: with a lease to renew it, without one to go on asking.

use crate::cards;
use crate::cmdline::{FixedAddress, Network};
use crate::console::say;
use crate::power::Stop;
use crate::spawn::{applet, start};
use crate::supervisor::{Event, Supervisor};
use nix::unistd::Pid;
use std::fs::File;
use std::time::{Duration, Instant};

/// Seconds between two DHCP requests, the client's own default. One second was tried and loses to servers that ping an
/// address for three seconds before they offer it (dnsmasq does): the client gives up the offer just before the answer.
const REQUEST_INTERVAL_S: u64 = 3;
/// For programs to end after the time they were given.
const SLACK: Duration = Duration::from_secs(2);

/// Sets an address: card, address with prefix, gateway or nothing.
const FIXED: &str = r#"
ip link set dev "$1" up && ip addr add "$2" dev "$1" || exit 1
[ -z "$3" ] || ip route add default via "$3" dev "$1""#;

/// A program under way.
struct Task {
    pid: Pid,
    /// The message for its failure.
    failure: String,
}

/// Brings up all cards and waits until each has its address or has failed, which is then said.
///
/// # Errors
/// The request to stop, if it came meanwhile.
pub(crate) fn bring_up(network: &Network, supervisor: &mut Supervisor) -> Result<(), Stop> {
    let mut tasks: Vec<Task> = task("Cannot raise lo", &["ip", "link", "set", "dev", "lo", "up"]).into_iter().collect();
    let Network::On { fixed, dhcp_timeout } = network else {
        return wait_for(tasks, SLACK, supervisor);
    };
    tasks.extend(fixed.iter().filter_map(set_fixed));
    let mut asking = cards::names();
    asking.retain(|name| fixed.iter().all(|address| address.card != *name));
    tasks.extend(asking.iter().filter_map(|card| ask_dhcp(card, *dhcp_timeout)));
    wait_for(tasks, *dhcp_timeout + SLACK, supervisor)?;
    for card in cards::list().iter().filter(|card| asking.contains(&card.name) && card.addresses.is_empty()) {
        say!("No DHCP lease for {} within {} s, still asking", card.name, dhcp_timeout.as_secs());
    }
    Ok(())
}

/// Waits until all have ended, or for so long, and says which failed.
fn wait_for(mut tasks: Vec<Task>, timeout: Duration, supervisor: &mut Supervisor) -> Result<(), Stop> {
    let deadline = Instant::now() + timeout;
    while !tasks.is_empty() {
        match supervisor.next(Some(deadline)) {
            Event::Ended { pid, code } => {
                let ended = tasks.iter().position(|task| task.pid == pid).map(|idx| tasks.swap_remove(idx));
                if let Some(task) = ended.filter(|_| code != 0) {
                    say!("{}", task.failure);
                }
            }
            Event::Stop(stop) => return Err(stop),
            Event::Deadline => tasks.clear(),
        }
    }
    Ok(())
}

fn set_fixed(fixed: &FixedAddress) -> Option<Task> {
    let address = format!("{}/{}", fixed.address, fixed.prefix_bits);
    let gateway = fixed.gateway.map(|gateway| gateway.to_string()).unwrap_or_default();
    let failure = format!("Cannot give {} the address {address}", fixed.card);
    task(&failure, &["sh", "-c", FIXED, "sh", &fixed.card, &address, &gateway])
}

/// Starts a client that ends with the lease or after the time, and has a child that lives on.
fn ask_dhcp(card: &str, timeout: Duration) -> Option<Task> {
    let tries = timeout.as_secs().div_ceil(REQUEST_INTERVAL_S).max(1).to_string();
    let interval = REQUEST_INTERVAL_S.to_string();
    let arguments = ["udhcpc", "-i", card, "-b", "-t", &tries, "-T", &interval, "-A", &interval];
    task(&format!("Cannot ask for a DHCP lease for {card}"), &arguments)
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
