//! Rates of cards on vhost-net (`rate=` with `vhost=on`), held by the kernel on the card's tap.
//!
//! ```text
//! to the guest     bridge -> [tbf on the tap] -> vhost-net
//! from the guest   vhost-net -> tap, rules -> fwd -> [tbf on an ifb] -> back to where it came from -> bridge
//! ```
//!
//! Ingress traffic can be shaped only by a detour through an interface for that purpose, an *ifb*. The detour begins in
//! nftables, after all rules on the tap: one that begins in traffic control would lead around them. The guest waits,
//! and no frame is lost: the tap takes no more frames than the ifb has room for. A policer needs no ifb, but drops
//! frames, and TCP falls behind the rate.
//!
//! The queueing discipline of the tap goes with the tap, the detour with the keeper. The ifb is named after the tap's
//! index, so that one without its tap is recognised and removed.

use std::collections::BTreeMap;
use std::io;

use rtnetlink::packet_core::DefaultNla;
use rtnetlink::packet_route::tc::TcOption;
use serde::Serialize;

use crate::facts::Link;
use crate::host::tap::Tap;
use crate::identity::alias::OUR_GROUP;
use crate::kernel::link::index_of;
use crate::kernel::nft::{
    Base, Batch, Chain, ChainType, Command, Family, Hook, NftError, NftSocket, Policy, Rule, Statement, Table,
    TableName,
};
use crate::kernel::rtnl::Rtnl;
use crate::kernel::tun;
use crate::spec::IfName;
use crate::survey;

/// Prefix of the names of our ifbs, before the index of a tap. An interface name has room for ten digits more.
const IFB_PREFIX: &str = "mvifb";

/// After all rules on the tap.
const LAST: i32 = 2000;

/// Queue limits as fractions of a second at the rate: a tenth to the guest, and a fiftieth from the guest, where the
/// guest holds the rest.
const TO_GUEST_PER_SECOND: u64 = 10;
const FROM_GUEST_PER_SECOND: u64 = 50;

/// Bounds of the queue limits, in bytes: some frames before segmentation, and the memory that a host can spare.
const WAITING_MIN: u64 = 256 << 10;
const WAITING_MAX: u64 = 64 << 20;

/// Extra room on the ifb beyond the tap's buffer, in bytes: a frame is taken as long as there is any room, and
/// segmentation repeats headers.
const RESERVE: u64 = 4 << 20;

/// Attributes of a token bucket filter (linux/pkt_sched.h), and the layer by which it counts bytes without a table.
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TC_LINKLAYER_ETHERNET: u8 = 1;

/// A rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rate {
    /// Bits per second.
    pub bits_per_s: u64,
    /// Burst after a pause, in bytes. At least a frame.
    pub burst_bytes: u64,
}

impl Rate {
    /// The queue limit in bytes: the data of `1 / per_second` of a second at this rate, within the bounds.
    fn waiting(self, per_second: u64) -> u64 {
        (self.bits_per_s / 8 / per_second).clamp(WAITING_MIN, WAITING_MAX)
    }
}

/// A card with its rate limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RateLimit {
    /// The card.
    pub card: usize,
    /// To the guest.
    pub to_guest: Rate,
    /// From the guest.
    pub from_guest: Rate,
}

impl RateLimit {
    /// Bytes that the tap takes from each queue of the guest before the guest has to wait.
    fn send_buffer(&self) -> u64 {
        self.from_guest.waiting(FROM_GUEST_PER_SECOND)
    }

    /// Makes the ifb of the tap with this index, and sets the queueing disciplines of both.
    async fn apply(&self, rtnl: &Rtnl, tap: u32, queues: u64) -> io::Result<()> {
        let waiting = self.to_guest.waiting(TO_GUEST_PER_SECOND);
        rtnl.set_qdisc(tap, "tbf", token_bucket(self.to_guest, waiting)).await?;
        let name = ifb_name(tap);
        rtnl.create_ifb(&name).await?;
        let ifb = index_of(&name)?;
        let waiting = self.send_buffer().saturating_mul(2 * queues).saturating_add(RESERVE);
        rtnl.set_qdisc(ifb, "tbf", token_bucket(self.from_guest, waiting)).await
    }
}

/// Failure to limit rates.
#[derive(Debug, thiserror::Error)]
pub enum RateError {
    /// A kernel without `tbf`, `ifb` or the `fwd` of nftables.
    #[error("The kernel lacks tbf, ifb or the fwd statement of nftables")]
    Missing,
    /// A discipline or an interface.
    #[error("Cannot set up a token bucket filter (tbf) or its ifb")]
    Link(#[from] io::Error),
    /// The detour.
    #[error(transparent)]
    Nft(#[from] NftError),
}

impl RateError {
    /// Tells a kind of link or discipline that the kernel lacks from other errors.
    fn from_link(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::EOPNOTSUPP) => Self::Missing,
            _ => Self::Link(error),
        }
    }
}

