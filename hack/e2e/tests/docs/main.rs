//! What the documents refer to exists: files and headings by links, tests by name, every reason
//! of conditions and Events, every right, every package that runs as root.

mod markdown;
mod reasons;
mod rights;
mod supply_chain;
mod tests_named;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};
use highwire_e2e::checkout;
use markdown::{headings, links};

/// The most lines that the README may have: it leads to the documents.
const README_LINES: usize = 150;

/// Where documents are.
const FOLDERS: [&str; 6] = [
    "",
    "docs",
    "docs/benchmarks",
    "agent",
    "controller",
    "hack/e2e",
];

/// All documents, by their path in the checkout.
fn documents() -> Result<BTreeMap<PathBuf, String>> {
    let root = checkout();
    let mut found = BTreeMap::new();
    for folder in FOLDERS {
        for entry in fs::read_dir(root.join(folder)).context(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|it| it == "md") {
                let text = fs::read_to_string(&path)?;
                found.insert(path.strip_prefix(&root)?.to_owned(), text);
            }
        }
    }
    Ok(found)
}

/// The path without `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}

/// Where a link in a document leads to.
fn target(document: &Path, link: &str) -> PathBuf {
    if link.is_empty() {
        return document.to_owned();
    }
    plain(&document.parent().unwrap_or(Path::new("")).join(link))
}

#[test]
fn links_lead_somewhere() -> Result<()> {
    let (root, documents) = (checkout(), documents()?);
    for (document, text) in &documents {
        for link in links(text) {
            let at = document.display();
            let target = target(document, link.path);
            ensure!(root.join(&target).exists(), "{at} links to {}", link.path);
            let Some(anchor) = link.anchor else { continue };
            let text = documents.get(&target);
            let text = text.with_context(|| format!("{at}: #{anchor} is not in a document"))?;
            ensure!(
                headings(text).contains(anchor),
                "{at} links to #{anchor}, which is no heading of {}",
                target.display()
            );
        }
    }
    Ok(())
}

#[test]
fn the_readme_is_short_and_leads_to_every_document() -> Result<()> {
    let documents = documents()?;
    let readme = PathBuf::from("README.md");
    let lines = documents[&readme].lines().count();
    ensure!(lines <= README_LINES, "README.md has {lines} lines");
    let mut reached = BTreeSet::from([readme.clone()]);
    let mut next = vec![readme];
    while let Some(document) = next.pop() {
        for link in links(&documents[&document]) {
            let target = target(&document, link.path);
            if documents.contains_key(&target) && reached.insert(target.clone()) {
                next.push(target);
            }
        }
    }
    let lost: Vec<_> = documents
        .keys()
        .filter(|it| !reached.contains(*it))
        .collect();
    ensure!(lost.is_empty(), "no way leads from the README to {lost:?}");
    Ok(())
}

#[test]
fn every_picture_says_how_it_was_made() -> Result<()> {
    for entry in fs::read_dir(checkout().join("docs"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == "svg") {
            let text = fs::read_to_string(&path)?;
            let is_said = ["this text is the source", "Generated from"];
            let is_said = is_said.iter().any(|words| text.contains(words));
            ensure!(is_said, "{}: what is its source?", path.display());
        }
    }
    Ok(())
}

#[test]
fn every_reason_is_explained() -> Result<()> {
    let document = "docs/troubleshooting.md";
    let text = fs::read_to_string(checkout().join(document))?;
    let all = reasons::all()?;
    ensure!(
        all.len() > 40,
        "the code is not read as it is written: {all:?}"
    );
    for (reason, file) in all {
        ensure!(
            text.contains(&format!("`{reason}`")),
            "{document} does not explain {reason} of {}; if it is no reason, add it to \
             NOT_REASONS in hack/e2e/tests/docs/reasons.rs",
            file.display()
        );
    }
    Ok(())
}

#[test]
fn tests_that_are_named_are_there() -> Result<()> {
    let mut named = 0;
    for (document, text) in documents()? {
        let found = tests_named::check(&text).with_context(|| document.display().to_string())?;
        named += found;
    }
    ensure!(
        named > 120,
        "the documents are not read as they are written: {named} tests"
    );
    Ok(())
}

/// Each row of the tables of what works names a test, or says why there is none.
#[test]
fn what_works_names_its_test() -> Result<()> {
    let text = fs::read_to_string(checkout().join("docs/fields.md"))?;
    let (_, works) = text
        .split_once("\n## What works")
        .context("no such section")?;
    let rows = works.lines().filter(|line| line.starts_with("| "));
    let rows: Vec<_> = rows.filter(|row| !row.starts_with("| what ")).collect();
    ensure!(
        rows.len() > 50,
        "the tables are not read as they are written"
    );
    for row in rows {
        let shown_by = row.trim_end_matches(" |").rsplit(" | ").next();
        let shown_by = shown_by.unwrap_or_default();
        ensure!(
            shown_by.starts_with("no test") || tests_named::check(shown_by)? > 0,
            "which test shows it? {row}"
        );
    }
    Ok(())
}
