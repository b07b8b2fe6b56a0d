//! Has Docker's rules let the cards behind NAT through, in the chain that Docker leaves to others.

use std::fmt;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::facts::docker::CHAIN;
use crate::host::docker::{self, Admission};
use crate::spec::IfName;

/// Have Docker's rules let the cards behind NAT through, in the chain that Docker leaves to others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AdmitInDocker {
    /// The VM.
    pub vm: String,
    /// Its cards.
    pub admissions: Vec<Admission>,
    /// Bridges of containers, to which they do not lead.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<IfName>,
}

impl Kind for AdmitInDocker {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        made.admit(&self.vm, &self.admissions, &self.containers).await
    }

    async fn undo(&self, made: &mut Applied) -> Result<(), Error> {
        docker::withdraw(&std::mem::take(&mut made.admitted)).map_err(Error::Docker)
    }

    fn undo_text(&self) -> String {
        "remove the rules".to_owned()
    }
}

impl fmt::Display for AdmitInDocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let guests = self.admissions.iter().map(|guest| format!("{} on {}", guest.address, guest.bridge));
        write!(f, "let {} through in chain {CHAIN} of Docker", guests.collect::<Vec<_>>().join(" and "))
    }
}
