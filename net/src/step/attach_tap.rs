//! Makes a card's tap a port of a bridge and raises it. It leaves the bridge with the tap, which CreateTap removes.

use std::fmt;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::identity::alias::TapAlias;
use crate::identity::mac::MacAddr;
use crate::kernel::rtnl::Attachment;
use crate::kernel::vlan::PortVlans;
use crate::spec::{IfName, Switch};

/// Make the card's new tap a port of a bridge and raise it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AttachTap {
    /// The card.
    pub card: usize,
    /// The bridge.
    pub bridge: IfName,
    /// The tap's own address.
    pub mac: MacAddr,
    /// The tap's MTU in bytes.
    pub mtu: u16,
    /// The tap's alias.
    pub alias: TapAlias,
    /// The only MAC address allowed behind it, if it is pinned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pinned: Option<MacAddr>,
    /// On if no frame passes between it and other isolated ports.
    pub isolated: Switch,
    /// On if frames may go back out of the port that they came in by.
    pub hairpin: Switch,
    /// The port's VLANs, if they differ from those that the bridge gives every port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlans: Option<PortVlans>,
}

impl Kind for AttachTap {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        made.attach(self.card, &self.bridge, &self.attachment()).await
    }

    async fn undo(&self, _made: &mut Applied) -> Result<(), Error> {
        // A port goes with its interface.
        Ok(())
    }

    fn undo_text(&self) -> String {
        "nothing, it goes with the tap".to_owned()
    }
}

impl fmt::Display for AttachTap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { card, bridge, mac, mtu, vlans, .. } = self;
        write!(f, "attach the tap of card {card} to bridge {bridge} with address {mac} and mtu {mtu}, ")?;
        if let Some(vlans) = vlans {
            write!(f, "{vlans}, ")?;
        }
        f.write_str("and raise it")
    }
}

impl AttachTap {
    /// The attachment of the tap to its bridge.
    pub(crate) fn attachment(&self) -> Attachment {
        let Self { mac, mtu, alias, pinned, isolated, hairpin, vlans, .. } = self;
        let (alias, vlans) = (alias.clone(), vlans.clone());
        let (pinned, isolated, hairpin) = (*pinned, *isolated, *hairpin);
        Attachment { mac: *mac, mtu: *mtu, alias, pinned, isolated, hairpin, vlans }
    }
}
