//! What the documents refer to exists: files by links, tests by name.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use highwire_e2e::checkout;

const DOCUMENTS: [&str; 6] = [
    "README.md",
    "docs/external.md",
    "docs/monitoring.md",
    "agent/README.md",
    "controller/README.md",
    "hack/e2e/PEERS.md",
];

/// The targets of Markdown links that are paths.
fn linked(text: &str) -> impl Iterator<Item = &str> {
    let targets = text
        .match_indices("](")
        .map(|(at, found)| &text[at + found.len()..]);
    targets
        .filter_map(|rest| rest.split([')', '#']).next())
        .filter(|target| !target.contains("://") && !target.is_empty())
}

/// The words between backticks.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    let parts = line.split('`').enumerate();
    parts.filter_map(|(index, part)| (index % 2 == 1).then_some(part))
}

/// The source of the cluster tests in `<file>.rs`, whichever folder it is in.
fn source(file: &str) -> Option<String> {
    let tests = checkout().join("hack/e2e/tests/e2e");
    ["each_mode", "mixed", "node"].iter().find_map(|folder| {
        let path = tests.join(folder).join(file).with_extension("rs");
        fs::read_to_string(path).ok()
    })
}

#[test]
fn links_lead_somewhere() -> Result<()> {
    let root = checkout();
    for document in DOCUMENTS {
        let path = root.join(document);
        let text = fs::read_to_string(&path).with_context(|| document.to_owned())?;
        let folder = path.parent().map(PathBuf::from).unwrap_or_default();
        for target in linked(&text) {
            ensure!(folder.join(target).exists(), "{document} links to {target}");
        }
    }
    Ok(())
}

#[test]
fn tests_that_are_named_are_there() -> Result<()> {
    let text = fs::read_to_string(checkout().join("hack/e2e/PEERS.md"))?;
    let mut named = 0;
    for row in text.lines().filter(|line| line.starts_with("| ")) {
        let covered_by = row.rsplit(" | ").next().unwrap_or_default();
        let mut current = None;
        for word in quoted(covered_by) {
            if let Some(found) = source(word) {
                current = Some((word, found));
            } else if word.matches('_').count() >= 2 {
                let (file, found) = current
                    .as_ref()
                    .with_context(|| format!("no file: {row}"))?;
                let there = found.contains(&format!("fn {word}("));
                ensure!(there, "{file} has no test {word}");
                named += 1;
            }
        }
    }
    ensure!(
        named > 40,
        "the table is not read as it is written: {named} tests found"
    );
    Ok(())
}
