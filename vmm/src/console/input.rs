//! Console input: what is typed, minus the escape keys, until the guest takes it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::fd::{AsFd, BorrowedFd};

/// Bytes that wait for the guest. While so many wait nothing more is read, so the sender waits too.
const CAPACITY: usize = 4096;

/// Ctrl-A.
const ESCAPE: u8 = 0x01;
/// After Ctrl-A: quit.
const QUIT: u8 = b'x';

/// The meaning of Ctrl-A: a command key, or a key like any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keys {
    /// It is: a user types.
    Escaped,
    /// It is not: any byte is data.
    Plain,
}

/// The result of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// Perhaps bytes for the guest.
    More,
    /// The user wants to quit.
    Quit,
}

/// The control loop's source of input.
pub(crate) struct Input {
    /// None once it has ended, or if there never was one.
    file: Option<File>,
    filter: Filter,
    waiting: VecDeque<u8>,
}

impl Input {
    pub(super) fn new(file: File, keys: Keys) -> Self {
        Self { file: Some(file), filter: Filter { keys, after_escape: false }, waiting: VecDeque::new() }
    }

    pub(super) fn none() -> Self {
        Self { file: None, filter: Filter { keys: Keys::Plain, after_escape: false }, waiting: VecDeque::new() }
    }

    /// The descriptor to wait for, while there is room.
    pub(crate) fn wants_to_read(&self) -> Option<BorrowedFd<'_>> {
        let file = self.file.as_ref()?;
        (self.waiting.len() < CAPACITY).then(|| file.as_fd())
    }

    /// Reads once. Called when the descriptor is readable or at its end.
    pub(crate) fn read(&mut self) -> Read {
        let Some(mut file) = self.file.as_ref() else { return Read::More };
        let mut bytes = [0; CAPACITY];
        let room = CAPACITY.saturating_sub(self.waiting.len());
        match file.read(&mut bytes[..room]) {
            Ok(0) => self.file = None,
            Ok(len) => {
                for &byte in &bytes[..len] {
                    if self.filter.pass(byte, &mut self.waiting) == Read::Quit {
                        return Read::Quit;
                    }
                }
            }
            Err(err) if matches!(err.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            // A terminal that hung up, or a descriptor that cannot be read: no more input.
            Err(_) => self.file = None,
        }
        Read::More
    }

    /// Offers what waits to `take`, which says how much it took.
    pub(crate) fn offer(&mut self, take: impl FnOnce(&[u8]) -> usize) {
        if !self.waiting.is_empty() {
            let taken = take(self.waiting.make_contiguous());
            self.waiting.drain(..taken.min(self.waiting.len()));
        }
    }

    #[cfg(test)]
    fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

struct Filter {
    keys: Keys,
    after_escape: bool,
}

impl Filter {
    fn pass(&mut self, byte: u8, to: &mut VecDeque<u8>) -> Read {
        let after_escape = std::mem::take(&mut self.after_escape);
        match (self.keys, after_escape, byte) {
            (Keys::Plain, ..) => to.push_back(byte),
            (Keys::Escaped, false, ESCAPE) => self.after_escape = true,
            (Keys::Escaped, false, _) | (Keys::Escaped, true, ESCAPE) => to.push_back(byte),
            (Keys::Escaped, true, QUIT) => return Read::Quit,
            (Keys::Escaped, true, _) => to.extend([ESCAPE, byte]),
        }
        Read::More
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: Keys, bytes: &[u8]) -> (Vec<u8>, Read) {
        let mut filter = Filter { keys, after_escape: false };
        let mut to = VecDeque::new();
        let quit = bytes.iter().any(|&byte| filter.pass(byte, &mut to) == Read::Quit);
        (to.into(), if quit { Read::Quit } else { Read::More })
    }

    #[test]
    fn escape_x_quits() {
        assert_eq!(typed(Keys::Escaped, b"ls\x01x"), (b"ls".to_vec(), Read::Quit));
    }

    #[test]
    fn escape_twice_sends_one() {
        assert_eq!(typed(Keys::Escaped, b"\x01\x01x"), (b"\x01x".to_vec(), Read::More));
    }

    #[test]
    fn escape_and_another_key_sends_both() {
        assert_eq!(typed(Keys::Escaped, b"\x01c"), (b"\x01c".to_vec(), Read::More));
    }

    #[test]
    fn plain_input_has_no_escape() {
        assert_eq!(typed(Keys::Plain, b"\x01x"), (b"\x01x".to_vec(), Read::More));
    }

    #[test]
    fn input_ends_without_spinning() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut input = Input::new(File::from(std::os::fd::OwnedFd::from(reader)), Keys::Plain);
        drop(writer);

        assert_eq!(input.read(), Read::More);

        assert!(input.wants_to_read().is_none());
    }

    #[test]
    fn what_the_guest_does_not_take_waits() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        std::io::Write::write_all(&mut writer, b"abcdef").unwrap();
        let mut input = Input::new(File::from(std::os::fd::OwnedFd::from(reader)), Keys::Plain);
        input.read();

        input.offer(|bytes| bytes.len().min(4));

        assert!(input.has_waiting());
        input.offer(|bytes| {
            assert_eq!(bytes, b"ef");
            2
        });
        assert!(!input.has_waiting());
    }
}