/// Limits the rates of cards on these taps. The detours last as long as the socket.
pub(crate) async fn hold(
    rtnl: &Rtnl,
    vm: &str,
    limits: &[RateLimit],
    taps: &BTreeMap<usize, Tap>,
) -> Result<NftSocket, RateError> {
    let links = survey::links(rtnl).await?;
    sweep(rtnl, &links).await?;
    for limit in limits {
        let Some(Tap { index: Some(index), fds, .. }) = taps.get(&limit.card) else { continue };
        let queues = u64::try_from(fds.len()).unwrap_or(u64::MAX);
        limit.apply(rtnl, *index, queues).await.map_err(RateError::from_link)?;
        if let Some(queue) = fds.first() {
            tun::limit_sending(queue, limit.send_buffer())?;
        }
    }
    let table = table(vm, limits, |card| {
        let tap = taps.get(&card)?;
        Some((tap.name.parse().ok()?, ifb_name(tap.index?).parse().ok()?))
    });
    let mut socket = NftSocket::open()?;
    match socket.apply(&Batch { commands: vec![Command::AddTable(table)] }) {
        Ok(()) => Ok(socket),
        Err(NftError::Refused { source, .. })
            if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) =>
        {
            Err(RateError::Missing)
        }
        Err(error) => Err(error.into()),
    }
}

/// Removes the ifbs of these taps.
pub(crate) async fn release(rtnl: &Rtnl, taps: impl Iterator<Item = u32>) -> io::Result<()> {
    for tap in taps {
        match index_of(&ifb_name(tap)) {
            Ok(ifb) => rtnl.remove(ifb).await?,
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The VM's table of detours. `tap` gives the tap of a card and its ifb. No VM's name has a slash, so that no other
/// table has this name.
fn table(vm: &str, limits: &[RateLimit], tap: impl Fn(usize) -> Option<(IfName, IfName)>) -> Table {
    let chain = |limit: &RateLimit| {
        let (tap, ifb) = tap(limit.card)?;
        let (chain_type, hook) = (ChainType::Filter, Hook::Ingress(tap));
        let base = Base { chain_type, hook, priority: LAST, policy: Policy::Accept };
        let rules = vec![Rule::new().with(Statement::Fwd(ifb))];
        Some(Chain { name: format!("card{}", limit.card), base: Some(base), rules })
    };
    Table {
        name: TableName { family: Family::Netdev, name: format!("minivmm-{vm}/rate") },
        counters: Vec::new(),
        sets: Vec::new(),
        chains: limits.iter().filter_map(chain).collect(),
    }
}

/// The name of the ifb of the tap with this index.
fn ifb_name(tap: u32) -> String {
    format!("{IFB_PREFIX}{tap}")
}

/// Removes the ifbs of ours whose taps have gone. Returns their names.
///
/// # Errors
/// The first ifb that cannot be removed.
pub(crate) async fn sweep(rtnl: &Rtnl, links: &[Link]) -> io::Result<Vec<String>> {
    let mut swept = Vec::new();
    for link in links.iter().filter(|link| is_left_over(link, links)) {
        rtnl.remove(link.index).await?;
        swept.push(link.name.clone());
    }
    Ok(swept)
}

fn is_left_over(link: &Link, links: &[Link]) -> bool {
    let ours = link.kind.as_deref() == Some("ifb") && link.group == OUR_GROUP;
    let tap = link.name.strip_prefix(IFB_PREFIX).and_then(|number| number.parse::<u32>().ok());
    ours && tap.is_some_and(|tap| !links.iter().any(|link| link.index == tap))
}

/// The options of a token bucket filter with this queue limit.
fn token_bucket(rate: Rate, waiting_bytes: u64) -> Vec<TcOption> {
    let bytes_per_s = rate.bits_per_s / 8;
    let word = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_ne_bytes();
    // struct tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate.
    let spec = |rate: u64| [&[0, TC_LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0], word(rate).as_slice()].concat();
    // struct tc_tbf_qopt: rate, peak rate, limit, and buffer and mtu, which TCA_TBF_BURST says better.
    let parms = [spec(bytes_per_s), vec![0; 12], word(waiting_bytes).to_vec(), vec![0; 8]].concat();
    let options = [
        (TCA_TBF_PARMS, parms),
        (TCA_TBF_RATE64, bytes_per_s.to_ne_bytes().to_vec()),
        (TCA_TBF_BURST, word(rate.burst_bytes).to_vec()),
    ];
    options.into_iter().map(|(kind, value)| TcOption::Other(DefaultNla::new(kind, value))).collect()
}
