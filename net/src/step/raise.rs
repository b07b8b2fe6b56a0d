//! Raises an interface that was down.

use std::fmt;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::spec::IfName;

/// Raise an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Raise {
    /// Its name.
    pub link: IfName,
}

impl Kind for Raise {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        let Self { link } = self;
        made.rtnl.raise(link.as_str()).await.map_err(|source| Error::Raise { link: link.clone(), source })
    }

    async fn undo(&self, made: &mut Applied) -> Result<(), Error> {
        let Self { link } = self;
        match made.rtnl.lower(link.as_str()).await {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            result => result.map_err(|source| Error::Lower { link: link.clone(), source }),
        }
    }

    fn undo_text(&self) -> String {
        format!("lower {}", self.link)
    }
}

impl fmt::Display for Raise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "raise {}", self.link)
    }
}
