//! The user's terminal, raw while the guest's shell has it.

use nix::sys::termios::{OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::io::stdin;

/// The terminal in raw mode, until this is dropped.
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    /// Makes the terminal pass every key on; `None` if standard input is no terminal. Line ends in the output still
    /// return the carriage, since not everything that is printed comes from the guest.
    pub(super) fn set() -> Option<Self> {
        let before = tcgetattr(stdin()).ok()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        raw.output_flags |= OutputFlags::OPOST | OutputFlags::ONLCR;
        tcsetattr(stdin(), SetArg::TCSANOW, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that has gone needs no restoring.
        let _gone = tcsetattr(stdin(), SetArg::TCSANOW, &self.before);
    }
}
