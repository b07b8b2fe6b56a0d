//! Removes a port of ours in Open vSwitch whose VM was killed with its keeper.

use std::fmt;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::host::ovs;
use crate::spec::IfName;

/// Remove a port of ours in Open vSwitch that is out of use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RemoveOvsPort {
    /// Its name.
    pub port: IfName,
}

impl Kind for RemoveOvsPort {
    async fn apply(&self, _made: &mut Applied) -> Result<(), Error> {
        ovs::remove(&self.port).map_err(|source| Error::RemoveOvsPort { port: self.port.clone(), source })
    }

    async fn undo(&self, _made: &mut Applied) -> Result<(), Error> {
        // No VM has it.
        Ok(())
    }

    fn undo_text(&self) -> String {
        "nothing, no VM has it".to_owned()
    }
}

impl fmt::Display for RemoveOvsPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "remove Open vSwitch port {}, which a VM that was killed with its keeper left behind", self.port)
    }
}
