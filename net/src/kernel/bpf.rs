//! Programs that choose the queue of each frame on its way to a tap (`TUNSETSTEERINGEBPF`), loaded with bpf(2).
//!
//! Loading takes CAP_BPF or CAP_SYS_ADMIN, which the VMM has dropped; attaching a loaded program takes only the tap.
//! The caller writes the program: here it is a list of instructions and the size of its map.
#![allow(unsafe_code)] // bpf(2) takes an untyped structure with addresses in it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A program with one map, as instructions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SteeringProgram {
    /// The instructions: each a `struct bpf_insn` as an integer of the host.
    pub instructions: Vec<u64>,
    /// The instruction whose upper 32 bits are the descriptor of the map.
    pub map_fd_at: usize,
    /// Bytes of the map's only element.
    pub map_bytes: u32,
}

/// A program that the kernel has accepted, and its map.
#[derive(Debug)]
pub struct Steering {
    /// The program, to be attached to a tap.
    pub program: OwnedFd,
    /// A memory-mappable array of one element.
    pub map: OwnedFd,
}

/// Commands, types and flags of bpf(2) (linux/bpf.h).
const MAP_CREATE: libc::c_int = 0;
const PROG_LOAD: libc::c_int = 5;
const MAP_TYPE_ARRAY: u32 = 2;
const F_MMAPABLE: u32 = 1 << 10;
const PROG_TYPE_SOCKET_FILTER: u32 = 1;

/// The program calls no GPL-only kernel function, but a licence must be given.
const LICENCE: &std::ffi::CStr = c"Apache-2.0";

/// `union bpf_attr` for `BPF_MAP_CREATE`, up to the last field in use.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    flags: u32,
}

/// `union bpf_attr` for `BPF_PROG_LOAD`, up to the last field in use.
#[repr(C)]
struct ProgLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    licence: u64,
}

impl SteeringProgram {
    /// Makes the map and loads the program.
    ///
    /// # Errors
    /// The kernel's error, most often for lack of privileges.
    pub(crate) fn load(&self) -> io::Result<Steering> {
        let map = MapCreate {
            map_type: MAP_TYPE_ARRAY,
            key_bytes: 4,
            value_bytes: self.map_bytes,
            entries: 1,
            flags: F_MMAPABLE,
        };
        let map = bpf(MAP_CREATE, &map)?;
        let mut instructions = self.instructions.clone();
        let number = u32::try_from(map.as_raw_fd()).map_err(io::Error::other)?;
        if let Some(instruction) = instructions.get_mut(self.map_fd_at) {
            *instruction = *instruction & u64::from(u32::MAX) | u64::from(number) << 32;
        }
        let load = ProgLoad {
            program_type: PROG_TYPE_SOCKET_FILTER,
            instruction_count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
            instructions: u64::try_from(instructions.as_ptr().addr()).map_err(io::Error::other)?,
            licence: u64::try_from(LICENCE.as_ptr().addr()).map_err(io::Error::other)?,
        };
        Ok(Steering { program: bpf(PROG_LOAD, &load)?, map })
    }
}

/// A command that returns a descriptor.
fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of `attributes` and takes the rest of its own structure as zero.
    // It follows addresses only in `ProgLoad`, whose instructions and licence are alive.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    let number = libc::c_int::try_from(result).map_err(io::Error::other)?;
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just put this descriptor into our table and no other code knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
