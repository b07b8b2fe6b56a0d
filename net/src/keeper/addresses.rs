//! The IPv6 addresses that guests claim: the first to claim one owns it, and names and forwarded ports follow.
//!
//! ```text
//! guest --solicitation from no address (DAD)--> its tap's socket: a filter passes that alone
//!   free?   no --> an advertisement for it to the guest, which takes another
//!   yes --> a second name of the tap, of which the kernel has each once; on a bridge no machine objects within 1 s
//!       --> in the guard's set; the first global one since the boot is what siblings and forwarded ports get
//! ```
//!
//! The second name (`ip link property`) gives an address a single owner: the kernel refuses it to a second tap, of
//! whichever keeper, and removes it with the tap, whichever process dies. On a network of ours no solicitation gets to
//! siblings, so none can object to an address, or race for it; machines on a bridge of the host hear it. After the
//! keeper's end what has been claimed stays, and nothing is added.
//!
//! The keeper reads only the target of a frame, 16 bytes at an offset that the filter has checked.
//!
//! Not told apart: an address that a guest keeps, and one that it gives up after a day (RFC 8981). Either may be the
//! first after a boot.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::AsRawFd;
use std::task::Poll;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv, send};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep_until};

use super::conflict::{self, claims::ConflictListener};
use super::links::Taps;
use super::pollable::pollable;
use crate::identity::alias::TapAlias;
use crate::identity::mac::MacAddr;
use crate::kernel::cbpf::{Assembler, Instruction, LOAD_BYTE, LOAD_HALF, LOAD_WORD};
use crate::kernel::nft::{Command, Elements, Family, Item};
use crate::kernel::packet;
use crate::plan::Plan;
use crate::rules::guard::owned::{CLAIMED_MAX, Owned6};
use crate::rules::{self, Member};
use crate::services::advertisement;
use crate::spec::{IfName, Switch};
use crate::step::{Applied, AttachTap, CreateTables, Step};

/// Frames that are read in one go, and the pause after that, so that a flood of them costs little.
const FRAMES_MAX: usize = 16;
const PAUSE: Duration = Duration::from_millis(50);

/// New addresses at once, and one more after each pause: what Linux makes at most by itself, and more than any guest
/// needs.
const AT_ONCE: u32 = 16;
const ONE_MORE: Duration = Duration::from_secs(1);

/// Time in which other machines may object: a bit less than a guest waits (`RETRANS_TIMER`, RFC 4861 10).
const OBJECTION: Duration = Duration::from_millis(900);

/// Addresses of a card to which others may be objecting.
const ASKED_MAX: usize = 16;

/// Lines of the log on addresses that another machine has.
const LOGGED_MAX: u32 = 16;

/// Bytes of a frame with a solicitation, and where the target is in it (RFC 4861 4.3).
const SOLICITATION_BYTES: usize = 78;
const TARGET_AT: usize = 62;

/// The fields of a solicitation from the unspecified address: size, offset and value of each.
const SOLICITATION: [(u16, u32, u32); 8] = [
    (LOAD_HALF, 12, 0x86dd),
    (LOAD_BYTE, 20, 58),
    (LOAD_BYTE, 21, 255),
    (LOAD_BYTE, 54, 135),
    (LOAD_WORD, 22, 0),
    (LOAD_WORD, 26, 0),
    (LOAD_WORD, 30, 0),
    (LOAD_WORD, 34, 0),
];

/// The guests of a VM.
pub(super) struct Addresses {
    vm: String,
    members: Vec<Member>,
    cards: Vec<Card>,
    /// When frames are read again.
    again: Instant,
}

struct Card {
    owned: Owned6,
    guarded: Switch,
    bridge: IfName,
    /// The part of a second name before the address; each network has its own.
    place: String,
    tap: u32,
    alias: TapAlias,
    host_side: MacAddr,
    /// A packet socket in the type of a Unix socket, which tokio can wait for.
    socket: UnixStream,
    /// Oldest first.
    claimed: VecDeque<Ipv6Addr>,
    asked: Vec<Asked>,
    left: u32,
    counted: Instant,
    /// A global address has been claimed since the last boot.
    settled: bool,
    logged: u32,
}

/// An address that the guest gets if no other machine objects.
struct Asked {
    address: Ipv6Addr,
    listeners: Vec<ConflictListener>,
    until: Instant,
}

