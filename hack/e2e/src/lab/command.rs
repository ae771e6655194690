//! A command that runs to its end somewhere in a laboratory.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::lab::init::in_thread;

/// Seconds after which a command is stopped.
const LIMIT: &str = "60";

/// Runs a command, from a thread of its own that first goes where `enter` leads; returns what
/// it prints. `runner` is a program there that becomes its arguments; `place` is for messages.
pub(crate) fn check(
    argv: &[&str],
    place: &str,
    runner: Option<&str>,
    enter: impl FnOnce() -> Result<()> + Send,
) -> Result<String> {
    let line: Vec<&str> = runner.into_iter().chain(["timeout", LIMIT]).collect();
    let mut command = Command::new(line[0]);
    command
        .args(&line[1..])
        .args(argv)
        .current_dir("/")
        .stdin(Stdio::null());
    let output = in_thread(|| {
        enter()?;
        Ok(command.output()?)
    });
    let output = output.with_context(|| format!("run {argv:?} in {place}"))?;
    ensure!(
        output.status.success(),
        "{argv:?} in {place}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
