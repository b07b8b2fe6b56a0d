//! Links between pages: each leads to a file of the repository, and to a heading where it names one.

use super::Page;
use std::path::Path;

/// The links of `pages` that lead nowhere, as `PAGE: TARGET`. `root` is the repository.
pub fn dead_links(pages: &[Page], root: &Path) -> Vec<String> {
    let dead = |page: &Page| {
        let folder = Path::new(&page.name).parent().unwrap_or(Path::new("")).to_path_buf();
        let dead = targets(&page.text).filter(|target| !leads_somewhere(page, &folder, target, root));
        dead.map(|target| format!("{}: {target}", page.name)).collect::<Vec<_>>()
    };
    pages.iter().flat_map(dead).collect()
}

/// The targets in `](..)`, outside of fenced blocks.
fn targets(text: &str) -> impl Iterator<Item = &str> {
    let prose = text.split("\n```").step_by(2);
    prose.flat_map(|part| part.split("](").skip(1)).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target)
}

fn leads_somewhere(page: &Page, folder: &Path, target: &str, root: &Path) -> bool {
    if target.starts_with("https://") {
        return true;
    }
    let (file, heading) = target.split_once('#').unwrap_or((target, ""));
    if file.is_empty() {
        return has_heading(&page.text, heading);
    }
    match std::fs::read_to_string(root.join(folder).join(file)) {
        Ok(text) => heading.is_empty() || has_heading(&text, heading),
        Err(_) => false,
    }
}

/// Returns whether a page has a heading with this anchor: lower case, blanks as dashes, no punctuation.
fn has_heading(text: &str, anchor: &str) -> bool {
    let headings =
        text.lines().filter_map(|line| line.strip_prefix('#')).map(|line| line.trim_start_matches('#').trim());
    let mut anchors = headings.map(|heading| {
        let plain = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        plain.collect::<String>().to_lowercase().replace(' ', "-")
    });
    anchors.any(|other| other == anchor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docs::pages;
    use crate::workspace;

    #[test]
    fn links_of_the_pages_lead_somewhere() {
        assert_eq!(dead_links(&pages().unwrap(), workspace::root()), Vec::<String>::new());
    }

    #[test]
    fn link_to_no_file_or_no_heading_is_dead() {
        let text = "# One Two\n[a](nothing.md) [b](#one-two) [c](#three) [d](https://example.org)\n```\n[e](x)\n```\n";
        let page = Page { name: "docs/a.md".to_owned(), text: text.to_owned(), blocks: Vec::new() };
        assert_eq!(dead_links(&[page], workspace::root()), ["docs/a.md: nothing.md", "docs/a.md: #three"]);
    }
}
