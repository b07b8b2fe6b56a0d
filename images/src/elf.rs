//! Just enough ELF to tell a program that needs no dynamic loader (System V ABI, "Program Header"). Total: any bytes
//! give an answer.

const PT_INTERP: u32 = 3;
const ELFCLASS64: u8 = 2;
const EM_X86_64: u16 = 62;

/// Returns whether these bytes are an x86-64 program that the kernel can start with nothing else in the file system.
pub(crate) fn is_static(image: &[u8]) -> bool {
    let header = || -> Option<(usize, usize, usize)> {
        let phoff = usize::try_from(u64::from_le_bytes(bytes(image, 32)?)).ok()?;
        let phentsize = usize::from(u16::from_le_bytes(bytes(image, 54)?));
        let phnum = usize::from(u16::from_le_bytes(bytes(image, 56)?));
        Some((phoff, phentsize, phnum))
    };
    let machine = bytes(image, 18).map(u16::from_le_bytes);
    if !image.starts_with(b"\x7fELF") || image.get(4) != Some(&ELFCLASS64) || machine != Some(EM_X86_64) {
        return false;
    }
    let Some((phoff, phentsize, phnum)) = header() else { return false };
    (0..phnum).all(|idx| {
        let offset = idx.checked_mul(phentsize).and_then(|below| below.checked_add(phoff));
        let kind = offset.and_then(|offset| bytes(image, offset)).map(u32::from_le_bytes);
        kind.is_some_and(|kind| kind != PT_INTERP)
    })
}

fn bytes<const N: usize>(image: &[u8], offset: usize) -> Option<[u8; N]> {
    image.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(segment_kind: u32) -> Vec<u8> {
        let mut image = vec![0_u8; 64 + 56];
        image[..5].copy_from_slice(b"\x7fELF\x02");
        image[18..20].copy_from_slice(&62_u16.to_le_bytes());
        image[32..40].copy_from_slice(&64_u64.to_le_bytes());
        image[54..56].copy_from_slice(&56_u16.to_le_bytes());
        image[56..58].copy_from_slice(&1_u16.to_le_bytes());
        image[64..68].copy_from_slice(&segment_kind.to_le_bytes());
        image
    }

    #[test]
    fn program_without_interpreter_is_static() {
        assert!(is_static(&program(1)));
    }

    #[test]
    fn program_with_interpreter_is_not() {
        assert!(!is_static(&program(PT_INTERP)));
    }

    #[test]
    fn script_and_truncated_program_are_not() {
        assert!(!is_static(b"#!/bin/sh\n"));
        assert!(!is_static(&program(1)[..66]));
    }

    proptest::proptest! {
        #[test]
        fn any_header_gives_an_answer(tail in proptest::collection::vec(0_u8..=255, 0..200)) {
            let mut image = program(1)[..20].to_vec();
            image.extend(tail);
            is_static(&image);
        }
    }
}
