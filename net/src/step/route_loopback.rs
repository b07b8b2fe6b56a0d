//! Lets packets of the host's loopback address reach guests of a network of ours, for as long as its bridge lives.

use std::fmt;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::kernel::rtnl::Ipv4Setting;
use crate::spec::{IfName, Switch};

/// Let packets of the host's loopback address reach guests of a network of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteLoopback {
    /// The network's bridge.
    pub bridge: IfName,
}

impl Kind for RouteLoopback {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        let Self { bridge } = self;
        let set = made.rtnl.set_ipv4(bridge.as_str(), Ipv4Setting::RouteLocalnet, Switch::On).await;
        set.map_err(|source| Error::Forwarding { bridge: bridge.clone(), source })
    }

    async fn undo(&self, _made: &mut Applied) -> Result<(), Error> {
        // A setting of the bridge, which CreateBridge or ShareBridge removes.
        Ok(())
    }

    fn undo_text(&self) -> String {
        format!("nothing, it goes with bridge {}", self.bridge)
    }
}

impl fmt::Display for RouteLoopback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "let 127.0.0.0/8 reach the guests of {}", self.bridge)
    }
}
