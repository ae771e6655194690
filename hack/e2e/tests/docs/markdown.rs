//! What the tests read of Markdown.

use std::collections::{BTreeMap, BTreeSet};

/// A link to something in the checkout.
pub(crate) struct Link<'a> {
    /// The path from the document, empty for the document itself.
    pub(crate) path: &'a str,
    /// The heading.
    pub(crate) anchor: Option<&'a str>,
}

/// The lines that are not between fences.
pub(crate) fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// The links and pictures that are no addresses of the web.
pub(crate) fn links(text: &str) -> Vec<Link<'_>> {
    let mut all = Vec::new();
    for line in prose(text) {
        for (at, found) in line.match_indices("](") {
            let rest = &line[at + found.len()..];
            let target = rest.split(')').next().unwrap_or_default();
            if target.contains("://") {
                continue;
            }
            let (path, anchor) = match target.split_once('#') {
                Some((path, anchor)) => (path, Some(anchor)),
                None => (target, None),
            };
            all.push(Link { path, anchor });
        }
    }
    all
}

/// The anchors of the headings, by GitHub's rule: lower case, without punctuation, spaces
/// become hyphens, and a number follows the second of a name.
pub(crate) fn headings(text: &str) -> BTreeSet<String> {
    let mut seen = BTreeMap::<String, usize>::new();
    let headings = prose(text).filter(|line| line.starts_with('#'));
    let anchor = |line: &str| -> String {
        let words = line.trim_start_matches('#').trim().to_lowercase();
        let kept = words
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings
        .map(anchor)
        .map(|anchor| {
            let before = seen.entry(anchor.clone()).or_default();
            *before += 1;
            match *before {
                1 => anchor,
                again => format!("{anchor}-{}", again - 1),
            }
        })
        .collect()
}

/// The texts in backticks, each with what stands between it and the one before.
pub(crate) fn quoted(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut parts = text.split('`');
    std::iter::from_fn(move || Some((parts.next()?, parts.next()?)))
}

#[test]
fn anchors_are_those_of_github() {
    let text = "# A packet's path\n```\n# no\n```\n## `x`: y, z\n## It\n## It\n";
    let wanted = ["a-packets-path", "x-y-z", "it", "it-1"].map(str::to_owned);
    assert_eq!(headings(text), BTreeSet::from(wanted));
}

#[test]
fn links_are_found_outside_of_code() {
    let text = "[a](b.md#c) ![d](e.svg)\n```\n[f](g)\n```\n[h](https://i) [j](#k)\n";
    let found: Vec<_> = links(text).iter().map(|it| (it.path, it.anchor)).collect();
    let wanted = [("b.md", Some("c")), ("e.svg", None), ("", Some("k"))];
    assert_eq!(found, wanted);
}
