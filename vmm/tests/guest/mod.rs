//! Guests of a few instructions, packed as ELF files with a PVH entry.
//!
//! They run in 32-bit protected mode without paging, as PVH starts them, and are written as machine code so that no
//! assembler is needed. All jumps are relative.

use std::io::Write;
use std::path::Path;

/// `SLEEP_CONTROL` = SLP_TYP 5, SLP_EN.
pub(crate) const POWER_OFF: &[u8] = &[
    0x66, 0xba, 0x00, 0x06, // mov dx, 0x600
    0xb0, 0x34, // mov al, 5 << 2 | 1 << 5
    0xee, // out dx, al
    0xf4, // hlt
];

/// i8042: pulse the reset line.
pub(crate) const RESET: &[u8] = &[
    0xb0, 0xfe, // mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
    0xf4, // hlt
];

/// The chipset's reset control register, as Linux writes it: the kind, then the reset.
pub(crate) const RESET_BY_CHIPSET: &[u8] = &[
    0x66, 0xba, 0xf9, 0x0c, // mov dx, 0xcf9
    0xb0, 0x02, // mov al, 2
    0xee, // out dx, al
    0xb0, 0x0e, // mov al, 0xe
    0xee, // out dx, al
    0xf4, // hlt
];

/// The reset register of the FADT with its value.
pub(crate) const RESET_BY_ACPI: &[u8] = &[
    0x66, 0xba, 0x02, 0x06, // mov dx, 0x602
    0xb0, 0x01, // mov al, 1
    0xee, // out dx, al
    0xf4, // hlt
];

/// Returns to real mode by way of a 16-bit segment, and jumps to where a BIOS begins.
pub(crate) const RESET_BY_VECTOR: &[u8] = &[
    0x0f, 0x01, 0x15, 0x2b, 0x00, 0x10, 0x00, // lgdt [gdtr]
    0xea, 0x0e, 0x00, 0x00, 0x00, 0x08, 0x00, // jmp 8:1f
    0x0f, 0x20, 0xc0, // 1: mov eax, cr0
    0x24, 0xfe, // and al, ~1 (PE)
    0x0f, 0x22, 0xc0, // mov cr0, eax
    0xea, 0xf0, 0xff, 0x00, 0xf0, // jmp 0xf000:0xfff0
    0, 0, 0, 0, 0, 0, 0, 0, // gdt: nothing; 16-bit code at 1 MiB
    0xff, 0xff, 0x00, 0x00, 0x10, 0x9b, 0x00, 0x00, //
    0x0f, 0x00, 0x1b, 0x00, 0x10, 0x00, // gdtr: limit, base
];

/// Sends an INIT to itself.
pub(crate) const RESET_BY_INIT: &[u8] = &[
    0xc7, 0x05, 0x10, 0x03, 0xe0, 0xfe, 0x00, 0x00, 0x00, 0x00, // mov dword [ICR high], 0 (APIC id)
    0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0x00, 0x45, 0x00, 0x00, // mov dword [ICR low], INIT, assert
    0xf4, // 1: hlt
    0xeb, 0xfd, // jmp 1b
];

/// Says where Linux does that a cold boot is to follow, then faults three times.
pub(crate) const RESET_BY_TRIPLE_FAULT: &[u8] = &[
    0x66, 0xc7, 0x05, 0x72, 0x04, 0x00, 0x00, 0x00, 0x00, // mov word [0x472], 0
    0x0f, 0x0b, // ud2
];

/// Resets as Linux does after a panic: warm, with its APIC shut down and a pin of the I/O APIC open.
pub(crate) const PANIC_WITHOUT_A_DRIVER: &[u8] = &[
    0x66, 0xc7, 0x05, 0x72, 0x04, 0x00, 0x00, 0x34, 0x12, // mov word [0x472], 0x1234
    0xc7, 0x05, 0x00, 0x00, 0xc0, 0xfe, 0x18, 0x00, 0x00, 0x00, // mov dword [IOREGSEL], pin 4
    0xc7, 0x05, 0x10, 0x00, 0xc0, 0xfe, 0x24, 0x00, 0x00, 0x00, // mov dword [IOWIN], vector 0x24, open
    0xc7, 0x05, 0x50, 0x03, 0xe0, 0xfe, 0x00, 0x00, 0x01, 0x00, // mov dword [LVT LINT0], masked
    0xc7, 0x05, 0xf0, 0x00, 0xe0, 0xfe, 0xff, 0x00, 0x00, 0x00, // mov dword [SVR], disabled, vector 0xff
    0xb0, 0xfe, // mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
    0xf4, // hlt
];

