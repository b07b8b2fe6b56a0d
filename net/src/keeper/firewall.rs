//! Keeps the ways of guests open while other programs change the host's rules.
//!
//! ```text
//! Docker drops, and has its chain for others   -> the rules of the plan's AdmitInDocker are there, even after a flush,
//!                                                 until it goes
//! another chain drops forwarded traffic         -> said once, in the log and to the VMM; no rule can overrule it
//! ```
//!
//! A notification only triggers a look, and looks have a [`Pace`]: on a host where rules change all the time they take
//! a hundredth of a processor. Changes of tables of minivmm's own are no reason to look. Not seen: rules of iptables'
//! predecessor, which sends no notifications, and single rules that drop.

use std::time::Duration;

use tokio::time::Instant;

use super::NotKept;
use super::gateways::members;
use super::pace::{Allowance, Grant, Pace};
use crate::error::Error;
use crate::facts::docker::{CHAIN, DockerTables};
use crate::host::docker::{self, Admission};
use crate::host::lock::NamespaceLock;
use crate::identity::alias::Mode;
use crate::kernel::nft::{BaseChainSeen, Changes, NftError, NftSocket};
use crate::plan::Plan;
use crate::rules::Member;
use crate::spec::IfName;
use crate::step::{AdmitInDocker, Applied, AttachTap, Step};
use crate::survey::{self, ip};

/// Time for which a chain must drop before that is reported: a reload removes ufw's rules for a moment.
const SETTLING: Duration = Duration::from_secs(1);

/// Prefix of the names of minivmm's tables.
const OURS: &str = "minivmm-";

/// The forwarding of a VM, as far as rules of other programs decide about it.
pub(super) struct Firewall<'a> {
    vm: &'a str,
    members: Vec<&'a Member>,
    /// Cards on bridges of the host.
    bridged: Vec<(usize, &'a IfName)>,
    changes: Option<Changes>,
    pace: Pace,
    placed: InDocker,
    allowance: Allowance,
    /// Troubles that the last look found for the first time.
    suspected: Vec<NotKept>,
    not_kept: Vec<NotKept>,
}

/// Rules in Docker's chain: the cards that they admit, and the bridges that they do not lead to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct InDocker {
    admissions: Vec<Admission>,
    containers: Vec<IfName>,
}

impl<'a> Firewall<'a> {
    /// The forwarding of a plan for `vm` that has been applied.
    pub(super) fn new(plan: &'a Plan, vm: &'a str) -> Self {
        let members: Vec<&Member> = members(plan).collect();
        let is_ours = |bridge: &IfName| members.iter().any(|member| member.bridge == *bridge);
        let bridged = plan.steps.iter().filter_map(|step| match step {
            Step::AttachTap(AttachTap { card, bridge, .. }) if !is_ours(bridge) => Some((*card, bridge)),
            _ => None,
        });
        let bridged: Vec<_> = bridged.collect();
        let placed = plan.steps.iter().find_map(|step| match step {
            Step::AdmitInDocker(AdmitInDocker { admissions, containers, .. }) => {
                Some(InDocker { admissions: admissions.clone(), containers: containers.clone() })
            }
            _ => None,
        });
        let subscribe = || {
            let failed = |error| log::error!("Cannot subscribe to changes of the host's nftables: {error}");
            Changes::subscribe(OURS).map_err(failed).ok()
        };
        let changes = if members.is_empty() && bridged.is_empty() { None } else { subscribe() };
        let (placed, allowance) = (placed.unwrap_or_default(), Allowance::full());
        let (pace, suspected, not_kept) = (Pace::later(), Vec::new(), Vec::new());
        Self { vm, members, bridged, changes, pace, placed, allowance, suspected, not_kept }
    }

    /// Waits until there is something to look at.
    pub(super) async fn wait(&self) {
        let Some(changes) = &self.changes else { return std::future::pending().await };
        self.pace.rest().await;
        if !self.pace.is_marked() && changes.ready().await.is_err() {
            std::future::pending().await
        }
    }

    /// Looks, and repairs Docker's chain.
    pub(super) async fn look(&mut self, made: &mut Applied) {
        let due = self.pace.is_marked();
        let look = self.pace.begin();
        let heard = self.changes.as_ref().is_some_and(|changes| changes.read().unwrap_or(true));
        if (due || heard)
            && let Err(error) = self.mend(made).await
        {
            log::warn!("Cannot check the host's nftables: {}", error.report().message);
        }
        self.pace.end(&look);
    }

    /// The networks that other programs cut off.
    pub(super) fn not_kept(&self) -> impl Iterator<Item = NotKept> {
        self.not_kept.iter().cloned()
    }

