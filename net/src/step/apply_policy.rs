//! Enforces a policy on a card, in a table of its own on the card's tap. It goes with keeper and VMM, if not before.

use std::fmt;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::kernel::tun::TapKind;
use crate::policy::Policy;
use crate::policy::rules::EnforcedCard;
use crate::spec::{IfName, Switch};

/// Enforce a policy on a card until keeper and VMM have gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ApplyPolicy {
    /// The VM.
    pub vm: String,
    /// The card.
    pub card: usize,
    /// Its tap, if it was there before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tap: Option<IfName>,
    /// On if minivmm's services assign the guest's address.
    pub served: Switch,
    /// The policy.
    pub policy: Policy,
}

impl Kind for ApplyPolicy {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        let (tap, kind) = match &self.tap {
            Some(tap) => (tap.clone(), TapKind::Tap),
            None => made.enforceable_tap(self.card)?,
        };
        let card = EnforcedCard { card: self.card, tap, kind, served: self.served == Switch::On };
        made.enforce(&self.vm, &self.policy, vec![card]).map_err(Error::Policy)?;
        made.forget_frames(self.card);
        Ok(())
    }

    async fn undo(&self, made: &mut Applied) -> Result<(), Error> {
        made.lift_policy(&self.vm, self.card).map_err(Error::Policy)
    }

    fn undo_text(&self) -> String {
        "remove the rules".to_owned()
    }
}

impl fmt::Display for ApplyPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vm, card, policy, .. } = self;
        let rules = policy.ingress.len() + policy.egress.len();
        write!(f, "create the nftables netdev minivmm-{vm}/policy{card}: {rules} rules of the policy for card {card}")
    }
}
