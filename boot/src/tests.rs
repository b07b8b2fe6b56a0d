//! Kernels made by hand, and tests of [`crate::load`] as a whole.

use crate::{BootSpec, Cmdline, EntryState, Error, Image, Platform, Protocol, Smbios, SystemInfo, layout};
use linux_loader::bootparam::{boot_params, setup_header};
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use proptest::prelude::*;
use std::io::Write;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

const MIB: u64 = 1 << 20;

/// A temporary file with this content, named `kernel` in messages.
pub(crate) fn image(content: &[u8]) -> Image {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    Image { file, path: "kernel".into() }
}

/// Guest memory with the regions of the layout.
pub(crate) fn ram_of(mem_bytes: u64) -> GuestMemoryMmap {
    let ranges: Vec<_> =
        layout::ram_regions(mem_bytes).into_iter().map(|(base, size)| (base, usize::try_from(size).unwrap())).collect();
    GuestMemoryMmap::from_ranges(&ranges).unwrap()
}

/// Makes a bzImage whose protected-mode code is all 0x90.
#[derive(Clone, Debug)]
pub(crate) struct BzImageBuilder {
    pub(crate) setup_sects: u8,
    pub(crate) version: u16,
    pub(crate) xloadflags: u16,
    pub(crate) loadflags: u8,
    /// In units of 16 bytes.
    pub(crate) syssize: u32,
    pub(crate) pref_address: u64,
    pub(crate) init_size: u32,
    pub(crate) cmdline_size: u32,
    /// Offset in the file at which the header says that it ends.
    pub(crate) header_end: u16,
}

impl Default for BzImageBuilder {
    fn default() -> Self {
        Self {
            setup_sects: 1,
            version: 0x020F,
            xloadflags: 1,
            loadflags: 1,
            syssize: 0x100,
            pref_address: 16 * MIB,
            init_size: 8 << 20,
            cmdline_size: 2047,
            header_end: 0x26C,
        }
    }
}

impl BzImageBuilder {
    pub(crate) fn build(&self) -> Vec<u8> {
        let header = setup_header {
            setup_sects: self.setup_sects,
            syssize: self.syssize,
            boot_flag: 0xAA55,
            jump: 0xEB | ((self.header_end - 0x202) << 8),
            header: u32::from_le_bytes(*b"HdrS"),
            version: self.version,
            loadflags: self.loadflags,
            initrd_addr_max: 0x7FFF_FFFF,
            kernel_alignment: 2 << 20,
            relocatable_kernel: 1,
            xloadflags: self.xloadflags,
            cmdline_size: self.cmdline_size,
            setup_data: 0xDEAD_BEEF,
            pref_address: self.pref_address,
            init_size: self.init_size,
            ..Default::default()
        };
        let sectors = if self.setup_sects == 0 { 4 } else { usize::from(self.setup_sects) };
        let mut bytes = vec![0; (sectors + 1) * 512];
        bytes[0x1F1..0x26C].copy_from_slice(header.as_slice());
        bytes.resize(bytes.len() + usize::try_from(self.syssize).unwrap() * 16, 0x90);
        bytes
    }
}

