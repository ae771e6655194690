//! CPU time of a process, with that of the children it waited for.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use highwire_e2e::Unit;

use crate::proc::Times;

/// CPU seconds so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpu {
    /// Of its own threads.
    own: f64,
    /// Of children that have ended, such as runs of nft.
    children: f64,
}

impl Cpu {
    /// Reads it.
    pub(crate) fn of(unit: &Unit) -> Result<Self> {
        let pid = unit
            .pid()
            .with_context(|| format!("{} does not run", unit.name()))?;
        let times = Times::of(pid)?;
        // In nanoseconds, of every thread that is there.
        let mut own = 0.0;
        for thread in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            // It may have ended meanwhile.
            let run = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            let time = run.split_whitespace().next().unwrap_or("0");
            own += time.parse::<f64>()? / 1e9;
        }
        // Threads that have ended count in ticks only.
        Ok(Self {
            own: own.max(times.own()),
            children: times.children(),
        })
    }

    /// CPU seconds since the process began.
    pub(crate) fn total(self) -> f64 {
        self.own + self.children
    }

    /// CPU seconds since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> f64 {
        (self.total() - earlier.total()).max(0.0)
    }
}

/// The share of a core, in percent, that each of these uses during `time`.
pub(crate) async fn load<const N: usize>(units: [&Unit; N], time: Duration) -> Result<[f64; N]> {
    let read = || {
        units
            .iter()
            .map(|unit| Cpu::of(unit))
            .collect::<Result<Vec<_>>>()
    };
    let (start, before) = (Instant::now(), read()?);
    tokio::time::sleep(time).await;
    let (elapsed, after) = (start.elapsed().as_secs_f64(), read()?);
    Ok(std::array::from_fn(|index| {
        after[index].since(before[index]) / elapsed * 100.0
    }))
}
