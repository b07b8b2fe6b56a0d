//! The objects that the steps of a plan have made so far. The keeper looks after them until the steps are undone.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{OwnedFd, RawFd};

use crate::error::Error;
use crate::facts::Link;
use crate::host::bridge::{self, BridgeError, Part};
use crate::host::docker::{self, Admission, Placed};
use crate::host::forwarding::fence::{self, Fence};
use crate::host::forwarding::{self, Family};
use crate::host::mirror::{self, Mirror, MirrorError};
use crate::host::tap::Tap;
use crate::kernel::link::index_of;
use crate::kernel::nft::{Command, NftError, NftSocket, TableName};
use crate::kernel::rtnl::{Attachment, Rtnl};
use crate::kernel::sysctl;
use crate::kernel::tun::TapKind;
use crate::policy::rules::EnforcedCard;
use crate::policy::{ActivePolicy, Policy};
use crate::refusal::{MirrorRefusal, Refusal};
use crate::rules::tables::Tables;
use crate::services::ServiceSpec;
use crate::spec::IfName;
use crate::survey;

/// Limit of frames in a tap's queue: twice the default.
const QUEUED_MAX: usize = 1000;

/// The host's state that steps share with each other.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) rtnl: Rtnl,
    /// Taps by card.
    pub(crate) taps: BTreeMap<usize, Tap>,
    /// Descriptors of vhost-net by card, until they are handed over.
    pub(crate) vhosts: BTreeMap<usize, Vec<OwnedFd>>,
    /// Sockets that hold ports, by card.
    pub(crate) ports: BTreeMap<usize, Vec<OwnedFd>>,
    /// The sockets of services and their configurations, by card, until they are handed over.
    pub(crate) services: BTreeMap<usize, (ServiceSpec, OwnedFd)>,
    /// The owner of the VM's tables, if it has some.
    pub(crate) tables: Option<Tables>,
    /// The VM's name.
    vm: String,
    /// The interfaces that the VM's fence keeps apart, so that the host is no router.
    fence: Option<Fence>,
    /// Forwarding that has been switched on behind the fence, by bridge and family.
    fenced: BTreeSet<(IfName, Family)>,
    /// The links as they were at the last undo of something of a bridge, if nothing has been changed since. A host with
    /// many VMs has many, and keepers look at them one after the other.
    looked: Option<Vec<Link>>,
    /// The policy that is enforced on its cards, if there is one.
    pub(crate) active_policy: Option<ActivePolicy>,
    /// Rules of the VM in tables of Docker's.
    pub(crate) admitted: Vec<Placed>,
    /// The owner of the table of mirrors, if there is one.
    pub(crate) mirrors: Option<NftSocket>,
    /// Claims on cards' macvtaps and Open vSwitch ports, by card.
    pub(crate) claims: BTreeMap<usize, OwnedFd>,
    /// The owner of the table of rate limits, if there is one.
    pub(crate) rates: Option<NftSocket>,
    /// Descriptors that the VMM inherited for `fd=`, by number.
    pub(crate) inherited: BTreeMap<RawFd, OwnedFd>,
}

impl Applied {
    /// The state before the first step.
    pub(crate) fn new(rtnl: Rtnl, vm: &str, inherited: BTreeMap<RawFd, OwnedFd>) -> Self {
        let (taps, vhosts, ports, services) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (tables, active_policy, mirrors, rates) = (None, None, None, None);
        let (admitted, claims) = (Vec::new(), BTreeMap::new());
        let (vm, fence, fenced) = (vm.to_owned(), None, BTreeSet::new());
        Self {
            rtnl,
            taps,
            vhosts,
            ports,
            services,
            tables,
            vm,
            fence,
            fenced,
            looked: None,
            active_policy,
            mirrors,
            rates,
            admitted,
            claims,
            inherited,
        }
    }

