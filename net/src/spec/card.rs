//! The keys that every mode of `--net` takes: those of the card itself.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::capture::CaptureSpec;
use super::fields::{IfName, Mtu, Queues, RingSize, Switch};
use super::impair::ImpairSpec;
use super::offload::OffloadList;
use crate::identity::mac::MacAddr;

/// A card as the user wants it. Its fields are the keys that come after the mode's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardSpec {
    /// The guest's MAC address; derived from the VM's name if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// The MTU the guest is told, in bytes; that of the bridge or tap if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Mtu>,
    /// Queue pairs; [`Queues::for_vcpus`], limited by the tap, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<Queues>,
    /// Descriptors of every receive and transmit queue.
    #[serde(default)]
    pub ring: RingSize,
    /// Work on frames that the guest leaves to the tap.
    #[serde(default)]
    pub offload: OffloadList,
    /// On if the kernel's vhost-net moves the frames instead of threads of the VMM.
    #[serde(default)]
    pub vhost: Switch,
    /// Rate limits and impairments of its frames.
    #[serde(flatten)]
    pub impair: ImpairSpec,
    /// The capture of its frames in a file.
    #[serde(flatten)]
    pub capture: CaptureSpec,
    /// The interface that its frames are mirrored to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<IfName>,
}

impl fmt::Display for CardSpec {
    /// The end of a flag that gives this spec, with a comma before each key, without keys at their defaults.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(mac) = self.mac {
            write!(f, ",mac={mac}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, ",mtu={}", mtu.get())?;
        }
        if let Some(queues) = self.queues {
            write!(f, ",queues={}", queues.get())?;
        }
        if self.ring != RingSize::default() {
            write!(f, ",ring={}", self.ring.get())?;
        }
        if self.offload != OffloadList::default() {
            write!(f, ",offload={}", self.offload)?;
        }
        if self.vhost == Switch::On {
            f.write_str(",vhost=on")?;
        }
        write!(f, "{}{}", self.impair, self.capture)?;
        match &self.mirror {
            Some(to) => write!(f, ",mirror={to}"),
            None => Ok(()),
        }
    }
}