/// The same with the I/O APIC shut down too, as a reboot does of a guest whose user wants warm boots.
pub(crate) const WARM_RESET: &[u8] = &[
    0x66, 0xc7, 0x05, 0x72, 0x04, 0x00, 0x00, 0x34, 0x12, // mov word [0x472], 0x1234
    0xc7, 0x05, 0x50, 0x03, 0xe0, 0xfe, 0x00, 0x00, 0x01, 0x00, // mov dword [LVT LINT0], masked
    0xc7, 0x05, 0xf0, 0x00, 0xe0, 0xfe, 0xff, 0x00, 0x00, 0x00, // mov dword [SVR], disabled, vector 0xff
    0xb0, 0xfe, // mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
    0xf4, // hlt
];

/// Has channel 2 of the timer count 50 ms, waits for its output, and exits with code 7.
pub(crate) const WAIT_50_MS: &[u8] = &[
    0xb0, 0x01, // mov al, 1 (gate)
    0xe6, 0x61, // out 0x61, al
    0xb0, 0xb0, // mov al, 0xb0 (channel 2, mode 0)
    0xe6, 0x43, // out 0x43, al
    0xb0, 0x0b, // mov al, 59659 & 0xff
    0xe6, 0x42, // out 0x42, al
    0xb0, 0xe9, // mov al, 59659 >> 8
    0xe6, 0x42, // out 0x42, al
    0xe4, 0x61, // 1: in al, 0x61
    0xa8, 0x20, // test al, 0x20 (output)
    0x74, 0xfa, // jz 1b
    0xb0, 0x07, // mov al, 7
    0xe6, 0xf4, // out 0xf4, al
    0xf4, // hlt
];

/// pvpanic: panicked.
pub(crate) const PANIC: &[u8] = &[
    0x66, 0xba, 0x05, 0x05, // mov dx, 0x505
    0xb0, 0x01, // mov al, 1
    0xee, // out dx, al
    0xf4, // hlt
];

/// Debug exit with code 7.
pub(crate) const EXIT_7: &[u8] = &[
    0xb0, 0x07, // mov al, 7
    0xe6, 0xf4, // out 0xf4, al
    0xf4, // hlt
];

/// An exception with an empty IDT.
pub(crate) const TRIPLE_FAULT: &[u8] = &[0x0f, 0x0b]; // ud2

/// Says `!`, then halts for ever.
pub(crate) const IDLE: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, 0x21, // mov al, '!'
    0xee, // out dx, al
    0xf4, // 1: hlt
    0xeb, 0xfd, // jmp 1b
];

/// Says `!`, then runs in a circle.
pub(crate) const SPIN: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, 0x21, // mov al, '!'
    0xee, // out dx, al
    0xeb, 0xfe, // 1: jmp 1b
];

/// Says `!` for ever.
pub(crate) const FLOOD: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, 0x21, // mov al, '!'
    0xee, // 1: out dx, al
    0xeb, 0xfd, // jmp 1b
];

/// Says `!` 4096 times, then exits with code 7.
pub(crate) const COUNT_THEN_EXIT: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, 0x21, // mov al, '!'
    0xb9, 0x00, 0x10, 0x00, 0x00, // mov ecx, 4096
    0xee, // 1: out dx, al
    0xe2, 0xfd, // loop 1b
    0xb0, 0x07, // mov al, 7
    0xe6, 0xf4, // out 0xf4, al
    0xf4, // hlt
];

