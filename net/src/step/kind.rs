//! The trait of every kind of step. A kind is one file in this folder, and one line in the list of `step.rs`.

use std::fmt;

use super::Applied;
use crate::error::Error;

/// A kind of step: a change of the host, and its undo. Its `Display` describes the change in words.
///
/// The keeper calls these in its only thread: `apply` of each step in the order of the plan, and `undo` from the last
/// one that was applied to the first, also after `apply` has failed half-way.
pub(crate) trait Kind: fmt::Display {
    /// Changes the host.
    async fn apply(&self, made: &mut Applied) -> Result<(), Error>;

    /// Undoes `apply`. It may run after `apply` failed half-way, twice, and after another program has removed the
    /// object: it then finds nothing to do and succeeds.
    async fn undo(&self, made: &mut Applied) -> Result<(), Error>;

    /// Describes the undo in words.
    fn undo_text(&self) -> String;
}
