//! Has a port carry VLANs beside those that it carries. Other VMs may have joined the same ones, so they last until the
//! port leaves the bridge.

use std::fmt;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::kernel::link::index_of;
use crate::kernel::vlan::PortVlans;
use crate::spec::IfName;

/// Have a port of a bridge carry VLANs beside those that it carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JoinVlans {
    /// The port.
    pub link: IfName,
    /// The VLANs.
    pub vlans: PortVlans,
}

impl Kind for JoinVlans {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        let Self { link, vlans } = self;
        let join = async { made.rtnl.join_vlans(index_of(link.as_str())?, vlans).await };
        join.await.map_err(|source| Error::JoinVlans { link: link.clone(), source })
    }

    async fn undo(&self, _made: &mut Applied) -> Result<(), Error> {
        // The kernel forgets them with the port's place in the bridge.
        Ok(())
    }

    fn undo_text(&self) -> String {
        format!("nothing, it ends when {} leaves the bridge", self.link)
    }
}

impl fmt::Display for JoinVlans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "have {} be {} as well", self.link, self.vlans)
    }
}
