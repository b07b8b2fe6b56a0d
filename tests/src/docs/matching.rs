//! Output against what a page shows of it, with `...` for what differs from run to run.

/// Stands for any text of a line and, alone, for any lines.
const ANYTHING: &str = "...";

/// Returns whether `shown` is what `printed` says.
pub(super) fn lines_match(shown: &[&str], printed: &[&str]) -> bool {
    match (shown.split_first(), printed.split_first()) {
        (None, None) => true,
        (Some((&ANYTHING, rest)), _) => (0..=printed.len()).any(|skipped| lines_match(rest, &printed[skipped..])),
        (Some((line, rest)), Some((text, others))) => line_matches(line, text) && lines_match(rest, others),
        (Some(_), None) | (None, Some(_)) => false,
    }
}

fn line_matches(shown: &str, printed: &str) -> bool {
    let printed = printed.trim_end();
    let Some((beginning, rest)) = shown.split_once(ANYTHING) else { return shown.trim_end() == printed };
    let Some(mut left) = printed.strip_prefix(beginning) else { return false };
    let mut pieces: Vec<&str> = rest.split(ANYTHING).collect();
    let Some(end) = pieces.pop() else { return true };
    for piece in pieces {
        let Some((_, behind)) = left.split_once(piece) else { return false };
        left = behind;
    }
    left.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_stand_for_text_and_for_lines() {
        for (shown, printed, same) in [
            ("a", "a", true),
            ("a", "b", false),
            ("a...", "a and more", true),
            ("a...z", "a to z", true),
            ("a...z", "a to y", false),
            ("a...m...z", "a m z", true),
            ("a...m...z", "a z", false),
            ("a...a", "a", false),
            ("...\nb", "a\na\nb", true),
            ("...\nb", "b", true),
            ("a\n...", "a", true),
            ("a\n...\nc\n...", "a\nb\nc", true),
            ("a", "a\nb", false),
            ("", "a", false),
            ("...", "", true),
        ] {
            let [shown_lines, printed_lines] = [shown, printed].map(|text| text.lines().collect::<Vec<_>>());
            assert_eq!(lines_match(&shown_lines, &printed_lines), same, "{shown:?} {printed:?}");
        }
    }
}
