//! Has a bridge of ours keep VLANs apart, for as long as it lives.

use std::fmt;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::kernel::link::index_of;
use crate::refusal::Refusal;
use crate::spec::IfName;

/// Have a bridge of ours keep VLANs apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FilterVlans {
    /// The bridge.
    pub bridge: IfName,
}

impl Kind for FilterVlans {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        let Self { bridge } = self;
        let filter = async { made.rtnl.filter_vlans(index_of(bridge.as_str())?).await };
        filter.await.map_err(|source| match source.raw_os_error() {
            Some(libc::EOPNOTSUPP) => Refusal::NoVlans.into(),
            _ => Error::FilterVlans { bridge: bridge.clone(), source },
        })
    }

    async fn undo(&self, _made: &mut Applied) -> Result<(), Error> {
        // A setting of the bridge, which CreateBridge or ShareBridge removes.
        Ok(())
    }

    fn undo_text(&self) -> String {
        format!("nothing, it goes with bridge {}", self.bridge)
    }
}

impl fmt::Display for FilterVlans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "have bridge {} filter VLANs", self.bridge)
    }
}
