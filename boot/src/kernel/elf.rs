//! ELF kernels: `vmlinux` and whatever else follows the PVH or the 64-bit Linux convention.
//!
//! Segments are loaded to their physical addresses. A kernel with the Xen note `PHYS32_ENTRY` (Xen
//! `include/public/elfnote.h`) starts there in 32-bit mode; any other starts at its ELF entry in 64-bit mode.
//!
//! linux-loader's loader is not used: it takes 32-bit and foreign files for 64-bit ones, overflows on hostile
//! note segments, and lets a second note segment hide the PVH note of the first. Its structures are.

use super::Span;
use crate::Error;
use crate::source::Source;
use linux_loader::elf::{
    EI_CLASS, EI_DATA, ELFCLASS32, ELFCLASS64, ELFDATA2LSB, EM_386, EM_AARCH64, EM_ARM, EM_LOONGARCH, EM_PPC64,
    EM_RISCV, EM_S390, EM_X86_64, ET_DYN, ET_EXEC, Elf64_Ehdr, Elf64_Phdr, PT_INTERP, PT_LOAD, PT_NOTE,
};
use vm_memory::{ByteValued, GuestMemoryMmap};

/// Program headers that are looked at. `vmlinux` has five; the bound keeps a hostile file from costing memory.
const MAX_PROGRAM_HEADERS: u16 = 128;
/// Bytes of notes that are looked at in one segment. `vmlinux` has about 500.
const MAX_NOTE_BYTES: u64 = 64 << 10;
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const PHYS32_ENTRY: u32 = 18;
const XEN_NOTE_NAME: &[u8] = b"Xen\0";

/// An ELF kernel with consistent headers.
#[derive(Debug)]
pub(crate) struct Elf {
    segments: Vec<Segment>,
    span: Span,
    entry: u64,
    pvh: bool,
}

/// A loadable segment; file range and physical range are known not to wrap.
#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    vaddr: u64,
    paddr: u64,
    file_len: u64,
    mem_len: u64,
}

impl Elf {
    /// Checks the headers of a file that starts with the ELF magic.
    pub(super) fn parse(source: &Source<'_>) -> Result<Self, Error> {
        let header = read_header(source)?;
        let mut segments = Vec::new();
        let mut pvh_entry = None;
        for phdr in read_program_headers(source, &header)? {
            match phdr.p_type {
                PT_LOAD if phdr.p_memsz > 0 => segments.push(Segment::new(source, &phdr)?),
                // A program of the host.
                PT_INTERP => return Err(bad_elf(source, "it is a program that needs an operating system")),
                PT_NOTE if pvh_entry.is_none() => pvh_entry = read_pvh_entry(source, &phdr)?,
                _ => {}
            }
        }
        segments.sort_by_key(|segment| segment.paddr);
        // Each byte of guest memory is then loaded at most once, however many segments name the same part of the file.
        if segments.windows(2).any(|pair| pair[0].end() > pair[1].paddr) {
            return Err(bad_elf(source, "its segments overlap"));
        }
        let start = segments.iter().map(|segment| segment.paddr).min();
        let end = segments.iter().map(Segment::end).max();
        let (Some(start), Some(end)) = (start, end) else {
            return Err(bad_elf(source, "it has nothing to load"));
        };
        let entry = match pvh_entry {
            Some(entry) => segments.iter().any(|segment| segment.holds(u64::from(entry))).then_some(u64::from(entry)),
            None => physical_entry(&segments, header.e_entry),
        };
        let Some(entry) = entry else {
            return Err(bad_elf(source, "its entry is outside of what it loads"));
        };
        Ok(Self { segments, span: Span { start, end }, entry, pvh: pvh_entry.is_some() })
    }

    /// Copies the segments. What a segment has in memory beyond its file content stays as it is: guest memory is
    /// zero at reset.
    pub(super) fn load(&self, ram: &GuestMemoryMmap, source: &Source<'_>) -> Result<(), Error> {
        for segment in self.segments.iter().filter(|segment| segment.file_len > 0) {
            source.copy_to(ram, segment.paddr, segment.offset, segment.file_len)?;
        }
        Ok(())
    }

    pub(super) fn span(&self) -> Span {
        self.span
    }

    pub(super) fn has_pvh_entry(&self) -> bool {
        self.pvh
    }

    /// Guest physical address of the entry: the PVH one if there is one.
    pub(crate) fn entry(&self) -> u64 {
        self.entry
    }
}

