//! What `/proc` says of a process (proc(5)): processor time and memory.

use std::fmt::Display;
use std::fs;

use anyhow::{Context, Result};

/// Ticks in a second (`USER_HZ`), the same on all architectures we build for.
pub(crate) const TICKS: f64 = 100.0;

/// Processor time in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// In user space.
    pub(crate) user: f64,
    /// In the kernel.
    pub(crate) system: f64,
    /// In user space, of its children that have ended and were waited for.
    pub(crate) children_user: f64,
    /// In the kernel, of those.
    pub(crate) children_system: f64,
}

impl Times {
    /// Of a process, by its pid or `self`.
    pub(crate) fn of(pid: impl Display) -> Result<Self> {
        let path = format!("/proc/{pid}/stat");
        let stat = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        // The second field, a name in brackets, may hold anything.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let seconds = |field: usize| -> Result<f64> {
            let ticks = fields
                .get(field)
                .and_then(|ticks| ticks.parse::<f64>().ok());
            Ok(ticks.with_context(|| format!("understand {path}"))? / TICKS)
        };
        Ok(Self {
            user: seconds(11)?,
            system: seconds(12)?,
            children_user: seconds(13)?,
            children_system: seconds(14)?,
        })
    }

    /// Its own.
    pub(crate) fn own(self) -> f64 {
        self.user + self.system
    }

    /// That of its children.
    pub(crate) fn children(self) -> f64 {
        self.children_user + self.children_system
    }
}

/// Memory of a process in MiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// What is resident.
    pub(crate) resident: f64,
    /// The most that ever was.
    pub(crate) peak: f64,
}

impl Memory {
    /// Of the process with that pid.
    pub(crate) fn of(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let mebibytes = |field: &str| -> Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let kibibytes = line.and_then(|line| line.split_whitespace().next());
            let kibibytes = kibibytes.with_context(|| format!("{path} has no {field}"))?;
            Ok(kibibytes.parse::<f64>()? / 1024.0)
        };
        Ok(Self {
            resident: mebibytes("VmRSS:")?,
            peak: mebibytes("VmHWM:")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_has_used_time_and_memory() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let (before, mut work) = (Times::of("self").unwrap().own(), 0_u64);
        while Times::of(pid).unwrap().own() <= before {
            work = std::hint::black_box(work + 1);
        }
        let memory = Memory::of(pid).unwrap();
        assert!(memory.resident > 0.0 && memory.peak >= memory.resident);
        assert!(Times::of(-1).is_err() && Memory::of(-1).is_err());
    }
}