    /// Makes a card's tap a port of a bridge. Also puts it back after another program took it off.
    pub(crate) async fn attach(&self, card: usize, bridge: &IfName, attachment: &Attachment) -> Result<(), Error> {
        let Tap { name, index: Some(index), .. } = self.tap(card)? else { return Err(Error::NoTap { card }) };
        let attach = async {
            let bridge_index = index_of(bridge.as_str())?;
            self.rtnl.attach(*index, bridge_index, attachment).await
        };
        let tap = name.clone();
        attach.await.map_err(|source| Error::AttachTap { tap, bridge: bridge.clone(), source })
    }

    /// The tap of a card, which an earlier step has made.
    pub(crate) fn tap(&self, card: usize) -> Result<&Tap, Error> {
        self.taps.get(&card).ok_or(Error::NoTap { card })
    }

    /// The owner of the VM's tables, opened at the first call.
    pub(crate) fn owner(&mut self) -> Result<&mut Tables, NftError> {
        match &mut self.tables {
            Some(tables) => Ok(tables),
            none => Ok(none.insert(Tables::open()?)),
        }
    }

    /// Removes those of the VM's tables whose names fit.
    pub(crate) fn remove_tables(&mut self, fits: impl Fn(&TableName) -> bool) -> Result<(), NftError> {
        self.tables.as_mut().map_or(Ok(()), |tables| tables.remove(fits))
    }

    /// Removes all of them but the fence.
    pub(crate) fn remove_rules(&mut self) -> Result<(), NftError> {
        self.active_policy = None;
        let fence = fence::table_name(&self.vm);
        self.remove_tables(|name| *name != fence)
    }

    /// Sets the fence to `wanted`: the interfaces that the host must not route between.
    pub(crate) fn fence(&mut self, wanted: Fence) -> Result<(), NftError> {
        let name = fence::table_name(&self.vm);
        let command = match &self.fence {
            None if wanted.is_empty() => return Ok(()),
            None => {
                let table = wanted.table(&self.vm);
                self.owner()?.add(vec![table])?;
                self.fence = Some(wanted);
                return Ok(());
            }
            Some(fence) if *fence == wanted => return Ok(()),
            Some(_) => Command::ReplaceRules(name, fence::CHAIN.to_owned(), wanted.rules()),
        };
        self.owner()?.change(vec![command])?;
        self.fence = Some(wanted);
        Ok(())
    }

    /// Takes back a part of what was changed for a bridge of ours, if no VM is on it any more.
    pub(super) async fn take_back(&mut self, bridge: &IfName, part: Part) -> Result<(), BridgeError> {
        let links = match self.looked.take() {
            Some(links) => links,
            None => survey::links(&self.rtnl).await?,
        };
        if !bridge::take_back(&self.rtnl, bridge, part, &links).await? {
            self.looked = Some(links);
        }
        Ok(())
    }

    /// Forgets the cached links: something changes, or an undo begins.
    pub(crate) fn look_again(&mut self) {
        self.looked = None;
    }

    /// Takes the fence away once nothing of this VM needs it any more.
    pub(super) fn unfence(&mut self, bridge: &IfName, family: Family) -> Result<(), NftError> {
        self.fenced.remove(&(bridge.clone(), family));
        if !self.fenced.is_empty() || self.fence.take().is_none() {
            return Ok(());
        }
        let fence = fence::table_name(&self.vm);
        self.remove_tables(|name| *name == fence)
    }

    /// Switches forwarding on between a network of ours and these interfaces, behind a fence.
    pub(crate) async fn forward(&mut self, bridge: &IfName, uplinks: &[IfName]) -> Result<(), Error> {
        let failed = |source| Error::Forwarding { bridge: bridge.clone(), source };
        self.fenced.insert((bridge.clone(), Family::Ipv4));
        let links = survey::links(&self.rtnl).await.map_err(failed)?;
        self.fence(Fence::of(&links).with(&links, uplinks)).map_err(Error::Nftables)?;
        forwarding::enable(&self.rtnl, &links, bridge, uplinks).await.map_err(failed)
    }