impl Segment {
    fn new(source: &Source<'_>, phdr: &Elf64_Phdr) -> Result<Self, Error> {
        if phdr.p_filesz > phdr.p_memsz {
            return Err(bad_elf(source, "a segment is longer in the file than in memory"));
        }
        if phdr.p_paddr.checked_add(phdr.p_memsz).is_none() {
            return Err(bad_elf(source, "a segment is beyond all memory"));
        }
        source.check_len(phdr.p_offset.saturating_add(phdr.p_filesz))?;
        Ok(Self {
            offset: phdr.p_offset,
            vaddr: phdr.p_vaddr,
            paddr: phdr.p_paddr,
            file_len: phdr.p_filesz,
            mem_len: phdr.p_memsz,
        })
    }

    fn end(&self) -> u64 {
        self.paddr + self.mem_len
    }

    fn holds(&self, paddr: u64) -> bool {
        (self.paddr..self.end()).contains(&paddr)
    }
}

/// The entry as a physical address. `vmlinux` states a physical one; a program linked in the usual way a virtual one.
fn physical_entry(segments: &[Segment], entry: u64) -> Option<u64> {
    if segments.iter().any(|segment| segment.holds(entry)) {
        return Some(entry);
    }
    segments.iter().find_map(|segment| {
        let offset = entry.checked_sub(segment.vaddr)?;
        (offset < segment.mem_len).then(|| segment.paddr + offset)
    })
}

fn read_header(source: &Source<'_>) -> Result<Elf64_Ehdr, Error> {
    let mut header = Elf64_Ehdr::default();
    let len = source.read_start(header.as_mut_slice())?;
    // The class stands in front of all that differs between the classes, so a short 32-bit file is called that.
    if len > EI_CLASS && header.e_ident[EI_CLASS] == ELFCLASS32 {
        return Err(Error::Elf32 { path: source.path() });
    }
    source.check_len(size_of::<Elf64_Ehdr>() as u64)?;
    if header.e_ident[EI_CLASS] != ELFCLASS64 {
        return Err(bad_elf(source, "it is neither 32-bit nor 64-bit"));
    }
    if header.e_ident[EI_DATA] != ELFDATA2LSB {
        return Err(Error::ForeignMachine { path: source.path(), machine: "a big-endian processor" });
    }
    if header.e_machine != EM_X86_64 {
        return Err(Error::ForeignMachine { path: source.path(), machine: machine_name(header.e_machine) });
    }
    if header.e_type != ET_EXEC && header.e_type != ET_DYN {
        return Err(bad_elf(source, "it is not linked"));
    }
    Ok(header)
}

fn machine_name(machine: u16) -> &'static str {
    match machine {
        EM_386 => "32-bit x86",
        EM_AARCH64 => "arm64",
        EM_ARM => "arm",
        EM_LOONGARCH => "LoongArch",
        EM_PPC64 => "64-bit POWER",
        EM_RISCV => "RISC-V",
        EM_S390 => "s390",
        _ => "another processor",
    }
}

fn read_program_headers(source: &Source<'_>, header: &Elf64_Ehdr) -> Result<Vec<Elf64_Phdr>, Error> {
    if header.e_phnum == 0 {
        return Err(bad_elf(source, "it has nothing to load"));
    }
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() {
        return Err(bad_elf(source, "its program headers have an unknown size"));
    }
    if header.e_phnum > MAX_PROGRAM_HEADERS {
        return Err(bad_elf(source, "it has too many program headers"));
    }
    let size = u64::from(header.e_phentsize);
    let mut program_headers = Vec::with_capacity(usize::from(header.e_phnum));
    for i in 0..u64::from(header.e_phnum) {
        let mut phdr = Elf64_Phdr::default();
        source.read_at(phdr.as_mut_slice(), header.e_phoff.saturating_add(i * size))?;
        program_headers.push(phdr);
    }
    Ok(program_headers)
}

