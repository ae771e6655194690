//! The list of packages in docs/supply-chain.md, beside what cargo says.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use highwire_e2e::checkout;

/// Our own packages that an agent is compiled of.
const OWN: [&str; 3] = ["highwire-agent", "highwire-api", "highwire-runtime"];

/// What they ask for.
fn asked_for() -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for package in OWN {
        let tree = [
            "tree",
            "--locked",
            "--offline",
            "--edges",
            "normal",
            "--depth",
            "1",
        ];
        let printed = Command::new(env!("CARGO"))
            .args(tree)
            .args(["--prefix", "none", "--format", "{p}", "--package", package])
            .current_dir(checkout())
            .output()?;
        let said = String::from_utf8_lossy(&printed.stderr);
        ensure!(printed.status.success(), "cargo tree {package}: {said}");
        let text = String::from_utf8(printed.stdout)?;
        let names = text.lines().filter_map(|line| line.split(' ').next());
        all.extend(names.filter(|it| !OWN.contains(it)).map(str::to_owned));
    }
    Ok(all)
}

#[test]
fn every_package_that_runs_as_root_has_its_reason() -> Result<()> {
    let text = fs::read_to_string(checkout().join("docs/supply-chain.md"))?;
    let (_, table) = text.split_once("\n| package | ").context("no such table")?;
    let rows = table.lines().take_while(|line| !line.is_empty());
    let mut listed = BTreeSet::new();
    for row in rows.filter_map(|line| line.strip_prefix("| `")) {
        let (name, reasons) = row.split_once("` | ").context(row.to_owned())?;
        let cells = reasons.split(" | ").filter(|it| !it.trim().is_empty());
        ensure!(cells.count() == 4, "something is missing: {row}");
        listed.insert(name.to_owned());
    }
    let asked_for = asked_for()?;
    ensure!(
        asked_for.len() > 20,
        "cargo says no more than {asked_for:?}"
    );
    let differing: Vec<_> = asked_for.symmetric_difference(&listed).collect();
    ensure!(
        differing.is_empty(),
        "docs/supply-chain.md lists what is not asked for, or does not list what is: {differing:?}"
    );
    Ok(())
}
