//! Commands that docs/operations.md tells people to type.

use std::fs;

use anyhow::{Context, Result, anyhow};

use crate::cluster::handle::checkout;

/// The three of its section on uninstalling, without `kubectl`: stop, check, delete.
pub fn uninstall() -> Result<[String; 3]> {
    let text = fs::read_to_string(checkout().join("docs/operations.md"))?;
    let section = text
        .split("\n## ")
        .find(|section| section.starts_with("Uninstall"))
        .context("docs/operations.md has no section Uninstall")?;
    let block = section.split("```").nth(1).context("no commands")?;
    let command = |line: &str| {
        let command = line.split('#').next().unwrap_or_default();
        Some(command.trim().strip_prefix("kubectl ")?.to_owned())
    };
    let commands: Vec<String> = block.lines().filter_map(command).collect();
    let three = <[String; 3]>::try_from(commands);
    three.map_err(|other| anyhow!("not what the tests know: {other:?}"))
}
