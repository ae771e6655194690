//! Processes by pid and start time, so that one the kernel has given the pid to since is
//! never taken for it.

use std::fs;

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// When a process started, in clock ticks since the machine did.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    stat(pid).map(|(_, start_time)| start_time)
}

/// Whether the process that started then runs.
pub(crate) fn runs(pid: i32, started: u64) -> bool {
    // When it is our own child it would stay a zombie; collect it. ECHILD otherwise.
    waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)).ok();
    stat(pid)
        .is_some_and(|(state, start_time)| state != 'Z' && state != 'X' && start_time == started)
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
