//! The addresses of the Unix sockets of this network namespace.

use std::fs;
use std::io;

/// Fields of a line before the address: number, references, protocol, flags, type, state, inode (proc(5)).
const FIELDS: usize = 7;

/// The kernel's list of Unix sockets. Addresses are bytes that any process chooses: they need not be text.
pub(crate) struct UnixSockets(Vec<u8>);

impl UnixSockets {
    /// Reads the list.
    ///
    /// # Errors
    /// The kernel does not list its sockets.
    pub(crate) fn read() -> io::Result<Self> {
        fs::read("/proc/self/net/unix").map(Self)
    }

    /// The addresses: paths, and abstract names behind an `@`. A connection has the address of its listener.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'\n').filter_map(address)
    }
}

#[cfg(test)]
impl From<String> for UnixSockets {
    fn from(list: String) -> Self {
        Self(list.into())
    }
}

/// The address at the end of a line, which can have spaces; none for a socket without an address.
fn address(line: &[u8]) -> Option<&[u8]> {
    let mut rest = line;
    for _ in 0..FIELDS {
        rest = rest.trim_ascii_start();
        rest = &rest[rest.iter().position(|byte| *byte == b' ')?..];
    }
    rest.strip_prefix(b" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_what_follows_the_fields() {
        let list = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01    20 /run/a b/c.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 21234\n\
            0000000000000000: 00000002 00000000 00000000 0002 01 123456 @name\xff\n";
        let sockets = UnixSockets(list.to_vec());
        let addresses: Vec<&[u8]> = sockets.addresses().collect();
        assert_eq!(addresses, [b"Path".as_slice(), b"/run/a b/c.sock", b"@name\xff"]);
    }
}
