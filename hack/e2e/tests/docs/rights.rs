//! The tables of rights in docs/security.md, beside the rules of deploy/.

use std::fs;

use anyhow::{Context, Result, ensure};
use highwire_e2e::checkout;
use serde_json::Value;

use crate::tests_named;

/// The files that give rights, as the document links them.
const FILES: [&str; 3] = [
    "20-rbac-agent.yaml",
    "21-rbac-controller.yaml",
    "22-rbac-edge.yaml",
];

/// The objects of files of deploy/ whose names begin so.
fn deployed(prefix: &str) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    for entry in fs::read_dir(checkout().join("deploy"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(prefix) && name.ends_with(".yaml") {
            let text = fs::read_to_string(&path)?;
            let found: Vec<Value> =
                serde_saphyr::from_multiple(&text).context(path.display().to_string())?;
            objects.extend(found);
        }
    }
    Ok(objects)
}

fn words<'a>(rule: &'a Value, field: &str) -> Vec<&'a str> {
    let all = rule[field].as_array().into_iter().flatten();
    all.filter_map(Value::as_str).collect()
}

/// The first cells of each rule's row: resource, verbs, where.
fn rows(objects: &[Value]) -> Vec<String> {
    let mut rows = Vec::new();
    for object in objects {
        let place = match object["kind"].as_str() {
            Some("ClusterRole") => "cluster",
            Some("Role") => object["metadata"]["namespace"].as_str().unwrap_or_default(),
            _ => continue,
        };
        for rule in object["rules"].as_array().into_iter().flatten() {
            let quoted = |all: Vec<&str>| {
                let all: Vec<_> = all.iter().map(|it| format!("`{it}`")).collect();
                all.join(", ")
            };
            let names = words(rule, "resourceNames");
            let of = if names.is_empty() { "" } else { " of " };
            rows.push(format!(
                "| {}{of}{} | {} | {place} | ",
                quoted(words(rule, "resources")),
                quoted(names),
                words(rule, "verbs").join(", "),
            ));
        }
    }
    rows
}

#[test]
fn every_right_has_a_row_that_names_its_test() -> Result<()> {
    let text = fs::read_to_string(checkout().join("docs/security.md"))?;
    let (_, section) = text
        .split_once("\n### Every right")
        .context("no such section")?;
    let tables: Vec<&str> = section.split("\n| resource | ").skip(1).collect();
    ensure!(tables.len() == FILES.len(), "{} tables", tables.len());
    let mut before = section.split("\n| resource | ");
    for (file, table) in FILES.iter().zip(&tables) {
        let lead = before.next().unwrap_or_default();
        ensure!(
            lead.contains(file),
            "the table of {file} does not follow its name"
        );
        let found: Vec<&str> = table
            .lines()
            .filter(|line| line.starts_with("| "))
            .collect();
        let wanted = rows(&deployed(file)?);
        ensure!(!wanted.is_empty(), "{file} is not read as it is written");
        ensure!(
            found.len() == wanted.len(),
            "{file} has {} rules, and its table {} rows",
            wanted.len(),
            found.len()
        );
        for (row, rule) in found.iter().zip(&wanted) {
            ensure!(
                row.starts_with(rule),
                "{file}: {row} is not of the rule {rule}"
            );
            ensure!(tests_named::check(row)? > 1, "which test shows it? {row}");
        }
    }
    Ok(())
}

#[test]
fn every_policy_is_explained_with_its_test() -> Result<()> {
    let text = fs::read_to_string(checkout().join("docs/security.md"))?;
    let objects = deployed("4")?;
    let is_policy = |it: &&Value| it["kind"] == "ValidatingAdmissionPolicy";
    let names = objects.iter().filter(is_policy);
    let names: Vec<_> = names
        .filter_map(|it| it["metadata"]["name"].as_str())
        .collect();
    ensure!(
        names.len() > 2,
        "deploy/ is not read as it is written: {names:?}"
    );
    for name in names {
        let said = format!("(policy `{name}`)");
        let mut rows = text.lines().filter(|line| line.contains(&said));
        ensure!(
            rows.any(|row| row.contains("`mixed/agent_policy.rs`")),
            "docs/security.md has no tested row of policy {name}"
        );
    }
    Ok(())
}
