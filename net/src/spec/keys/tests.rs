use std::fmt::Write;
use std::path::Path;

use super::*;
use crate::spec::NetSpec;

/// Set to write the page instead of comparing it.
const UPDATE: &str = "UPDATE_DOCS";

/// The reference page.
fn page() -> String {
    let mut text = "# Keys of `--net`\n\n\
        <!-- Generated from net/src/spec/keys.rs by: UPDATE_DOCS=1 cargo test -p net --lib reference_page -->\n\n\
        `minivmm --help-net` prints this list, `minivmm --help-net KEY` one entry of it.\n\
        [networking.md](networking.md) explains the modes.\n\n\
        | mode | |\n|---|---|\n"
        .to_owned();
    for mode in MODES {
        writeln!(text, "| [`{}`](networking.md#{}) | {} |", mode.usage, anchor(mode.name), mode.help).unwrap();
    }
    for (title, keys) in groups() {
        writeln!(text, "\n## Keys of {title}").unwrap();
        for key in keys {
            writeln!(text, "\n### {}\n\n`{}={}`\n", key.name, key.name, key.value).unwrap();
            fill(&mut text, &format!("{}. {}", key.help, stop(key.doc)));
            writeln!(text, "\n- Default: {}", key.default).unwrap();
            if !key.needs.is_empty() {
                writeln!(text, "- Needs: `{}`", key.needs).unwrap();
            }
            writeln!(text, "- Example: `{}={}`", key.name, key.example).unwrap();
        }
    }
    text
}

/// `text` with a full stop.
fn stop(text: &str) -> String {
    if text.ends_with('.') { text.to_owned() } else { format!("{text}.") }
}

/// Headings of networking.md that are not the mode's own name.
fn anchor(mode: &str) -> &str {
    if matches!(mode, "tap" | "fd") { "tap-and-fd" } else { mode }
}

/// Adds a paragraph with lines of at most 120 columns.
fn fill(page: &mut String, text: &str) {
    let mut column = 0;
    for word in text.split_whitespace() {
        let width = word.chars().count();
        if column > 0 && column + 1 + width > 120 {
            page.push('\n');
            column = 0;
        }
        if column > 0 {
            page.push(' ');
            column += 1;
        }
        page.push_str(word);
        column += width;
    }
    page.push('\n');
}

#[test]
fn reference_page_is_that_of_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/net-keys.md");
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == page(),
        "docs/net-keys.md is stale: {UPDATE}=1 cargo test -p net --lib reference_page writes it anew"
    );
}

#[test]
fn every_key_is_in_one_group() {
    for key in KEYS {
        assert_eq!(
            groups().flat_map(|(_, keys)| keys).filter(|other| other.name == key.name).count(),
            1,
            "{}",
            key.name
        );
    }
}

#[test]
fn every_example_is_read_in_each_of_its_modes_and_needs_what_it_says() {
    for key in KEYS {
        for mode in key.modes {
            let opening = match *mode {
                "nat" | "host" => (*mode).to_owned(),
                "fd" if key.name == "queues" => "fd=3:4".to_owned(),
                "fd" => "fd=3".to_owned(),
                mode => format!("{mode}=x0"),
            };
            let item = format!("{}={}", key.name, key.example);
            let alone = format!("{opening},{item}");
            let whole = if key.needs.is_empty() { alone.clone() } else { format!("{opening},{},{item}", key.needs) };
            let spec = whole.parse::<NetSpec>().unwrap_or_else(|error| panic!("{whole}: {error}"));
            // A default of a mode is not printed.
            let is_default = key.name == "antispoof" && *mode != "bridge";
            assert!(is_default || spec.to_string().contains(&format!(",{}=", key.name)), "{whole} became {spec}");
            assert!(key.needs.is_empty() || alone.parse::<NetSpec>().is_err(), "{alone} needs nothing");
        }
    }
}

#[test]
fn modes_are_suggested_for_words_that_are_close_and_for_no_others() {
    for (text, mode) in [
        ("brige", Some("bridge=NAME")),
        ("bridg", Some("bridge=NAME")),
        ("net", Some("nat[=NAME]")),
        ("macvlan", Some("macvtap=IFACE")),
        ("hsot", None),
        ("br0", None),
        ("user", None),
        ("x", None),
        ("", None),
    ] {
        assert_eq!(nearest_mode(text), mode, "{text}");
    }
}

#[test]
fn help_has_every_name_and_each_has_a_text() {
    let text = help();
    for name in names() {
        assert!(text.contains(&format!("  {name}")), "{name}");
        assert!(explain(name).unwrap().contains(name), "{name}");
    }
    assert_eq!(explain("colour"), None);
    let longest = text.lines().max_by_key(|line| line.len()).unwrap();
    assert!(longest.len() <= 120, "{longest}");
}
