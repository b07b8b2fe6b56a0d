//! The debug-exit port: one byte written to it ends the virtual machine with that code, if it has the device. The only
//! reason for `unsafe`: the kernels in question have no `/dev/port`, so the agent writes the port itself.

#![expect(unsafe_code, reason = "the agent writes to an I/O port")]

use nix::errno::Errno;
use std::arch::asm;
use std::io;

/// Where the device is (QEMU's `isa-debug-exit` is put there by convention, minivmm's by default).
const DEBUG_EXIT: u16 = 0xf4;

/// Ends the machine with the code. Returns if it has no such device, or with the reason why it could not be asked.
pub(crate) fn exit(code: u8) -> io::Result<()> {
    // SAFETY: ioperm changes only which ports this thread may use; the arguments are one port below 0x400 and "on".
    let permitted = unsafe { libc::ioperm(DEBUG_EXIT.into(), 1, 1) };
    Errno::result(permitted)?;
    // SAFETY: the port was permitted above. `out` touches no memory of this process; a device that does not exist
    // ignores it.
    unsafe {
        asm!("out dx, al", in("dx") DEBUG_EXIT, in("al") code, options(nomem, nostack, preserves_flags));
    }
    Ok(())
}
