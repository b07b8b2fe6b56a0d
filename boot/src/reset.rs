//! Resets in low memory: code at the real-mode reset vector, and the mark that Linux writes
//! before it resets.
//!
//! There is no firmware, but a kernel jumps to where one would begin when nothing else has reset the machine: Linux
//! with EFI support does so first on a hardware-reduced machine, unless its command line says otherwise (`reboot_init`,
//! `efi_reboot_required`). The code there writes the machine's own reset register.

use crate::{Error, layout};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

const PORT: [u8; 2] = layout::RESET.base.to_le_bytes();

/// 16-bit code. Should the register not stop the processor at once, it halts.
const AT_RESET_VECTOR: [u8; 9] = [
    0xBA,
    PORT[0],
    PORT[1], // mov dx, RESET
    0xB0,
    layout::RESET_BY_VECTOR, // mov al, RESET_BY_VECTOR
    0xEE,                    // out dx, al
    0xF4,                    // 1: hlt
    0xEB,
    0xFD, // jmp 1b
];

const _: () = assert!(AT_RESET_VECTOR.len() as u64 <= layout::RESET_VECTOR.size);

/// Writes the code at [`layout::RESET_VECTOR`] and the mark at [`layout::RESET_MARK`].
pub(crate) fn write(ram: &GuestMemoryMmap) -> Result<(), Error> {
    let failed = |source: GuestMemoryError| Error::GuestMemory { what: "the reset vector", source };
    ram.write_slice(&AT_RESET_VECTOR, GuestAddress(layout::RESET_VECTOR.base)).map_err(failed)?;
    ram.write_obj(layout::RESET_MARK_AT_START, GuestAddress(layout::RESET_MARK.base)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::ram_of;

    #[test]
    fn code_at_the_reset_vector_writes_the_reset_register() {
        let ram = ram_of(2 << 20);
        write(&ram).unwrap();
        let code: [u8; 9] = ram.read_obj(GuestAddress(0xF_FFF0)).unwrap();
        assert_eq!(code, [0xBA, 0x02, 0x06, 0xB0, 2, 0xEE, 0xF4, 0xEB, 0xFD]);
    }

    #[test]
    fn mark_at_the_start_is_neither_that_of_a_cold_boot_nor_of_a_warm_one() {
        let ram = ram_of(2 << 20);
        write(&ram).unwrap();
        let mark: u16 = ram.read_obj(GuestAddress(0x472)).unwrap();
        assert!(mark != 0 && mark != layout::RESET_MARK_WARM);
    }
}
