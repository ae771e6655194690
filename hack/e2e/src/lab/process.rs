//! Processes by pid and start time, so that one the kernel has given the pid to since is
//! never taken for it.

use std::collections::BTreeSet;
use std::fs;
use std::process::Child;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Those of the laboratories' processes that are children of this one. An ended one has to
/// be collected by its parent, or process 1 of its PID namespace waits for that to end.
static CHILDREN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Takes a child into account that was just started: its pid, and when it started in clock
/// ticks since the machine did.
pub(crate) fn started(child: &Child) -> Result<(i32, u64)> {
    collect();
    let pid = i32::try_from(child.id()).context("pid")?;
    children().insert(pid);
    let (_, start_time) = stat(pid).context("it vanished at once")?;
    Ok((pid, start_time))
}

/// Whether the process that started then runs.
pub(crate) fn runs(pid: i32, started: u64) -> bool {
    stat(pid)
        .is_some_and(|(state, start_time)| !matches!(state, 'Z' | 'X') && start_time == started)
}

/// Collects the children that have ended.
pub(crate) fn collect() {
    children().retain(|pid| {
        let ended = waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG));
        matches!(ended, Ok(WaitStatus::StillAlive))
    });
}

fn children() -> MutexGuard<'static, BTreeSet<i32>> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// State letter and start time of a process, from `/proc/<pid>/stat`.
fn stat(pid: i32) -> Option<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name is in parentheses and may hold anything; fields follow the last one.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?.chars().next()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    Some((state, start_time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_is_found_with_its_start_time() {
        let (state, start_time) = stat(std::process::id() as i32).unwrap();
        assert!(matches!(state, 'R' | 'S'), "{state}");
        assert!(start_time > 0);
    }
}
