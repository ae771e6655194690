//! Tests that documents name: `` `folder/file.rs`: `test`, `test` ``, or, in PEERS.md,
//! `` `file`: `test` ``.

use std::fs;

use anyhow::{Context, Result, anyhow, ensure};
use highwire_e2e::checkout;

use crate::markdown::{prose, quoted};

/// Where tests are, by what a document calls the folder.
const FOLDERS: [(&str, &str); 7] = [
    ("each_mode/", "hack/e2e/tests/e2e/each_mode"),
    ("without_proxy/", "hack/e2e/tests/e2e/without_proxy"),
    ("mixed/", "hack/e2e/tests/e2e/mixed"),
    ("node/", "hack/e2e/tests/e2e/node"),
    ("cilium/", "hack/e2e/tests/e2e/cilium"),
    ("kernel/", "agent/tests/kernel"),
    ("", "hack/e2e/tests"),
];

/// The source of the tests in a file, if that is what the words name.
fn source(words: &str) -> Option<Result<String>> {
    let read = |folder: &str, file: &str| {
        let path = checkout().join(folder).join(file).with_extension("rs");
        path.exists()
            .then(|| fs::read_to_string(&path).context(words.to_owned()))
    };
    if let Some(name) = words.strip_suffix(".rs") {
        let (prefix, folder) = FOLDERS
            .iter()
            .find(|(prefix, _)| name.starts_with(prefix))?;
        let found = read(folder, &name[prefix.len()..]);
        // Without a folder it may be any file of the code.
        let missing = || (!prefix.is_empty()).then(|| Err(anyhow!("there is no {words}")));
        return found.or_else(missing);
    }
    let is_name = words.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let named = FOLDERS[..5]
        .iter()
        .find_map(|(_, folder)| read(folder, words));
    named.filter(|_| is_name)
}

/// How many files and tests the text names, all of which are there.
pub(crate) fn check(text: &str) -> Result<usize> {
    let text: Vec<&str> = prose(text).collect();
    let text = text.join("\n");
    let mut named = 0;
    let mut current: Option<(&str, String)> = None;
    for (between, words) in quoted(&text) {
        if let Some(found) = source(words) {
            current = Some((words, found?));
            named += usize::from(words.ends_with(".rs"));
            continue;
        }
        let is_list = matches!(between.trim(), ":" | ",");
        let Some((file, found)) = current.as_ref().filter(|_| is_list) else {
            current = None;
            continue;
        };
        if words.matches('_').count() >= 2 {
            let is_there = found.contains(&format!("fn {words}("));
            ensure!(is_there, "{file} has no test {words}");
            named += 1;
        }
    }
    Ok(named)
}
