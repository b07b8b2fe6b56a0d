//! The kernel command line, bounded and checked while it is built.
//!
//! A thin face over [`linux_loader::cmdline::Cmdline`]: printable ASCII only, and never longer than the
//! kernels of today take. A kernel that announces a smaller limit of its own is checked in [`crate::load`].

use linux_loader::cmdline;

use crate::{Error, layout};

/// The longest command line in bytes, with its terminating zero: `COMMAND_LINE_SIZE` of Linux on x86.
pub const CMDLINE_CAPACITY: usize = 2048;

const _: () = assert!(CMDLINE_CAPACITY as u64 <= layout::CMDLINE.size);

/// A kernel command line under construction.
#[derive(Clone, Debug)]
pub struct Cmdline {
    inner: cmdline::Cmdline,
    len: usize,
}

impl Cmdline {
    /// An empty command line.
    ///
    /// # Errors
    /// None in practice; the builder below refuses only a capacity of zero.
    pub fn new() -> Result<Self, Error> {
        let inner = cmdline::Cmdline::new(CMDLINE_CAPACITY).map_err(Error::Cmdline)?;
        Ok(Self { inner, len: 0 })
    }

    /// Appends `args`, separated by a space from what is there. Blank text appends nothing.
    ///
    /// # Errors
    /// [`Error::CmdlineTooLong`] past [`CMDLINE_CAPACITY`]; [`Error::Cmdline`] for text that is not printable ASCII.
    pub fn append(&mut self, args: &str) -> Result<(), Error> {
        let args = args.trim();
        if args.is_empty() {
            return Ok(());
        }
        let len = self.len + usize::from(self.len > 0) + args.len();
        if len >= CMDLINE_CAPACITY {
            return Err(Error::CmdlineTooLong { len, limit: CMDLINE_CAPACITY - 1 });
        }
        self.inner.insert_str(args).map_err(Error::Cmdline)?;
        self.len = len;
        Ok(())
    }

    /// Length in bytes without the terminating zero.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing has been appended.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn as_linux_loader(&self) -> &cmdline::Cmdline {
        &self.inner
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(cmdline: &Cmdline) -> String {
        cmdline.as_linux_loader().as_cstring().unwrap().into_string().unwrap()
    }

    #[test]
    fn parts_are_joined_by_one_space() {
        let mut cmdline = Cmdline::new().unwrap();
        cmdline.append("console=ttyS0").unwrap();
        cmdline.append("  ").unwrap();
        cmdline.append(" panic=-1 ").unwrap();
        assert_eq!(text(&cmdline), "console=ttyS0 panic=-1");
        assert_eq!(cmdline.len(), text(&cmdline).len());
    }

    #[test]
    fn the_longest_line_fits_and_one_byte_more_is_refused() {
        let mut cmdline = Cmdline::new().unwrap();
        cmdline.append(&"a".repeat(CMDLINE_CAPACITY - 1)).unwrap();
        let error = Cmdline::new().unwrap().append(&"a".repeat(CMDLINE_CAPACITY)).unwrap_err();
        assert!(matches!(error, Error::CmdlineTooLong { len: 2048, limit: 2047 }));
    }

    #[test]
    fn control_characters_are_refused() {
        let error = Cmdline::new().unwrap().append("a\nb").unwrap_err();
        assert!(matches!(error, Error::Cmdline(_)));
    }
}
