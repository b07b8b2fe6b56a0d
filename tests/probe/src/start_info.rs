//! The PVH start info: command line and ACPI root pointer.
//!
//! Layout: `xen/include/public/arch-x86/hvm/start_info.h`, `struct hvm_start_info`, version 0 and 1.

use crate::cpu;

const MAGIC: u32 = 0x336e_c578;
const COMMAND_LINE: u64 = 24;
const RSDP: u64 = 32;
const COMMAND_LINE_MAX: usize = 512;

/// The loader's start info.
pub(crate) struct StartInfo {
    /// Physical address of the ACPI root pointer, 0 if none was given.
    pub(crate) rsdp: u64,
    text: [u8; COMMAND_LINE_MAX],
    len: usize,
}

impl StartInfo {
    /// Reads the structure at a physical address. An unknown structure counts as empty.
    pub(crate) fn read(address: u64) -> Self {
        let mut start = Self { rsdp: 0, text: [0; COMMAND_LINE_MAX], len: 0 };
        if cpu::read32(address) != MAGIC {
            return start;
        }
        start.rsdp = cpu::read64(address + RSDP);
        let command_line = cpu::read64(address + COMMAND_LINE);
        if command_line == 0 {
            return start;
        }
        for (at, slot) in (command_line..).zip(start.text.iter_mut()) {
            let byte = cpu::read8(at);
            if byte == 0 {
                break;
            }
            *slot = byte;
            start.len += 1;
        }
        start
    }

    /// Returns whether a word stands alone on the command line.
    pub(crate) fn flag(&self, word: &str) -> bool {
        self.words().any(|w| w == word)
    }

    /// The value of `key=value`, the last one if there are several.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        self.words().filter_map(|w| w.split_once('=')).filter(|(k, _)| *k == key).map(|(_, v)| v).last()
    }

    fn words(&self) -> impl Iterator<Item = &str> {
        let text = self.text.get(..self.len).unwrap_or_default();
        core::str::from_utf8(text).unwrap_or_default().split_ascii_whitespace()
    }
}