/// One ELF note, padded to 4 bytes.
pub(crate) fn note(name: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [u32::try_from(name.len()).unwrap(), u32::try_from(descriptor.len()).unwrap(), kind] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    for part in [name, descriptor] {
        bytes.extend_from_slice(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// Makes an ELF file with one loadable segment of 4 KiB, all 0x90, and note segments.
#[derive(Clone, Debug)]
pub(crate) struct ElfBuilder {
    pub(crate) class: u8,
    pub(crate) data: u8,
    pub(crate) kind: u16,
    pub(crate) machine: u16,
    pub(crate) entry: u64,
    pub(crate) paddr: u64,
    pub(crate) mem_len: u64,
    /// One segment for each.
    pub(crate) notes: Vec<Vec<u8>>,
}

impl Default for ElfBuilder {
    fn default() -> Self {
        Self {
            class: 2,
            data: 1,
            kind: 2,
            machine: 62,
            entry: 0x20_0010,
            paddr: 0x20_0000,
            mem_len: 0x3000,
            notes: Vec::new(),
        }
    }
}

impl ElfBuilder {
    const VADDR: u64 = 0xFFFF_FFFF_8000_0000;
    const SEGMENT_BYTES: usize = 0x1000;

    pub(crate) fn with_pvh_entry(entry: u32) -> Self {
        Self { notes: vec![note(b"Xen\0", 18, &entry.to_le_bytes())], ..Default::default() }
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let headers = self.notes.len() + 1;
        let mut bytes = vec![0x7F, b'E', b'L', b'F', self.class, self.data, 1];
        bytes.resize(16, 0);
        bytes.extend_from_slice(&self.kind.to_le_bytes());
        bytes.extend_from_slice(&self.machine.to_le_bytes());
        bytes.extend_from_slice(&1u32.to_le_bytes());
        for word in [self.entry, 64, 0] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&0u32.to_le_bytes());
        for half in [64, 56, u16::try_from(headers).unwrap(), 64, 0, 0] {
            bytes.extend_from_slice(&half.to_le_bytes());
        }
        let mut contents = Vec::new();
        let contents_offset = 64 + headers * 56;
        for notes in &self.notes {
            let len = notes.len() as u64;
            bytes.extend(program_header(4, [(contents_offset + contents.len()) as u64, 0, 0, len, len, 4]));
            contents.extend_from_slice(notes);
        }
        let offset = (contents_offset + contents.len()) as u64;
        let len = Self::SEGMENT_BYTES as u64;
        bytes.extend(program_header(1, [offset, Self::VADDR, self.paddr, len, self.mem_len, 4096]));
        contents.resize(contents.len() + Self::SEGMENT_BYTES, 0x90);
        bytes.extend(contents);
        bytes
    }

    pub(crate) fn with_phnum(&self, phnum: u16) -> Vec<u8> {
        let mut bytes = self.build();
        bytes[56..58].copy_from_slice(&phnum.to_le_bytes());
        bytes
    }

    pub(crate) fn with_phoff(&self, phoff: u64) -> Vec<u8> {
        let mut bytes = self.build();
        bytes[32..40].copy_from_slice(&phoff.to_le_bytes());
        bytes
    }
}

/// Offset, virtual address, physical address, file length, memory length, alignment.
fn program_header(kind: u32, words: [u64; 6]) -> Vec<u8> {
    let mut bytes = [kind.to_le_bytes(), 7u32.to_le_bytes()].concat();
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    bytes
}

fn spec(kernel: &[u8], initrd: Option<&[u8]>, cmdline: &str) -> BootSpec {
    let mut line = Cmdline::new();
    line.append(cmdline).unwrap();
    let initrd = initrd.map(|content| Image { path: "initrd".into(), ..image(content) });
    let smbios = Smbios::new(&SystemInfo::default()).unwrap();
    BootSpec { kernel: image(kernel), initrd, cmdline: line, smbios }
}

fn load(ram: &GuestMemoryMmap, spec: &BootSpec) -> Result<EntryState, Error> {
    crate::load(ram, spec, &Platform { apic_ids: &[0, 1], mmio64: layout::window64(64 * MIB, 40) })
}

fn text_at(ram: &GuestMemoryMmap, addr: u64) -> String {
    let bytes = (0..).map(|i| ram.read_obj::<u8>(GuestAddress(addr + i)).unwrap());
    String::from_utf8(bytes.take_while(|byte| *byte != 0).collect()).unwrap()
}

#[test]
fn bzimage_is_loaded_with_zero_page_initrd_and_command_line() {
    let ram = ram_of(64 * MIB);
    let spec = spec(&BzImageBuilder::default().build(), Some(&[7; 5000]), "console=ttyS0");
    let state = load(&ram, &spec).unwrap();

    assert_eq!((state.protocol, state.rip), (Protocol::BzImage, 0x100_0200));
    assert_eq!(ram.read_obj::<u64>(GuestAddress(state.rip)).unwrap(), 0x9090_9090_9090_9090);
    let zero_page: boot_params = ram.read_obj(GuestAddress(state.rsi)).unwrap();
    let header = zero_page.hdr;
    assert_eq!({ header.type_of_loader }, 0xFF);
    assert_eq!({ header.setup_data }, 0);
    assert_eq!({ header.cmdline_size }, 2047);
    assert_eq!(text_at(&ram, u64::from(header.cmd_line_ptr)), "console=ttyS0");
    assert_eq!(({ header.ramdisk_image }, { header.ramdisk_size }), (0x3FF_E000, 5000));
    assert_eq!(ram.read_obj::<u8>(GuestAddress(0x3FF_E000)).unwrap(), 7);
    assert_eq!(zero_page.e820_entries, 5);
    let last = zero_page.e820_table[3];
    assert_eq!(({ last.addr }, { last.size }, { last.r#type }), (MIB, 63 * MIB, 1));
    assert_eq!(text_at(&ram, zero_page.acpi_rsdp_addr).get(..8), Some("RSD PTR "));
}

#[test]
fn pvh_kernel_is_loaded_with_start_info() {
    let ram = ram_of(64 * MIB);
    let spec = spec(&ElfBuilder::with_pvh_entry(0x20_0020).build(), Some(&[7; 5000]), "quiet");
    let state = load(&ram, &spec).unwrap();

    assert_eq!((state.protocol, state.rip), (Protocol::Pvh, 0x20_0020));
    let info: hvm_start_info = ram.read_obj(GuestAddress(state.rbx)).unwrap();
    assert_eq!((info.magic, info.version, info.nr_modules), (0x336E_C578, 1, 1));
    assert_eq!(text_at(&ram, info.cmdline_paddr), "quiet");
    assert_eq!(text_at(&ram, info.rsdp_paddr).get(..8), Some("RSD PTR "));
    let module: hvm_modlist_entry = ram.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
    assert_eq!((module.paddr, module.size), (0x3FF_E000, 5000));
    let map: hvm_memmap_table_entry = ram.read_obj(GuestAddress(info.memmap_paddr + 72)).unwrap();
    assert_eq!((info.memmap_entries, map.addr, map.size, map.type_), (5, MIB, 63 * MIB, 1));
}

#[test]
fn pvh_kernel_without_initrd_has_no_module() {
    let ram = ram_of(64 * MIB);
    let state = load(&ram, &spec(&ElfBuilder::with_pvh_entry(0x20_0000).build(), None, "")).unwrap();
    let info: hvm_start_info = ram.read_obj(GuestAddress(state.rbx)).unwrap();
    assert_eq!((info.nr_modules, info.modlist_paddr), (0, 0));
    assert_eq!(text_at(&ram, info.cmdline_paddr), "");
}

#[test]
fn elf_without_note_is_entered_in_64_bit_mode_with_a_zero_page() {
    let ram = ram_of(64 * MIB);
    let state = load(&ram, &spec(&ElfBuilder::default().build(), Some(&[7; 10]), "quiet")).unwrap();
    assert_eq!((state.protocol, state.rip), (Protocol::Elf64, 0x20_0010));
    let zero_page: boot_params = ram.read_obj(GuestAddress(state.rsi)).unwrap();
    let header = zero_page.hdr;
    assert_eq!(({ header.header }, { header.boot_flag }), (0x5372_6448, 0xAA55));
    assert_eq!(({ header.ramdisk_image }, { header.ramdisk_size }), (0x3FF_F000, 10));
}

#[test]
fn kernel_larger_than_memory_is_refused_with_the_memory_it_needs() {
    let kernel = BzImageBuilder { init_size: 60 << 20, ..Default::default() }.build();
    let error = load(&ram_of(64 * MIB), &spec(&kernel, None, "")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "kernel needs guest memory from 0x1000000 to 0x4c00000, but the guest has RAM from 0x100000 to 0x4000000 for it"
    );
    assert!(error.hint().unwrap().contains("at least 76 MiB"));
}

#[test]
fn segment_behind_the_memory_is_refused() {
    let kernel = ElfBuilder { paddr: 64 * MIB - 0x2000, entry: 64 * MIB - 0x2000, ..Default::default() }.build();
    let error = load(&ram_of(64 * MIB), &spec(&kernel, None, "")).unwrap_err();
    assert!(matches!(error, Error::KernelDoesNotFit { .. }));
}

#[test]
fn kernel_behind_the_device_hole_is_refused_with_a_hint_to_link_it_lower() {
    let kernel = ElfBuilder { paddr: 4 << 30, entry: 4 << 30, ..Default::default() }.build();
    let error = load(&ram_of(6 << 30), &spec(&kernel, None, "")).unwrap_err();
    assert!(error.hint().unwrap().contains("below 3 GiB"));
}

#[test]
fn kernel_in_the_first_mib_is_refused_with_a_hint_to_link_it_higher() {
    let kernel = ElfBuilder { paddr: 0x7000, entry: 0x7000, ..Default::default() }.build();
    let error = load(&ram_of(64 * MIB), &spec(&kernel, None, "")).unwrap_err();
    assert!(error.hint().unwrap().contains("1 MiB"));
    let kernel = BzImageBuilder { pref_address: 0x1000, ..Default::default() }.build();
    assert!(matches!(load(&ram_of(64 * MIB), &spec(&kernel, None, "")), Err(Error::KernelDoesNotFit { .. })));
}

#[test]
fn initrd_that_does_not_fit_beside_the_kernel_is_refused() {
    let kernel = BzImageBuilder { init_size: 47 << 20, ..Default::default() }.build();
    let initrd = vec![0; 16 << 20];
    let error = load(&ram_of(64 * MIB), &spec(&kernel, Some(&initrd), "")).unwrap_err();
    assert_eq!(error.to_string(), "initrd has 16777216 bytes, but beside the kernel the guest has room for 15728640");
}

#[test]
fn empty_initrd_is_refused() {
    let spec = spec(&BzImageBuilder::default().build(), Some(&[]), "");
    assert_eq!(load(&ram_of(64 * MIB), &spec).unwrap_err().to_string(), "initrd is empty");
}

#[test]
fn command_line_longer_than_the_kernel_takes_is_refused() {
    let kernel = BzImageBuilder { cmdline_size: 5, ..Default::default() }.build();
    assert!(load(&ram_of(64 * MIB), &spec(&kernel, None, "12345")).is_ok());
    let error = load(&ram_of(64 * MIB), &spec(&kernel, None, "123456")).unwrap_err();
    assert!(matches!(error, Error::CmdlineTooLong { len: 6, limit: 5 }));
}

#[test]
fn initrd_of_a_large_guest_stays_below_the_kernels_limit() {
    let ram = ram_of(6 << 30);
    let state = load(&ram, &spec(&BzImageBuilder::default().build(), Some(&[7; 4096]), "")).unwrap();
    let zero_page: boot_params = ram.read_obj(GuestAddress(state.rsi)).unwrap();
    let header = zero_page.hdr;
    assert_eq!({ header.ramdisk_image }, 0x7FFF_F000);
    assert_eq!(zero_page.e820_entries, 6);
}

#[test]
fn initrd_above_4_gib_has_its_high_half_in_the_zero_page() {
    let ranges = [(GuestAddress(0), 64 << 20), (GuestAddress(4 << 30), 64 << 20)];
    let ram = GuestMemoryMmap::from_ranges(&ranges).unwrap();
    let kernel = BzImageBuilder { xloadflags: 3, init_size: 40 << 20, ..Default::default() }.build();
    let initrd = vec![7; 32 << 20];

    let state = load(&ram, &spec(&kernel, Some(&initrd), "")).unwrap();

    let zero_page: boot_params = ram.read_obj(GuestAddress(state.rsi)).unwrap();
    let header = zero_page.hdr;
    assert_eq!(({ header.ramdisk_image }, zero_page.ext_ramdisk_image), (32 << 20, 1));
    assert_eq!(({ header.ramdisk_size }, zero_page.ext_ramdisk_size), (32 << 20, 0));
    assert_eq!(ram.read_obj::<u8>(GuestAddress((4 << 30) + (32 << 20))).unwrap(), 7);
}

#[test]
fn initrd_that_no_memory_holds_is_refused_with_the_true_reason() {
    let large = tempfile::tempfile().unwrap();
    large.set_len(2_400_000_000).unwrap();
    let refused = |kernel: &[u8]| {
        let initrd = Some(Image { path: "initrd".into(), file: large.try_clone().unwrap() });
        load(&ram_of(2 << 30), &BootSpec { initrd, ..spec(kernel, None, "") }).unwrap_err().hint().unwrap()
    };
    let (old, new) = (BzImageBuilder::default(), BzImageBuilder { xloadflags: 3, ..Default::default() });

    let (old, new) = (refused(&old.build()), refused(&new.build()));

    assert!(old.starts_with("More memory does not help"), "{old}");
    assert!(new.starts_with("Give the guest more memory (at least 2313 MiB"), "{new}");
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let _ = load(&ram_of(2 * MIB), &spec(&bytes, None, ""));
    }

    #[test]
    fn arbitrary_elf_headers_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 64..4096)) {
        bytes[..6].copy_from_slice(b"\x7FELF\x02\x01");
        bytes[16..20].copy_from_slice(&[2, 0, 62, 0]);
        let phnum = bytes[56] % 8;
        bytes[54..58].copy_from_slice(&[56, 0, phnum, 0]);
        bytes[33..40].fill(0);
        let _ = load(&ram_of(2 * MIB), &spec(&bytes, None, ""));
    }

    #[test]
    fn damaged_bzimage_never_panics(changes in prop::collection::vec((0x1F1_usize..0x26C, any::<u8>()), 1..20)) {
        let mut bytes = BzImageBuilder::default().build();
        for (offset, value) in changes {
            bytes[offset] = value;
        }
        let _ = load(&ram_of(32 * MIB), &spec(&bytes, Some(&[1; 100]), "quiet"));
    }

    #[test]
    fn damaged_elf_never_panics(changes in prop::collection::vec((16_usize..220, any::<u8>()), 1..20)) {
        let mut bytes = ElfBuilder::with_pvh_entry(0x20_0000).build();
        for (offset, value) in changes {
            bytes[offset] = value;
        }
        let _ = load(&ram_of(4 * MIB), &spec(&bytes, Some(&[1; 100]), "quiet"));
    }

    #[test]
    fn arbitrary_notes_never_panic(notes in prop::collection::vec(any::<u8>(), 0..200)) {
        let kernel = ElfBuilder { notes: vec![notes], ..Default::default() }.build();
        let _ = load(&ram_of(4 * MIB), &spec(&kernel, None, ""));
    }
}