impl Addresses {
    /// Listens on the taps of a plan that has been applied to the host.
    pub(super) fn new(plan: &Plan, made: &Applied, vm: &str) -> Self {
        let tables = plan.steps.iter().find_map(|step| match step {
            Step::CreateTables(CreateTables { members, guards, .. }) => Some((members.clone(), guards.as_slice())),
            _ => None,
        });
        let (members, guards) = tables.unwrap_or_default();
        // Without a prefix no claim is needed, and the socket costs something.
        let of_members = members
            .iter()
            .filter(|member| member.ipv6.is_some())
            .map(|member| (Owned6::of_member(member), member.antispoof));
        let of_guards = guards.iter().filter_map(|guard| Some((Owned6::of_guard(guard)?, Switch::On)));
        let cards = of_members.chain(of_guards).filter_map(|(owned, guarded)| {
            let card = Card::open(plan, made, owned.clone(), guarded)?;
            card.inspect_err(|error| match error.raw_os_error() {
                // The VMM has already ended, and its tap with it.
                Some(libc::ENODEV) => {}
                _ => log::warn!("Cannot learn the IPv6 addresses of the guest of card {}: {error}", owned.card),
            })
            .ok()
        });
        let cards = cards.collect();
        Self { vm: vm.to_owned(), members, cards, again: Instant::now() }
    }

    /// Waits until a guest claims an address, or a time for objections is over.
    pub(super) async fn claimed(&self) {
        if self.cards.is_empty() {
            return std::future::pending().await;
        }
        sleep_until(self.again).await;
        let due = self.cards.iter().flat_map(|card| &card.asked).map(|asked| asked.until).min();
        let over = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let frames = std::future::poll_fn(|context| {
            // Poll all, so that each can wake this task.
            let ready = self.cards.iter().filter(|card| card.socket.poll_read_ready(context).is_ready()).count();
            if ready > 0 { Poll::Ready(()) } else { Poll::Pending }
        });
        tokio::select! {
            () = over => {}
            () = frames => {}
        }
    }

    /// Handles the claims, and the addresses whose time for objections is over.
    pub(super) async fn read(&mut self, made: &mut Applied, taps: &mut Taps<'_>) {
        for idx in 0..self.cards.len() {
            let Some(card) = self.cards.get_mut(idx) else { break };
            let before = card.claimed.clone();
            let mut accepted = card.settle(made).await;
            for _ in 0..FRAMES_MAX {
                let Some(address) = card.next() else { break };
                accepted.extend(card.claim(address, made).await);
            }
            if card.claimed != before {
                card.write(&self.vm, made);
            }
            for address in accepted {
                self.follow(idx, address, made, taps).await;
            }
        }
        self.again = Instant::now() + PAUSE;
    }

    /// Points names and forwarded ports at an address that a guest has been given.
    async fn follow(&mut self, idx: usize, address: Ipv6Addr, made: &mut Applied, taps: &mut Taps<'_>) {
        let Some(card) = self.cards.get_mut(idx) else { return };
        if address.is_unicast_link_local() {
            // A link-local address is the first of each boot.
            card.settled = false;
            return;
        }
        let usual = card.owned.fixed.contains(&address);
        if card.owned.prefix.is_none() || card.settled && !usual {
            return;
        }
        card.settled = true;
        if card.alias.ip6 == Some(address) {
            return;
        }
        card.alias.ip6 = Some(address);
        taps.keep_alias(card.owned.card, &card.alias);
        let (name, alias) = (made.taps.get(&card.owned.card).map(|tap| tap.name.clone()), card.alias.to_string());
        if let Err(error) = made.rtnl.set_alias(name.as_deref().unwrap_or_default(), &alias).await {
            log::warn!("Cannot write {address} to the alias of the tap of card {}: {error}", card.owned.card);
        }
        let before = self.members.clone();
        let own = card.owned.card;
        self.members.iter_mut().filter(|it| it.card == own).for_each(|member| member.address6 = Some(address));
        let commands = rules::changes(&self.vm, &before, &self.members);
        if let Err(error) = made.owner().and_then(|owner| owner.change(commands)) {
            log::warn!("Forwarded ports of card {own} do not lead to {address}: {error}");
        }
    }
}

