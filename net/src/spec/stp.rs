//! `stp=` and `forward-delay=`: the spanning tree of a bridge that minivmm makes (IEEE 802.1D).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::fields::{FieldError, Switch, deserialize_as_flag_text, whole_number};

/// The kernel's limits while the protocol runs, in seconds (`BR_MIN_FORWARD_DELAY` and `BR_MAX_FORWARD_DELAY`,
/// net/bridge/br_private.h).
const DELAY_MIN_S: u8 = 2;
const DELAY_MAX_S: u8 = 30;

/// The time for which a port listens, and then learns, before it forwards, in seconds: 2 to 30.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ForwardDelay(u8);

impl ForwardDelay {
    /// The delay in seconds.
    pub fn seconds(self) -> u8 {
        self.0
    }
}

impl Default for ForwardDelay {
    /// The delay of a new Linux bridge.
    fn default() -> Self {
        Self(15)
    }
}

impl FromStr for ForwardDelay {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        match whole_number(text).and_then(|value| u8::try_from(value).ok()) {
            Some(seconds @ DELAY_MIN_S..=DELAY_MAX_S) => Ok(Self(seconds)),
            _ => Err(FieldError::ForwardDelay(text.to_owned())),
        }
    }
}

/// The spanning tree settings of a new bridge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StpSpec {
    /// On if the bridge takes part in a spanning tree.
    #[serde(default)]
    pub stp: Switch,
    /// The time that a new port listens, and then learns; [`ForwardDelay::default`] if absent.
    #[serde(default, rename = "forward-delay", skip_serializing_if = "Option::is_none")]
    pub forward_delay: Option<ForwardDelay>,
}

impl StpSpec {
    /// The delay of a bridge in a spanning tree; `None` without one.
    pub fn delay(self) -> Option<ForwardDelay> {
        (self.stp == Switch::On).then(|| self.forward_delay.unwrap_or_default())
    }
}

impl fmt::Display for StpSpec {
    /// The part of a flag that gives this spec, with a comma before each key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.stp == Switch::On {
            f.write_str(",stp=on")?;
        }
        if let Some(delay) = self.forward_delay {
            write!(f, ",forward-delay={}", delay.seconds())?;
        }
        Ok(())
    }
}

deserialize_as_flag_text!(ForwardDelay);