/// As a kernel that has given up the I/O APIC: opens LINT0 to the 8259, has the serial port interrupt it, and says `!`
/// 4096 times. An interrupt would meet an empty IDT. Exits with code 7.
pub(crate) const INTERRUPTED_WITHOUT_IO_APIC: &[u8] = &[
    0xc7, 0x05, 0xf0, 0x00, 0xe0, 0xfe, 0xff, 0x01, 0x00, 0x00, // mov dword [SVR], enabled, vector 0xff
    0xc7, 0x05, 0x50, 0x03, 0xe0, 0xfe, 0x00, 0x07, 0x00, 0x00, // mov dword [LVT LINT0], ExtINT
    0x66, 0xba, 0xf9, 0x03, // mov dx, 0x3f9
    0xb0, 0x02, // mov al, 2 (transmitter empty)
    0xee, // out dx, al
    0xfb, // sti
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, 0x21, // mov al, '!'
    0xb9, 0x00, 0x10, 0x00, 0x00, // mov ecx, 4096
    0xee, // 1: out dx, al
    0xe2, 0xfd, // loop 1b
    0xb0, 0x07, // mov al, 7
    0xe6, 0xf4, // out 0xf4, al
    0xf4, // hlt
];

/// The byte that makes [`ECHO`] exit with code 7.
pub(crate) const ECHO_EXIT: u8 = 0x04;

/// Says `!`, then what it is told.
pub(crate) const ECHO: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, 0x21, // mov al, '!'
    0xee, // 1: out dx, al
    0x66, 0xba, 0xfd, 0x03, // 2: mov dx, 0x3fd
    0xec, // in al, dx
    0xa8, 0x01, // test al, 1 (data ready)
    0x74, 0xf7, // jz 2b
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xec, // in al, dx
    0x3c, ECHO_EXIT, // cmp al, 4
    0x75, 0xed, // jne 1b
    0xb0, 0x07, // mov al, 7
    0xe6, 0xf4, // out 0xf4, al
    0xf4, // hlt
];

/// Says `!`, waits for a byte, and resets.
pub(crate) const REBOOT_ON_INPUT: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, 0x21, // mov al, '!'
    0xee, // out dx, al
    0x66, 0xba, 0xfd, 0x03, // 1: mov dx, 0x3fd
    0xec, // in al, dx
    0xa8, 0x01, // test al, 1 (data ready)
    0x74, 0xf7, // jz 1b
    0xb0, 0xfe, // mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
    0xf4, // hlt
];

/// Where the code is loaded.
const LOAD_ADDR: u32 = 0x10_0000;
const HEADER_BYTES: u32 = 64;
const PROGRAM_HEADER_BYTES: u32 = 56;
const NOTE_AT: u32 = HEADER_BYTES + 2 * PROGRAM_HEADER_BYTES;
/// Name size, descriptor size, type, "Xen\0", and the entry as 64 bits.
const NOTE_BYTES: u32 = 24;
const CODE_AT: u32 = NOTE_AT + NOTE_BYTES;

/// A guest as a kernel file; the file goes with it.
pub(crate) struct Guest(tempfile::NamedTempFile);

impl Guest {
    pub(crate) fn new(code: &[u8]) -> Self {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&elf(code)).unwrap();
        Self(file)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

/// ELF64 with one loaded segment and a Xen note with the PVH entry.
fn elf(code: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |file: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    let word = |file: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    let xword =
        |file: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|v| file.extend(u64::from(*v).to_le_bytes()));
    let len = u32::try_from(code.len()).unwrap();
    half(&mut file, &[2, 62]); // executable, x86-64
    word(&mut file, &[1]);
    xword(&mut file, &[LOAD_ADDR, HEADER_BYTES, 0]); // entry, program headers, no sections
    word(&mut file, &[0]);
    half(&mut file, &[64, 56, 2, 0, 0, 0]);
    word(&mut file, &[1, 5]); // PT_LOAD, readable and executable
    xword(&mut file, &[CODE_AT, LOAD_ADDR, LOAD_ADDR, len, len, 4]);
    word(&mut file, &[4, 4]); // PT_NOTE
    xword(&mut file, &[NOTE_AT, 0, 0, NOTE_BYTES, NOTE_BYTES, 4]);
    word(&mut file, &[4, 8, 18]); // XEN_ELFNOTE_PHYS32_ENTRY
    file.extend(b"Xen\0");
    xword(&mut file, &[LOAD_ADDR]);
    file.extend(code);
    file
}
