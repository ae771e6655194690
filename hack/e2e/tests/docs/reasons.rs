//! The reasons of conditions and Events, as they stand in the code.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use highwire_e2e::checkout;

/// Words in capitals that are something else: kinds, types of addresses, states, …
const NOT_REASONS: [&str; 24] = [
    "Advertise",
    "ClientIP",
    "ConfigMap",
    "DaemonSet",
    "Deployment",
    "EndpointSlice",
    "Event",
    "ExternalLoadBalancer",
    "False",
    "InternalIP",
    "Lease",
    "LoadBalancer",
    "LoadBalancerNode",
    "Namespace",
    "Node",
    "Pod",
    "Ready",
    "ReplicaSet",
    "Secret",
    "Service",
    "ServicePort",
    "ToBeDeletedByClusterAutoscaler",
    "True",
    "Unknown",
];

/// All `.rs` files below a folder but those of tests.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        if stem.ends_with("tests") {
            continue;
        }
        if path.is_dir() {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// A word such as `NoReadyNodes`.
fn is_reason(word: &str) -> bool {
    let mut letters = word.chars();
    letters.next().is_some_and(|c| c.is_ascii_uppercase())
        && letters.next().is_some_and(|c| c.is_ascii_lowercase())
        && letters.all(|c| c.is_ascii_alphanumeric())
        && !NOT_REASONS.contains(&word)
}

/// Every reason, with a file that has it: literals in code that speaks of reasons.
pub(crate) fn all() -> Result<BTreeMap<String, PathBuf>> {
    let mut files = Vec::new();
    for folder in ["api/src", "agent/src", "controller/src"] {
        sources(&checkout().join(folder), &mut files)?;
    }
    let mut all = BTreeMap::new();
    for file in files {
        let text = fs::read_to_string(&file)?;
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        if !code.contains("eason") {
            continue;
        }
        // Attributes name columns and types.
        let is_code = |line: &&str| {
            let line = line.trim_start();
            let is_constant = line.contains("const ");
            !line.starts_with("//")
                && !line.contains("column = ")
                && (is_constant || !line.contains(" = \""))
        };
        let literals = code
            .lines()
            .filter(is_code)
            .flat_map(|line| line.split('"'));
        for word in literals.filter(|word| is_reason(word)) {
            all.insert(word.to_owned(), file.clone());
        }
    }
    Ok(all)
}
