//! What the steps of a plan have made so far.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};

use crate::error::Error;
use crate::facts::Link;
use crate::gc::remove_vacated;
use crate::host::docker::{self, Admission, Placed};
use crate::host::forwarding;
use crate::host::forwarding::fence::{self, Fence};
use crate::host::mirror::{self, Mirror, MirrorError};
use crate::host::rates::{self, Shape, ShapeError};
use crate::kernel::nft::{Command, NftError, NftSocket};
use crate::kernel::rtnl::{Attachment, Rtnl};
use crate::kernel::tun::{self, QueueMode, TapKind};
use crate::policy::rules::Judged;
use crate::policy::{InForce, Policy};
use crate::refusal::Refusal;
use crate::rules::guard::Guard;
use crate::rules::tables::Tables;
use crate::rules::{self, Member};
use crate::services::{self, ServiceSpec};
use crate::spec::IfName;
use crate::survey;

/// Frames that wait in a queue of a tap at most: its length by default is half of that.
const QUEUED_MAX: usize = 1000;

/// What steps work on, and what they leave for each other.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) rtnl: Rtnl,
    /// Taps by card.
    pub(crate) taps: BTreeMap<usize, Tap>,
    /// Descriptors of vhost-net by card, until they are handed over.
    pub(crate) vhosts: BTreeMap<usize, Vec<OwnedFd>>,
    /// Sockets that hold ports, by card.
    pub(crate) ports: BTreeMap<usize, Vec<OwnedFd>>,
    /// The sockets of services with what they say, by card, until they are handed over.
    pub(crate) services: BTreeMap<usize, (ServiceSpec, OwnedFd)>,
    /// The owner of the VM's tables, if it has some.
    pub(crate) tables: Option<Tables>,
    /// Whose network it is.
    vm: String,
    /// The interfaces that the VM's fence keeps apart, so that the host is no router.
    fence: Option<Fence>,
    /// Bridges for which all has been put back, and that are to be removed at the end.
    pub(super) vacated: Vec<Link>,
    /// The policy that holds for its cards, if there is one.
    pub(crate) in_force: Option<InForce>,
    /// Rules of the VM in tables of Docker's.
    pub(crate) admitted: Vec<Placed>,
    /// The owner of the table that has frames copied, if there is one.
    pub(crate) mirrors: Option<NftSocket>,
    /// What says that a card's macvtap or port is in use, by card.
    pub(crate) claims: BTreeMap<usize, OwnedFd>,
    /// The owner of the table that has frames wait, if there is one.
    pub(crate) rates: Option<NftSocket>,
    /// Descriptors that the VMM inherited for `fd=`, by number.
    pub(crate) inherited: BTreeMap<RawFd, OwnedFd>,
}

/// A tap of a card.
#[derive(Debug)]
pub(crate) struct Tap {
    pub(crate) name: String,
    /// Its interface number, none if it may be in another namespace.
    pub(crate) index: Option<u32>,
    /// The driver that it is of.
    pub(crate) kind: TapKind,
    /// Its queues, until they are handed over.
    pub(crate) fds: Vec<OwnedFd>,
}

impl Host {
    /// A host that nothing has been done to.
    pub(crate) fn new(rtnl: Rtnl, vm: &str, inherited: BTreeMap<RawFd, OwnedFd>) -> Self {
        let (taps, vhosts, ports, services) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (tables, in_force, mirrors, rates) = (None, None, None, None);
        let (admitted, claims) = (Vec::new(), BTreeMap::new());
        let (vm, fence) = (vm.to_owned(), None);
        Self {
            rtnl,
            taps,
            vhosts,
            ports,
            services,
            tables,
            vm,
            fence,
            vacated: Vec::new(),
            in_force,
            mirrors,
            rates,
            admitted,
            claims,
            inherited,
        }
    }

    /// Ends an undoing: takes the fence away with all tables, as forwarding has been put back, and removes the bridges.
    /// The kernel takes some 10 ms to forget tables, in which it works on the bridges, and whoever closes the last
    /// descriptor of the owner waits for the rest.
    pub(crate) async fn finish_undo(&mut self) -> Vec<Error> {
        let mut errors: Vec<Error> = self.unfence().err().map(Error::Nftables).into_iter().collect();
        for bridge in std::mem::take(&mut self.vacated) {
            errors.extend(remove_vacated(&self.rtnl, &bridge).await.err());
        }
        errors
    }

    /// Makes a card's tap a port of a bridge; also what puts it back when somebody took it away.
    pub(crate) async fn attach(&self, card: usize, bridge: &IfName, attachment: &Attachment) -> Result<(), Error> {
        let Some(Tap { name, index: Some(index), .. }) = self.taps.get(&card) else { return Ok(()) };
        let attach = async {
            let bridge_index = index_of(bridge.as_str())?;
            self.rtnl.attach(*index, bridge_index, attachment).await
        };
        let tap = name.clone();
        attach.await.map_err(|source| Error::AttachTap { tap, bridge: bridge.clone(), source })
    }