/// Looks for the PVH entry in one note segment.
fn read_pvh_entry(source: &Source<'_>, phdr: &Elf64_Phdr) -> Result<Option<u32>, Error> {
    if phdr.p_filesz > MAX_NOTE_BYTES {
        return Err(bad_elf(source, "its notes are too long"));
    }
    let len = usize::try_from(phdr.p_filesz).map_err(|_| bad_elf(source, "its notes are too long"))?;
    let mut notes = vec![0; len];
    source.read_at(&mut notes, phdr.p_offset)?;
    // Notes are padded to 4 bytes, except in segments that say 8.
    let align = if phdr.p_align == 8 { 8 } else { 4 };
    let Some(descriptor) = find_note(&notes, align, XEN_NOTE_NAME, PHYS32_ENTRY) else {
        return Ok(None);
    };
    // Linux writes 4 bytes or 8, with the same low half.
    let bytes = descriptor.first_chunk::<4>().ok_or_else(|| bad_elf(source, "its PVH note has no address"))?;
    Ok(Some(u32::from_le_bytes(*bytes)))
}

/// The descriptor of the first note with this name and type. Stops at the first note that runs past the end.
fn find_note<'a>(mut notes: &'a [u8], align: usize, name: &[u8], kind: u32) -> Option<&'a [u8]> {
    loop {
        let (name_len, rest) = split_u32(notes)?;
        let (descriptor_len, rest) = split_u32(rest)?;
        let (note_kind, rest) = split_u32(rest)?;
        // The name starts behind the 12 bytes of header; the padding counts from the start of the note.
        let descriptor_start = 12usize.checked_add(usize::try_from(name_len).ok()?)?.checked_next_multiple_of(align)?;
        let descriptor_end = descriptor_start.checked_add(usize::try_from(descriptor_len).ok()?)?;
        let note_name = rest.get(..usize::try_from(name_len).ok()?)?;
        let descriptor = notes.get(descriptor_start..descriptor_end)?;
        if note_name == name && note_kind == kind {
            return Some(descriptor);
        }
        notes = notes.get(descriptor_end.checked_next_multiple_of(align)?..)?;
    }
}

fn split_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*head), rest))
}

fn bad_elf(source: &Source<'_>, reason: &'static str) -> Error {
    Error::BadElf { path: source.path(), reason }
}

#[cfg(test)]
mod tests {
    use super::super::Kernel;
    use super::*;
    use crate::tests::{ElfBuilder, image, note};

    fn parse(bytes: &[u8]) -> Result<Elf, Error> {
        let image = image(bytes);
        match Kernel::parse(&Source::new(&image).unwrap())? {
            Kernel::Pvh(kernel) | Kernel::Elf64(kernel) => Ok(kernel),
            other => panic!("not an ELF kernel: {other:?}"),
        }
    }

    fn refusal(bytes: &[u8]) -> String {
        parse(bytes).unwrap_err().to_string()
    }

    #[test]
    fn elf_without_note_starts_at_its_entry() {
        let elf = parse(&ElfBuilder::default().build()).unwrap();
        assert!(!elf.has_pvh_entry());
        assert_eq!(elf.entry(), 0x20_0010);
        assert_eq!(elf.span(), Span { start: 0x20_0000, end: 0x20_3000 });
    }

    #[test]
    fn virtual_entry_is_translated() {
        let elf = parse(&ElfBuilder { entry: 0xFFFF_FFFF_8000_0020, ..Default::default() }.build()).unwrap();
        assert_eq!(elf.entry(), 0x20_0020);
    }

    #[test]
    fn pvh_note_of_four_or_eight_bytes_is_found() {
        for descriptor in [&0x20_0004_u32.to_le_bytes()[..], &0x20_0004_u64.to_le_bytes()[..]] {
            let notes = [note(b"GNU\0", 3, b"build id bytes"), note(b"Xen\0", 18, descriptor)].concat();
            let elf = parse(&ElfBuilder { notes: vec![notes], ..Default::default() }.build()).unwrap();
            assert!(elf.has_pvh_entry());
            assert_eq!(elf.entry(), 0x20_0004);
        }
    }

    #[test]
    fn second_note_segment_does_not_hide_the_pvh_note() {
        let notes = vec![note(b"Xen\0", 18, &0x20_0004_u32.to_le_bytes()), note(b"GNU\0", 1, b"abcd")];
        assert!(parse(&ElfBuilder { notes, ..Default::default() }.build()).unwrap().has_pvh_entry());
    }

    #[test]
    fn note_of_another_owner_with_the_same_type_is_no_pvh_note() {
        let notes = vec![note(b"GNU\0", 18, &0x20_0004_u32.to_le_bytes())];
        assert!(!parse(&ElfBuilder { notes, ..Default::default() }.build()).unwrap().has_pvh_entry());
    }

