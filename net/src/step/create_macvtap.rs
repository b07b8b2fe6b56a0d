//! Makes a macvtap, opens its queues and raises it. A socket claims its name for as long as keeper or VMM live.

use std::fmt;
use std::os::fd::OwnedFd;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::facts::claim;
use crate::host::macvtap::{self, Macvtap};
use crate::host::tap::Tap;
use crate::kernel::sysctl::{self, Conf};
use crate::kernel::tun::TapKind;
use crate::spec::MacvtapMode;

/// Make a macvtap, open its queues and raise it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CreateMacvtap {
    /// The card that it is for.
    pub card: usize,
    /// The macvtap to make.
    #[serde(flatten)]
    pub macvtap: Macvtap,
}

impl Kind for CreateMacvtap {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        let Self { card, macvtap: wanted } = self;
        let Macvtap { tap, lower, .. } = wanted;
        let failed = |source| Error::CreateMacvtap { lower: lower.clone(), source };
        let claim = claim::take(tap).map_err(failed)?;
        // From here on a link of that name is this card's.
        made.claims.insert(*card, claim);
        let index = macvtap::create(&made.rtnl, wanted).await.map_err(failed)?;
        let name = tap.to_string();
        made.taps
            .insert(*card, Tap { name: name.clone(), index: Some(index), kind: TapKind::Macvtap, fds: Vec::new() });
        // Frames that no queue takes go to the host's own stack. There the link has no address, and must not generate
        // one from the guest's.
        if let Err(error) = sysctl::set_if_there(Conf::Ipv6, tap.as_str(), "disable_ipv6", "1") {
            log::warn!("Cannot disable the host's IPv6 on {tap}, which has the guest's MAC: {error}");
        }
        let queues = macvtap::open_queues(tap, index, wanted.queues);
        let queues = queues.map_err(|source| Error::OpenMacvtap { tap: name, source })?;
        made.rtnl.raise_macvtap(index, wanted.mode, wanted.mac, &wanted.alias).await.map_err(failed)?;
        if let Some(tap) = made.taps.get_mut(card) {
            tap.fds = queues.into_iter().map(OwnedFd::from).collect();
        }
        Ok(())
    }

    async fn undo(&self, made: &mut Applied) -> Result<(), Error> {
        if made.taps.contains_key(&self.card) || !made.claims.contains_key(&self.card) {
            return made.remove_tap(self.card).await;
        }
        // It may exist even if `apply` recorded nothing of it.
        let Self { card, macvtap: Macvtap { tap, .. } } = self;
        let removed = macvtap::remove(&made.rtnl, tap).await;
        made.claims.remove(card);
        removed.map_err(|source| Error::Remove { link: tap.to_string(), source })
    }

    fn undo_text(&self) -> String {
        let Macvtap { lower, mode, .. } = &self.macvtap;
        if *mode == MacvtapMode::Passthru {
            return format!("remove the macvtap, which gives {lower} its own address back");
        }
        "remove the macvtap".to_owned()
    }
}

impl fmt::Display for CreateMacvtap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { card, macvtap: Macvtap { tap, lower, mode, mac, queues, .. } } = self;
        write!(f, "create macvtap {tap} on {lower} in mode {mode} with address {mac} and {queues} queue pairs ")?;
        write!(f, "for card {card}, and raise it")
    }
}