    pub(super) fn create_tables(&mut self, vm: &str, members: &[Member], guards: &[Guard]) -> Result<(), Error> {
        let taps = &self.taps;
        let tables = rules::tables(vm, members, guards, |card| taps.get(&card)?.name.parse().ok());
        match self.owner().and_then(|owner| owner.add(tables)) {
            // These cards have done without before nftables had owners, and where there are none.
            Err(error) if members.is_empty() && guards.iter().all(Guard::is_open) => {
                let error = Error::Nftables(error).report().message;
                log::warn!("BPDUs of the guests on bridges are not dropped: {error}");
                Ok(())
            }
            result => result.map_err(Error::Nftables),
        }
    }

    /// What owns the VM's tables.
    pub(crate) fn owner(&mut self) -> Result<&mut Tables, NftError> {
        match &mut self.tables {
            Some(tables) => Ok(tables),
            none => Ok(none.insert(Tables::open()?)),
        }
    }

    /// Removes them; where there is a fence, later and together with it: what it keeps apart is put back first, and the
    /// kernel takes longer for two removals than for one.
    pub(crate) fn remove_tables(&mut self) -> Result<(), NftError> {
        self.in_force = None;
        if self.fence.is_some() {
            return Ok(());
        }
        self.tables.take().map_or(Ok(()), Tables::remove)
    }

    /// Keeps apart what the host is not to be a router between, and no more than that.
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

    /// Takes the fence away with all tables, when all else has been undone.
    fn unfence(&mut self) -> Result<(), NftError> {
        if self.fence.take().is_none() {
            return Ok(());
        }
        self.tables.take().map_or(Ok(()), Tables::remove)
    }

    /// Switches forwarding on between a network of ours and these interfaces, behind a fence.
    pub(crate) async fn forward(&mut self, bridge: &IfName, uplinks: &[IfName]) -> Result<(), Error> {
        let failed = |source| Error::Forwarding { bridge: bridge.clone(), source };
        let links = forwarding::links(&self.rtnl).await.map_err(failed)?;
        self.fence(Fence::of(&links).with(&links, uplinks)).map_err(Error::Nftables)?;
        forwarding::enable(&self.rtnl, &links, bridge, uplinks).await.map_err(failed)
    }

    /// The same for IPv6, and all interfaces.
    pub(crate) async fn forward6(&mut self, bridge: &IfName) -> Result<(), Error> {
        let failed = |source| Error::Forwarding { bridge: bridge.clone(), source };
        if forwarding::ipv6::forwards() {
            return Ok(());
        }
        let links = forwarding::links(&self.rtnl).await.map_err(failed)?;
        self.fence(Fence::of(&links).with_ipv6(&links)).map_err(Error::Nftables)?;
        forwarding::ipv6::enable(&self.rtnl, &links, bridge).await.map_err(failed)
    }

    /// The tap of a card as a policy can be enforced on it.
    pub(crate) fn judged_tap(&self, card: usize) -> Result<(IfName, TapKind), Refusal> {
        let tap = self.taps.get(&card).filter(|tap| tap.index.is_some());
        tap.and_then(|tap| Some((tap.name.parse().ok()?, tap.kind))).ok_or(Refusal::PolicyElsewhere { card })
    }

    /// Drops what has come for a card whose tap could take frames before anybody judged them. More of them than a tap holds are not there.
    pub(super) fn forget_frames(&self, card: usize) {
        // The header of virtio-net has to fit.
        let mut head = [0; 64];
        for fd in self.taps.get(&card).into_iter().flat_map(|tap| &tap.fds) {
            // The rest of a frame is gone with its head; an error is that there is none.
            (0..QUEUED_MAX).take_while(|_| nix::unistd::read(fd, &mut head).is_ok()).for_each(drop);
        }
    }

    /// Has a policy hold for more cards of `vm`, which are all of them if it has none yet.
    pub(crate) fn judge(&mut self, vm: &str, policy: &Policy, cards: Vec<Judged>) -> Result<(), NftError> {
        let mut in_force = self.in_force.take().unwrap_or_else(|| InForce::new(policy.clone()));
        in_force.extend(self.owner()?, vm, cards)?;
        self.in_force = Some(in_force);
        Ok(())
    }

    /// Puts a policy in the place of the one before.
    pub(crate) fn replace_policy(&mut self, vm: &str, policy: Policy) -> Result<(), NftError> {
        let Some(mut in_force) = self.in_force.take() else { return Ok(()) };
        let result = self.owner().and_then(|owner| in_force.replace(owner, vm, policy));
        self.in_force = Some(in_force);
        result
    }