    /// The same for IPv6, on all interfaces.
    pub(crate) async fn forward6(&mut self, bridge: &IfName) -> Result<(), Error> {
        let failed = |source| Error::Forwarding { bridge: bridge.clone(), source };
        if sysctl::forwards6() {
            return Ok(());
        }
        self.fenced.insert((bridge.clone(), Family::Ipv6));
        let links = survey::links(&self.rtnl).await.map_err(failed)?;
        self.fence(Fence::of(&links).with_ipv6(&links)).map_err(Error::Nftables)?;
        forwarding::ipv6::enable(&self.rtnl, &links, bridge).await.map_err(failed)
    }

    /// The tap of a card as a policy can be enforced on it.
    pub(crate) fn enforceable_tap(&self, card: usize) -> Result<(IfName, TapKind), Refusal> {
        let tap = self.taps.get(&card).filter(|tap| tap.index.is_some());
        tap.and_then(|tap| Some((tap.name.parse().ok()?, tap.kind))).ok_or(Refusal::PolicyElsewhere { card })
    }

    /// Drops the frames in a card's tap, which could take some before its policy was enforced. Reads at most as many as
    /// the tap's queue holds.
    pub(super) fn forget_frames(&self, card: usize) {
        // The header of virtio-net has to fit.
        let mut head = [0; 64];
        for fd in self.taps.get(&card).into_iter().flat_map(|tap| &tap.fds) {
            // A short read discards the rest of a frame; an error means that there is none.
            (0..QUEUED_MAX).take_while(|_| nix::unistd::read(fd, &mut head).is_ok()).for_each(drop);
        }
    }

    /// Enforces a policy on more cards of `vm`, which are all of them if it has none yet.
    pub(crate) fn enforce(&mut self, vm: &str, policy: &Policy, cards: Vec<EnforcedCard>) -> Result<(), NftError> {
        let mut active_policy = self.active_policy.take().unwrap_or_else(|| ActivePolicy::new(policy.clone()));
        active_policy.extend(self.owner()?, vm, cards)?;
        self.active_policy = Some(active_policy);
        Ok(())
    }

    /// Removes the policy from a card of `vm`.
    pub(super) fn lift_policy(&mut self, vm: &str, card: usize) -> Result<(), NftError> {
        let (Some(active), Some(owner)) = (&mut self.active_policy, &mut self.tables) else { return Ok(()) };
        let lifted = active.remove(owner, vm, card);
        if active.is_idle() {
            self.active_policy = None;
        }
        lifted
    }

    /// Replaces the active policy.
    pub(crate) fn replace_policy(&mut self, vm: &str, policy: Policy) -> Result<(), NftError> {
        let Some(mut active_policy) = self.active_policy.take() else { return Ok(()) };
        let result = self.owner().and_then(|owner| active_policy.replace(owner, vm, policy));
        self.active_policy = Some(active_policy);
        result
    }

    pub(crate) async fn admit(
        &mut self,
        vm: &str,
        admissions: &[Admission],
        containers: &[IfName],
    ) -> Result<(), Error> {
        let links = survey::links(&self.rtnl).await.map_err(Error::Survey)?;
        self.admitted = docker::admit(vm, admissions, containers, &links).map_err(Error::Docker)?;
        Ok(())
    }

    /// Removes a card's tap. Usually the VMM has closed its descriptors and the tap has gone; a VMM that is being
    /// killed, or that calls stop() too early, still has it open.
    pub(super) async fn remove_tap(&mut self, card: usize) -> Result<(), Error> {
        let Some(Tap { name, index: Some(index), .. }) = self.taps.remove(&card) else { return Ok(()) };
        self.look_again();
        let removed = self.rtnl.remove(index).await.map_err(|source| Error::Remove { link: name, source });
        self.claims.remove(&card);
        removed
    }

    pub(crate) fn mirror(&mut self, vm: &str, mirrors: &[Mirror]) -> Result<(), Error> {
        let table = mirror::table(vm, mirrors, |card| {
            let tap = self.taps.get(&card)?;
            Some((tap.name.parse().ok()?, tap.kind))
        });
        let socket = mirror::open(table).map_err(|error| match error {
            MirrorError::NoHook => Refusal::from(MirrorRefusal::NoEgressHook).into(),
            MirrorError::Nft(source) => Error::Mirror(source),
        })?;
        self.mirrors = Some(socket);
        Ok(())
    }
}
