//! The kernel command line, bounded and checked while it is built.
//!
//! Printable ASCII only, and never longer than the kernels of today take. A kernel that announces a smaller
//! limit of its own is checked in [`crate::load`]. What the words mean is the kernel's business.

use crate::{Error, layout};
use std::fmt;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// The longest command line in bytes, with its terminating zero: `COMMAND_LINE_SIZE` of Linux on x86.
pub const CMDLINE_CAPACITY: usize = 2048;

const _: () = assert!(CMDLINE_CAPACITY as u64 <= layout::CMDLINE.size);

/// A kernel command line under construction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cmdline {
    text: String,
}

impl Cmdline {
    /// An empty command line.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `args`, separated by a space from what is there. Blank text appends nothing.
    ///
    /// # Errors
    /// [`Error::CmdlineTooLong`] past [`CMDLINE_CAPACITY`]; [`Error::CmdlineCharacter`] for anything that is not
    /// printable ASCII. What was there stays.
    pub fn append(&mut self, args: &str) -> Result<(), Error> {
        let args = args.trim();
        if args.is_empty() {
            return Ok(());
        }
        if let Some(character) = args.chars().find(|character| !matches!(character, ' '..='~')) {
            return Err(Error::CmdlineCharacter { character });
        }
        let separator = if self.text.is_empty() { "" } else { " " };
        let len = self.text.len() + separator.len() + args.len();
        if len >= CMDLINE_CAPACITY {
            return Err(Error::CmdlineTooLong { len, limit: CMDLINE_CAPACITY - 1 });
        }
        self.text.push_str(separator);
        self.text.push_str(args);
        Ok(())
    }

    /// The command line as it will be passed on.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Writes the command line with its terminating zero to [`layout::CMDLINE`], for a kernel that takes `limit` bytes
    /// without the zero.
    pub(crate) fn write(&self, ram: &GuestMemoryMmap, limit: usize) -> Result<(), Error> {
        if self.text.len() > limit {
            return Err(Error::CmdlineTooLong { len: self.text.len(), limit });
        }
        let mut bytes = self.text.clone().into_bytes();
        bytes.push(0);
        ram.write_slice(&bytes, GuestAddress(layout::CMDLINE.base))
            .map_err(|source| Error::GuestMemory { what: "the command line", source })
    }
}

impl fmt::Display for Cmdline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_joined_by_one_space() {
        let mut cmdline = Cmdline::new();
        cmdline.append("console=ttyS0").unwrap();
        cmdline.append("  ").unwrap();
        cmdline.append(" panic=-1 ").unwrap();
        assert_eq!(cmdline.as_str(), "console=ttyS0 panic=-1");
    }

    #[test]
    fn the_longest_line_fits_and_one_byte_more_is_refused() {
        let mut cmdline = Cmdline::new();
        cmdline.append(&"a".repeat(CMDLINE_CAPACITY - 3)).unwrap();
        cmdline.append("b").unwrap();
        let longest = cmdline.clone();
        assert!(matches!(cmdline.append("c"), Err(Error::CmdlineTooLong { len: 2049, limit: 2047 })));
        assert_eq!(cmdline, longest);
    }

    #[test]
    fn control_characters_and_other_scripts_are_refused_by_name() {
        let error = Cmdline::new().append("a\nb").unwrap_err();
        assert_eq!(error.to_string(), "The kernel command line has the character '\\n', which is not printable ASCII");
        assert!(matches!(Cmdline::new().append("é"), Err(Error::CmdlineCharacter { character: 'é' })));
    }
}