impl Card {
    /// Listens to one; none if it has no tap here.
    fn open(plan: &Plan, made: &Applied, owned: Owned6, guarded: Switch) -> Option<io::Result<Self>> {
        let tap = made.taps.get(&owned.card)?.index?;
        let (bridge, mac, alias, vlans) = plan.steps.iter().find_map(|step| match step {
            Step::AttachTap(AttachTap { card, bridge, mac, alias, vlans, .. }) if *card == owned.card => {
                Some((bridge.clone(), *mac, alias.clone(), vlans.as_ref()))
            }
            _ => None,
        })?;
        let vlan = vlans.and_then(|vlans| vlans.untagged).map_or(0, |vlan| vlan.get());
        let place = format!("mv6-{bridge}.{vlan}-");
        let socket = match listen(tap, owned.mac) {
            Ok(socket) => socket,
            Err(error) => return Some(Err(error)),
        };
        let (claimed, asked, counted) = (VecDeque::new(), Vec::new(), Instant::now());
        let (left, settled, logged) = (AT_ONCE, false, 0);
        Some(Ok(Self {
            owned,
            guarded,
            bridge,
            place,
            tap,
            alias,
            host_side: mac,
            socket,
            claimed,
            asked,
            left,
            counted,
            settled,
            logged,
        }))
    }

    /// The next address that the guest asks for. Does not wait.
    fn next(&self) -> Option<Ipv6Addr> {
        let mut frame = [0; SOLICITATION_BYTES];
        let receive = || Ok(recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT)?);
        let bytes = self.socket.try_io(Interest::READABLE, receive).ok()?;
        let target = frame.get(..bytes)?.get(TARGET_AT..)?.first_chunk::<16>()?;
        Some(Ipv6Addr::from(*target))
    }

    /// Claims an address for the guest, if no other machine has it. Returns it if the guest may use it now.
    async fn claim(&mut self, address: Ipv6Addr, made: &Applied) -> Option<Ipv6Addr> {
        if self.owned.fixed.contains(&address) {
            return Some(address);
        }
        if let Some(at) = self.claimed.iter().position(|claimed| *claimed == address) {
            // Move it to the end: it is now the last to go.
            self.claimed.remove(at);
            self.claimed.push_back(address);
            return Some(address);
        }
        if self.asked.iter().any(|asked| asked.address == address) {
            return None;
        }
        if !self.owned.may_claim(address) || !self.has_budget() {
            self.refuse(address);
            return None;
        }
        if let Err(error) = made.rtnl.add_name(self.tap, &self.name_of(address)).await {
            let taken = error.raw_os_error() == Some(libc::EEXIST);
            self.log(address, &if taken { "another VM has it".to_owned() } else { error.to_string() });
            self.refuse(address);
            return None;
        }
        if self.owned.asks_others() && self.asked.len() < ASKED_MAX {
            let listeners = conflict::listen(self.bridge.as_str(), self.owned.mac, &[address.into()]);
            let listeners = listeners.unwrap_or_default();
            self.asked.push(Asked { address, listeners, until: Instant::now() + OBJECTION });
            return None;
        }
        self.accept(address, made).await;
        Some(address)
    }

    /// Decides on addresses whose time for objections is over. Returns those that the guest may use now.
    async fn settle(&mut self, made: &Applied) -> Vec<Ipv6Addr> {
        let now = Instant::now();
        let (over, asked) = std::mem::take(&mut self.asked).into_iter().partition(|asked| asked.until <= now);
        self.asked = asked;
        let over: Vec<Asked> = over;
        let mut had = Vec::new();
        for Asked { address, listeners, .. } in over {
            if listeners.iter().any(|listener| listener.next().is_some()) {
                self.give_up(address, made).await;
                self.log(address, "another machine has it");
                self.refuse(address);
            } else {
                self.accept(address, made).await;
                had.push(address);
            }
        }
        had
    }

    async fn accept(&mut self, address: Ipv6Addr, made: &Applied) {
        if self.claimed.len() >= CLAIMED_MAX
            && let Some(oldest) = self.claimed.pop_front()
        {
            self.give_up(oldest, made).await;
        }
        self.claimed.push_back(address);
    }

    async fn give_up(&self, address: Ipv6Addr, made: &Applied) {
        if let Err(error) = made.rtnl.remove_name(self.tap, &self.name_of(address)).await {
            log::debug!("Cannot release {address}: {error}");
        }
    }

    /// Answers the guest that an address is taken, so that it chooses another.
    fn refuse(&self, address: Ipv6Addr) {
        if self.guarded == Switch::Off {
            return;
        }
        let answer = advertisement(self.host_side, address);
        if let Some(Err(errno)) = answer.map(|frame| send(self.socket.as_raw_fd(), &frame, MsgFlags::MSG_DONTWAIT)) {
            log::debug!("Cannot tell a guest that it may not use {address}: {errno}");
        }
    }

    fn log(&mut self, address: Ipv6Addr, reason: &str) {
        self.logged = self.logged.saturating_add(1);
        if self.logged <= LOGGED_MAX {
            log::info!("The guest of card {} may not use {address}: {reason}", self.owned.card);
        }
    }

    /// Writes the claimed addresses into the guard's set.
    fn write(&self, vm: &str, made: &mut Applied) {
        if self.guarded == Switch::Off {
            return;
        }
        let elements = Elements::Ip6(self.claimed.iter().copied().map(Item::One).collect());
        let table = rules::name(vm, Family::Netdev);
        let command = Command::ReplaceElements(table, self.owned.set_name(), elements);
        if let Err(error) = made.owner().and_then(|owner| owner.change(vec![command])) {
            log::warn!("Cannot write the guest's addresses to the guard of card {}: {error}", self.owned.card);
        }
    }

    fn has_budget(&mut self) -> bool {
        let pauses = self.counted.elapsed().as_secs() / ONE_MORE.as_secs();
        if pauses > 0 {
            self.left = self.left.saturating_add(u32::try_from(pauses).unwrap_or(u32::MAX)).min(AT_ONCE);
            self.counted = Instant::now();
        }
        let left = self.left > 0;
        self.left = self.left.saturating_sub(1);
        left
    }

    fn name_of(&self, address: Ipv6Addr) -> String {
        format!("{}{:032x}", self.place, address.to_bits())
    }
}