    async fn mend(&mut self, made: &mut Applied) -> Result<(), Error> {
        let bridged = ip::bridged_as_routed();
        // Its place is for networks of ours.
        let tables = if self.members.is_empty() { DockerTables::default() } else { survey::docker::survey() };
        let admissions = self.members.iter().filter_map(|member| docker::admission(member, tables, bridged));
        let admissions: Vec<Admission> = admissions.collect();
        let mut not_kept = Vec::new();
        if !admissions.is_empty() && !self.admit(admissions, made).await? {
            let card = self.members.first().map_or(0, |member| member.card);
            let text = format!("Its rules are removed from chain {CHAIN} again and again");
            not_kept.push(NotKept { card, text });
        }
        not_kept.extend(self.lasting(self.cut_off(tables, bridged).map_err(Error::ReadNftables)?));
        for trouble in not_kept.iter().filter(|trouble| !self.not_kept.contains(trouble)) {
            log::warn!("{}", trouble.text);
        }
        self.not_kept = not_kept;
        Ok(())
    }

    /// The troubles that the previous look found as well. The others wait for another look.
    fn lasting(&mut self, found: Vec<NotKept>) -> Vec<NotKept> {
        let known = |trouble: &NotKept| self.suspected.contains(trouble) || self.not_kept.contains(trouble);
        let (lasting, fresh): (Vec<_>, Vec<_>) = found.into_iter().partition(known);
        if !fresh.is_empty() {
            self.pace.mark_for(Instant::now() + SETTLING);
        }
        self.suspected = fresh;
        lasting
    }

    /// Adds the rules that let the cards through Docker's chain, if they are missing. Returns false if other programs
    /// remove them again and again.
    async fn admit(&mut self, admissions: Vec<Admission>, made: &mut Applied) -> Result<bool, Error> {
        let links = survey::links(&made.rtnl).await.map_err(Error::Survey)?;
        let wanted = InDocker { admissions, containers: docker::containers(&links) };
        if wanted == self.placed && docker::are_placed(&made.admitted).map_err(Error::Docker)? {
            return Ok(true);
        }
        let grant = self.allowance.take();
        if let Grant::Later { .. } = grant {
            self.pace.mark_for(self.allowance.next());
            return Ok(false);
        }
        // Another VM's start or end may edit the same chain.
        let _lock = NamespaceLock::take().await;
        made.admit(self.vm, &wanted.admissions, &wanted.containers).await?;
        self.placed = wanted;
        if grant == Grant::Granted {
            log::info!("Docker drops forwarded traffic that no rule accepts: this VM's rules are in its chain {CHAIN}");
        }
        Ok(true)
    }

    /// The chains that drop what these cards' networks and bridges forward.
    fn cut_off(&self, docker: DockerTables, bridged_as_routed: bool) -> Result<Vec<NotKept>, NftError> {
        let mut socket = NftSocket::open()?;
        let mut found = Vec::new();
        for chain in socket.base_chains(OURS)?.iter().filter(|chain| chain.hook == "forward" && chain.drops()) {
            let of_docker = docker::is_its_own(chain, docker);
            let networks = self.networks_seen_by(chain, bridged_as_routed).filter(|_| !of_docker);
            let bridges = self.bridged.iter().filter(|_| chain.family == "bridge" || bridged_as_routed);
            let networks: Vec<_> = networks.map(|member| (member.card, &member.bridge, "network")).collect();
            for (card, bridge, what) in networks.into_iter().chain(bridges.map(|(card, name)| (*card, *name, "bridge")))
            {
                if !socket.accepts_for(chain, bridge.as_str())? {
                    let text = text(chain, what, bridge);
                    found.push(NotKept { card, text });
                }
            }
        }
        // Several cards may be on one.
        found.dedup_by(|next, first| next.text == first.text);
        Ok(found)
    }

    /// The cards on networks of ours whose packets pass a chain for what is routed.
    fn networks_seen_by(&self, chain: &BaseChainSeen, bridged_as_routed: bool) -> impl Iterator<Item = &&'a Member> {
        let (family, routed) = (chain.family, move |mode| mode == Mode::Nat || bridged_as_routed);
        self.members.iter().filter(move |member| {
            let seen = matches!(family, "ip" | "inet") || family == "ip6" && member.ipv6.is_some();
            seen && routed(member.mode)
        })
    }
}

fn text(chain: &BaseChainSeen, what: &str, bridge: &IfName) -> String {
    let BaseChainSeen { family, table, chain, .. } = chain;
    format!("Chain {chain} of table {family} {table} drops traffic that {what} {bridge} forwards")
}
