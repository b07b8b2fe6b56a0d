//! Makes a tap and has Open vSwitch take it as a port. A socket claims its name for as long as keeper or VMM live.

use std::fmt;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::facts::claim;
use crate::host::ovs::{self, OvsPort};
use crate::host::tap;

/// Make a tap and have Open vSwitch take it as a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CreateOvsPort {
    /// The card that it is for.
    pub card: usize,
    /// The port to make.
    #[serde(flatten)]
    pub port: OvsPort,
}

impl Kind for CreateOvsPort {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        let Self { card, port } = self;
        let OvsPort { tap, bridge, mac, mtu, queues, alias, .. } = port;
        let claim = claim::take(tap).map_err(Error::CreateTap)?;
        let (new, index) = tap::create(tap.as_str(), *queues)?;
        made.taps.insert(*card, new);
        made.claims.insert(*card, claim);
        if let Err(error) = made.rtnl.bypass_queueing(index).await {
            log::debug!("Cannot replace the queueing discipline of the tap of card {card}: {error}");
        }
        let raised = made.rtnl.raise_tap(index, mac.host_side(), *mtu, alias).await;
        raised.map_err(|source| Error::Raise { link: tap.clone(), source })?;
        ovs::add(port).map_err(|source| Error::AddOvsPort { bridge: bridge.clone(), source })
    }

    async fn undo(&self, made: &mut Applied) -> Result<(), Error> {
        let gone = ovs::remove(&self.port.tap);
        made.remove_tap(self.card).await?;
        gone.map_err(|source| Error::RemoveOvsPort { port: self.port.tap.clone(), source })
    }

    fn undo_text(&self) -> String {
        "remove the port and the tap".to_owned()
    }
}

impl fmt::Display for CreateOvsPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for card {}", self.port, self.card)
    }
}