    #[test]
    fn pvh_note_without_address_is_refused() {
        let notes = vec![note(b"Xen\0", 18, b"ab")];
        let text = refusal(&ElfBuilder { notes, ..Default::default() }.build());
        assert_eq!(text, "kernel is an ELF file that cannot be started: its PVH note has no address");
    }

    #[test]
    fn note_that_runs_past_the_end_is_ignored() {
        let mut bytes = note(b"Xen\0", 18, &[0; 4]);
        bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(!parse(&ElfBuilder { notes: vec![bytes], ..Default::default() }.build()).unwrap().has_pvh_entry());
    }

    #[test]
    fn notes_without_end_are_refused() {
        let notes = vec![vec![0; usize::try_from(MAX_NOTE_BYTES).unwrap() + 1]];
        assert!(refusal(&ElfBuilder { notes, ..Default::default() }.build()).ends_with("its notes are too long"));
    }

    #[test]
    fn entry_outside_of_the_segments_is_refused() {
        let text = refusal(&ElfBuilder { entry: 0x10, ..Default::default() }.build());
        assert!(text.ends_with("its entry is outside of what it loads"));
        let notes = vec![note(b"Xen\0", 18, &0x10_u32.to_le_bytes())];
        let text = refusal(&ElfBuilder { notes, ..Default::default() }.build());
        assert!(text.ends_with("its entry is outside of what it loads"));
    }

    #[test]
    fn elf32_is_refused_also_when_short() {
        let bytes = ElfBuilder { class: 1, ..Default::default() }.build();
        assert_eq!(refusal(&bytes), "kernel is a 32-bit ELF file");
        assert_eq!(refusal(&bytes[..5]), "kernel is a 32-bit ELF file");
    }

    #[test]
    fn elf_for_another_machine_is_refused_by_name() {
        let text = refusal(&ElfBuilder { machine: EM_AARCH64, ..Default::default() }.build());
        assert_eq!(text, "kernel is an ELF file for arm64, not for x86-64");
        let text = refusal(&ElfBuilder { data: 2, ..Default::default() }.build());
        assert_eq!(text, "kernel is an ELF file for a big-endian processor, not for x86-64");
    }

    #[test]
    fn program_of_the_host_is_refused() {
        let mut bytes =
            ElfBuilder { notes: vec![b"/lib64/ld-linux-x86-64.so.2\0".to_vec()], ..Default::default() }.build();
        bytes[64..68].copy_from_slice(&PT_INTERP.to_le_bytes());
        assert!(refusal(&bytes).ends_with("it is a program that needs an operating system"));
    }

    #[test]
    fn object_file_is_refused() {
        assert!(refusal(&ElfBuilder { kind: 1, ..Default::default() }.build()).ends_with("it is not linked"));
    }

    #[test]
    fn program_headers_out_of_bounds_are_refused() {
        let builder = ElfBuilder::default();
        assert!(refusal(&builder.with_phnum(0)).ends_with("it has nothing to load"));
        assert!(refusal(&builder.with_phnum(0xFFFF)).ends_with("it has too many program headers"));
        assert!(matches!(parse(&builder.with_phoff(u64::MAX)), Err(Error::Truncated { .. })));
    }

    #[test]
    fn segment_out_of_bounds_is_refused() {
        let error = parse(&ElfBuilder { paddr: u64::MAX, ..Default::default() }.build()).unwrap_err();
        assert!(matches!(error, Error::BadElf { reason: "a segment is beyond all memory", .. }));
        let error = parse(&ElfBuilder { mem_len: 1, ..Default::default() }.build()).unwrap_err();
        assert!(matches!(error, Error::BadElf { reason: "a segment is longer in the file than in memory", .. }));
    }

    #[test]
    fn segments_that_overlap_are_refused() {
        let mut bytes = ElfBuilder { notes: vec![vec![0; 4]], ..Default::default() }.build();
        bytes.copy_within(120..176, 64);
        assert!(refusal(&bytes).ends_with("its segments overlap"));
        // The first now ends where the second begins.
        bytes[64 + 24..64 + 32].copy_from_slice(&0x1F_D000_u64.to_le_bytes());
        assert_eq!(parse(&bytes).unwrap().span(), Span { start: 0x1F_D000, end: 0x20_3000 });
    }

    #[test]
    fn truncated_elf_is_refused_at_any_length() {
        let bytes = ElfBuilder::default().build();
        for len in [5, 63, 64, 100, bytes.len() - 1] {
            assert!(matches!(parse(&bytes[..len]), Err(Error::Truncated { .. })), "length {len}");
        }
    }
}
