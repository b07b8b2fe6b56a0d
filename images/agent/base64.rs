//! Decoding base64 (RFC 4648 section 4). Total: any text gives bytes or `None`. Padding may be missing, and the
//! URL-safe letters (section 5) count as well, since a command line may have been written with either.

/// The bytes, or `None` for a letter outside the alphabet or a length that no encoder gives.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    for chunk in text.as_bytes().chunks(4) {
        let mut group = [0_u8; 4];
        for (sextet, letter) in group.iter_mut().zip(chunk) {
            *sextet = value(*letter)?;
        }
        let [a, b, c, d] = group;
        let bytes = [a << 2 | b >> 4, b << 4 | c >> 2, c << 6 | d];
        let count = match chunk.len() {
            4 => 3,
            3 => 2,
            2 => 1,
            _ => return None,
        };
        out.extend_from_slice(&bytes[..count]);
    }
    Some(out)
}

fn value(letter: u8) -> Option<u8> {
    Some(match letter {
        b'A'..=b'Z' => letter - b'A',
        b'a'..=b'z' => letter - b'a' + 26,
        b'0'..=b'9' => letter - b'0' + 52,
        b'+' | b'-' => 62,
        b'/' | b'_' => 63,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_vectors_decode() {
        let vectors =
            [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg", "foob"), ("Zm9vYmFy", "foobar")];
        for (text, bytes) in vectors {
            assert_eq!(decode(text).unwrap(), bytes.as_bytes(), "{text}");
        }
    }

    #[test]
    fn high_letters_decode() {
        assert_eq!(decode("+/-_").unwrap(), [0xfb, 0xff, 0xbf]);
    }

    #[test]
    fn odd_text_is_refused() {
        assert_eq!(decode("Z"), None);
        assert_eq!(decode("Zm9v!"), None);
        assert_eq!(decode("Zg==Zg=="), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_gives_an_answer(text in ".*") {
            decode(&text);
        }
    }
}
