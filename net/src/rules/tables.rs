//! The nftables of a VM, and the socket that owns them.
//!
//! The kernel removes the tables when the last descriptor of the socket that made them is closed. The VMM gets one of
//! them: if the keeper is killed, the rules stay as long as there is a guest to guard. The VMM can do nothing else with
//! it: to send on such a socket takes CAP_NET_ADMIN, which the VMM has given up by then.

use std::io;
use std::os::fd::OwnedFd;

use crate::kernel::nft::{Batch, Command, NftError, NftSocket, Table, TableName};

/// The tables, which live at least as long as this.
#[derive(Debug)]
pub(crate) struct Tables {
    socket: NftSocket,
    names: Vec<TableName>,
}

impl Tables {
    /// Opens the socket, without tables yet.
    pub(crate) fn open() -> Result<Self, NftError> {
        Ok(Self { socket: NftSocket::open()?, names: Vec::new() })
    }

    /// Adds tables, all or none.
    pub(crate) fn add(&mut self, tables: Vec<Table>) -> Result<(), NftError> {
        let names: Vec<TableName> = tables.iter().map(|table| table.name.clone()).collect();
        self.change(tables.into_iter().map(Command::AddTable).collect())?;
        self.names.extend(names);
        Ok(())
    }

    /// Applies commands to them, all or none.
    pub(crate) fn change(&mut self, commands: Vec<Command>) -> Result<(), NftError> {
        self.socket.apply(&Batch { commands })
    }

    /// A descriptor that keeps them as well.
    pub(crate) fn share(&self) -> io::Result<OwnedFd> {
        self.socket.share()
    }

    /// Removes tables whose names fit, even if another process has a descriptor: a VMM that is being killed may have
    /// one for a moment.
    pub(crate) fn remove(&mut self, fits: impl Fn(&TableName) -> bool) -> Result<(), NftError> {
        let (gone, kept): (Vec<TableName>, Vec<TableName>) =
            std::mem::take(&mut self.names).into_iter().partition(fits);
        self.names = kept;
        if gone.is_empty() {
            return Ok(());
        }
        self.change(gone.into_iter().map(Command::DeleteTable).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn tables_on_a_kernel_before_5_12_are_refused_with_what_they_take() {
        let source = io::Error::from_raw_os_error(libc::EINVAL);
        let report =
            Error::Nftables(NftError::Refused { object: "table inet minivmm-web".to_owned(), source }).report();
        assert!(report.hint.is_some_and(|hint| hint.starts_with("it takes Linux 5.12")), "{}", report.message);
    }
}
