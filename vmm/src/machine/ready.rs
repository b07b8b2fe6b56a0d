//! When the machine is ready: every card's address is known. Whoever waits for that is told once, in one line of JSON.
//!
//! ```text
//! [waiting] --the last address is heard--> [told]
//!     |
//!     '--- --wait-net has passed --> the machine ends
//! ```
//!
//! A card whose address cannot be heard does not hold the others up. What is known is kept over reboots of the guest,
//! and printed by `minivmm net list` as well.

use crate::error::Error;
use crate::name::VmName;
use crate::ready_channel::{Channel, ReadyFd};
use net::{NetSpec, Port, Timing};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The user's options for the ready line.
pub(crate) struct ReadyOptions {
    /// The VM.
    pub(crate) name: VmName,
    /// When the process began.
    pub(crate) start: Instant,
    /// Where the line goes; stderr if not given.
    pub(crate) fd: Option<ReadyFd>,
    /// How long after `start` every card may take to have an address.
    pub(crate) timeout: Option<Duration>,
}

/// The cards of a VM, and who is to be told of them.
pub(super) struct Ready {
    options: ReadyOptions,
    timing: Timing,
    /// Empty until the keeper has made them.
    cards: Vec<Card>,
    told: Told,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    No,
    Yes,
}

/// The known properties of a card.
struct Card {
    mode: &'static str,
    bridge: Option<String>,
    network: Option<String>,
    forwards: Vec<String>,
    foreign_rules: Vec<String>,
    tap: String,
    mac: net::MacAddr,
    address: Address,
}

enum Address {
    /// The first frame with one is waited for.
    Awaited,
    /// The card's own DHCP has not acknowledged its lease.
    Unleased,
    /// The guest has these.
    Known(Vec<IpAddr>),
    /// Its tap cannot be listened on.
    Unknown,
}

impl Ready {
    /// Options for cards that are still to come.
    pub(super) fn new(options: ReadyOptions) -> Self {
        Self { options, timing: Timing::default(), cards: Vec::new(), told: Told::No }
    }

    /// Waits for the addresses of the guests behind the ports.
    ///
    /// # Errors
    /// There is a deadline for an address that cannot be heard.
    pub(super) fn watch<'a>(
        &mut self,
        specs: impl Iterator<Item = &'a NetSpec>,
        ports: &[Port],
        timing: Timing,
    ) -> Result<(), Error> {
        let card = |(spec, port): (&NetSpec, &Port)| Card {
            mode: spec.mode(),
            bridge: port.bridge.clone(),
            network: (spec.private().map(|private| private.name.to_string()))
                .or_else(|| spec.shared_interface().map(ToString::to_string)),
            forwards: spec.private().into_iter().flat_map(|private| private.forward).map(ToString::to_string).collect(),
            foreign_rules: port.foreign_rules.clone(),
            tap: port.tap_name.clone(),
            mac: port.mac,
            address: match (&port.services, &port.address_listener) {
                (Some(_), _) => Address::Unleased,
                (None, Some(_)) => Address::Awaited,
                (None, None) => Address::Unknown,
            },
        };
        self.cards = specs.zip(ports).map(card).collect();
        self.timing = timing;
        let deaf = self.cards.iter().position(|card| matches!(card.address, Address::Unknown));
        match (deaf, self.options.timeout) {
            (Some(card), Some(_)) => Err(Error::Usage {
                sentence: format!("--wait-net cannot be had: the address of net{card} cannot be heard"),
                hint: "Its tap is in another network namespace, or minivmm has no CAP_NET_RAW; leave --wait-net out"
                    .to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// Takes note of a card's addresses, which were given to it or heard.
    pub(super) fn learn(&mut self, card: usize, addresses: Vec<IpAddr>) {
        log::debug!("net{card} has {addresses:?}");
        if let Some(card) = self.cards.get_mut(card) {
            card.address = Address::Known(addresses);
        }
    }

    /// Tells whoever waits, once, if every address is known.
    pub(super) fn tell(&mut self) {
        if self.told == Told::Yes || self.missing().is_some() {
            return;
        }
        self.told = Told::Yes;
        let channel = match self.options.fd.take() {
            Some(fd) => Channel::Fd(fd),
            // A VM without cards has no network that could be ready, and a user who has not asked.
            None if self.cards.is_empty() => return,
            None => Channel::Stderr,
        };
        let ms = u64::try_from(self.options.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let line = json!({
            "event": "ready",
            "name": self.options.name.as_str(),
            "ms": ms,
            "setup": self.timing,
            "cards": self.cards(),
        });
        if let Err(err) = channel.write(&line.to_string()) {
            log::warn!("Cannot write the ready line: {err}");
        }
    }

    /// When a card without an address ends the machine.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let deadline = self.options.start + self.options.timeout?;
        self.missing().map(|_| deadline)
    }

    /// A sentence and a hint if a card has no address at `now`, and should.
    pub(super) fn overdue(&self, now: Instant) -> Option<(String, String)> {
        let timeout = self.options.timeout?;
        let (idx, card) = self.missing()?;
        if now < self.options.start + timeout {
            return None;
        }
        let place = match (&card.bridge, &card.network) {
            (Some(bridge), _) => format!("bridge {bridge}"),
            (None, Some(interface)) => format!("the network of {interface}"),
            (None, None) => format!("tap {}", card.tap),
        };
        let sentence = format!("net{idx} has no address after {} s", timeout.as_secs());
        let hint = match card.address {
            Address::Unleased => {
                "See whether the guest asks for an address by DHCP, which minivmm answers, or give it more time"
                    .to_owned()
            }
            _ => format!(
                "See whether the guest asks for an address and a server on {place} gives it one, or give it more time: \
                 an address counts once a frame with it comes from the guest"
            ),
        };
        Some((sentence, hint))
    }

    /// Every card, as JSON.
    pub(super) fn cards(&self) -> Value {
        self.cards.iter().enumerate().map(|(idx, card)| card.json(idx)).collect()
    }

    /// The first card whose address is waited for.
    fn missing(&self) -> Option<(usize, &Card)> {
        self.cards.iter().enumerate().find(|(_, card)| matches!(card.address, Address::Awaited | Address::Unleased))
    }
}

impl Card {
    fn json(&self, idx: usize) -> Value {
        let (state, addresses) = match &self.address {
            Address::Awaited | Address::Unleased => ("awaited", &[][..]),
            Address::Known(addresses) => ("known", &addresses[..]),
            Address::Unknown => ("unknown", &[][..]),
        };
        json!({
            "card": format!("net{idx}"),
            "mode": self.mode,
            "bridge": self.bridge,
            "network": self.network,
            "tap": self.tap,
            "mac": self.mac,
            "address": state,
            "addresses": addresses,
            "forwards": self.forwards,
            "foreign_rules": self.foreign_rules,
        })
    }
}
