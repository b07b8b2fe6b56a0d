//! The keeper's record of a VM's policy and the cards that it is in force on.

use super::Policy;
use super::rules::{self, EnforcedCard, Generation};
use crate::kernel::nft::NftError;
use crate::rules::tables::Tables;

/// A policy in force.
#[derive(Debug)]
pub(crate) struct ActivePolicy {
    policy: Policy,
    number: u32,
    cards: Vec<EnforcedCard>,
}

impl ActivePolicy {
    /// The first policy of a VM, on no card yet.
    pub(crate) fn new(policy: Policy) -> Self {
        Self { policy, number: 0, cards: Vec::new() }
    }

    /// The policy in force.
    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Enforces the policy on more cards of `vm`, on all of them or on none.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub(crate) fn extend(&mut self, owner: &mut Tables, vm: &str, cards: Vec<EnforcedCard>) -> Result<(), NftError> {
        let generation = Generation { vm, number: self.number };
        owner.add(cards.iter().map(|enforced| rules::table(generation, enforced, &self.policy)).collect())?;
        self.cards.extend(cards);
        Ok(())
    }

    /// Stops enforcing the policy on a card.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub(crate) fn remove(&mut self, owner: &mut Tables, vm: &str, card: usize) -> Result<(), NftError> {
        self.cards.retain(|enforced| enforced.card != card);
        owner.remove(|name| *name == rules::name(vm, card))
    }

    /// Returns true if the policy is enforced on no card.
    pub(crate) fn is_idle(&self) -> bool {
        self.cards.is_empty()
    }

    /// Replaces the policy on all cards at once. After an error the old one stays in force.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub(crate) fn replace(&mut self, owner: &mut Tables, vm: &str, policy: Policy) -> Result<(), NftError> {
        let number = self.number.wrapping_add(1);
        let commands = |enforced: &EnforcedCard| rules::replacement(Generation { vm, number }, enforced, &policy);
        owner.change(self.cards.iter().flat_map(commands).collect())?;
        (self.policy, self.number) = (policy, number);
        Ok(())
    }
}