    pub(crate) async fn admit(
        &mut self,
        vm: &str,
        admissions: &[Admission],
        containers: &[IfName],
    ) -> Result<(), Error> {
        let links = self.rtnl.links().await.map_err(Error::Survey)?;
        let links: Vec<_> = links.iter().filter_map(survey::link).collect();
        self.admitted = docker::admit(vm, admissions, containers, &links).map_err(Error::Docker)?;
        Ok(())
    }

    /// Most often the VMM's descriptors are closed and a tap has gone. A VMM that is being killed, or that calls stop() too early,
    /// still has it.
    pub(super) async fn remove_tap(&mut self, card: usize) -> Result<(), Error> {
        let Some(Tap { name, index: Some(index), .. }) = self.taps.remove(&card) else { return Ok(()) };
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
            MirrorError::NoHook => Refusal::NoMirrors.into(),
            MirrorError::Nft(source) => Error::Mirror(source),
        })?;
        self.mirrors = Some(socket);
        Ok(())
    }

    pub(super) async fn hold_rates(&mut self, vm: &str, shapes: &[Shape]) -> Result<(), Error> {
        self.rates = Some(rates::hold(&self.rtnl, vm, shapes, &self.taps).await.map_err(|error| match error {
            ShapeError::Missing => Refusal::NoRates.into(),
            error => Error::HoldRates(error),
        })?);
        Ok(())
    }

    /// The taps are removed by an earlier step, and so undone later than this.
    pub(super) async fn release_rates(&mut self, shapes: &[Shape]) -> Result<(), Error> {
        self.rates = None;
        let taps = shapes.iter().filter_map(|shape| self.taps.get(&shape.card)?.index);
        rates::release(&self.rtnl, taps).await.map_err(|source| Error::HoldRates(source.into()))
    }

    pub(super) fn open_services(&mut self, card: usize, spec: &ServiceSpec) -> Result<(), Error> {
        let Some(Tap { name, index: Some(index), .. }) = self.taps.get(&card) else { return Ok(()) };
        let socket = services::open_socket(*index, spec);
        let socket = socket.map_err(|source| Error::OpenServices { tap: name.clone(), source })?;
        self.services.insert(card, (spec.clone(), socket));
        Ok(())
    }

    pub(super) fn adopt(&mut self, tap: &str, fds: &[RawFd]) -> Result<Tap, Error> {
        let mut queues = Vec::new();
        for fd in fds {
            let queue = self.inherited.get(fd).map_or_else(
                || Err(io::Error::from_raw_os_error(libc::EBADF)),
                |queue| tun::adopt(queue).and_then(|()| queue.try_clone()),
            );
            queues.push(queue.map_err(|source| Error::AdoptTap { tap: tap.to_owned(), source })?);
        }
        let here = queues.first().is_some_and(tun::is_in_our_namespace);
        let index = if here { index_of(tap).ok() } else { None };
        Ok(Tap { name: tap.to_owned(), index, kind: TapKind::Tap, fds: queues })
    }
}

/// Makes a tap and returns it with its interface number.
pub(crate) fn create_tap(name: &str, queues: u16) -> Result<(Tap, u32), Error> {
    let files = open_queues(queues)?;
    let name = tun::create(&files, name, QueueMode::for_queues(queues)).map_err(Error::CreateTap)?;
    let index = index_of(&name).map_err(Error::CreateTap)?;
    let fds = files.into_iter().map(OwnedFd::from).collect();
    Ok((Tap { name, index: Some(index), kind: TapKind::Tap, fds }, index))
}

pub(super) fn open_tap(tap: &IfName, queues: u16, mode: QueueMode) -> Result<Tap, Error> {
    let files = open_queues(queues)?;
    for file in &files {
        tun::attach(file, tap.as_str(), mode).map_err(|source| match source.raw_os_error() {
            // The survey sees the users of a multi-queue tap only.
            Some(libc::EBUSY) => Refusal::TapBusy { name: tap.clone() }.into(),
            _ => Error::OpenTap { tap: tap.to_string(), source },
        })?;
    }
    let fds = files.into_iter().map(OwnedFd::from).collect();
    Ok(Tap { name: tap.to_string(), index: index_of(tap.as_str()).ok(), kind: TapKind::Tap, fds })
}

pub(super) fn open_queues(queues: u16) -> Result<Vec<File>, Error> {
    (0..queues).map(|_| tun::open_device()).collect::<io::Result<_>>().map_err(Error::OpenTun)
}

pub(crate) fn index_of(name: &str) -> io::Result<u32> {
    nix::net::if_::if_nametoindex(name).map_err(io::Error::from)
}