/// A socket that hears the guest with this MAC ask whether an address is free.
fn listen(tap: u32, mac: MacAddr) -> io::Result<UnixStream> {
    let socket = packet::open(&program(mac)?)?;
    packet::lock_filter(&socket)?;
    packet::ignore_outgoing(&socket)?;
    // A bridge takes frames before sockets of one protocol can.
    packet::bind(&socket, tap, libc::ETH_P_ALL)?;
    pollable(&socket)
}

fn program(mac: MacAddr) -> io::Result<Vec<Instruction>> {
    let [a, b, c, d, e, f] = mac.octets();
    let own = [(LOAD_WORD, 6, u32::from_be_bytes([a, b, c, d])), (LOAD_HALF, 10, u32::from_be_bytes([0, 0, e, f]))];
    let mut asm = Assembler::default();
    for (code, at, value) in SOLICITATION.into_iter().chain(own) {
        asm.expect(code, at, value);
    }
    asm.finish(u32::try_from(SOLICITATION_BYTES).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::cbpf::interpreter::{Beside, each_that_differs_in_one_field, kept};

    #[test]
    fn every_frame_that_differs_in_one_field_is_passed_if_the_guest_asks_for_an_address_by_it() {
        let guest = [2, 0, 0, 0, 0, 7];
        let program = program("02:00:00:00:00:07".parse().unwrap()).unwrap();
        let mut frame = vec![0; SOLICITATION_BYTES];
        frame[6..12].copy_from_slice(&guest);
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        (frame[20], frame[21], frame[54]) = (58, 255, 135);
        let asks = |frame: &[u8]| {
            let has = |at: usize, bytes: &[u8]| frame.get(at..at + bytes.len()) == Some(bytes);
            has(6, &guest) && has(12, &[0x86, 0xdd]) && has(20, &[58, 255]) && has(22, &[0; 16]) && has(54, &[135])
        };
        assert!(asks(&frame));
        each_that_differs_in_one_field(&frame, &[12, 20], |other| {
            let expected = if asks(other) { u32::try_from(SOLICITATION_BYTES).unwrap() } else { 0 };
            assert_eq!(kept(&program, other, Beside::default()), expected, "{other:?}");
        });
    }
}
