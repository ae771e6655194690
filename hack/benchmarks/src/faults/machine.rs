//! What else the machine did meanwhile.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use highwire_e2e::Netns;

/// Counters of the machine and of a client's namespace.
pub(crate) struct Watched {
    client: Netns,
    begun: Instant,
    processors: (f64, f64),
    repeated: u64,
}

impl Watched {
    /// From now on.
    pub(crate) fn new(client: &Netns) -> Result<Self> {
        Ok(Self {
            client: client.clone(),
            begun: Instant::now(),
            processors: processors()?,
            repeated: repeated(client)?,
        })
    }

    /// A sentence.
    pub(crate) fn words(&self) -> Result<String> {
        let (busy, all) = processors()?;
        let share = (busy - self.processors.0) / (all - self.processors.1).max(1.0);
        let loads = fs::read_to_string("/proc/loadavg").context("read /proc/loadavg")?;
        let loads: Vec<&str> = loads.split_whitespace().take(3).collect();
        Ok(format!(
            "It took {:.0} s. The machine's processors were busy {:.0} % of that time with all that \
             ran on it, other work included; its load averages were {} at the end. The client's \
             kernel sent {} TCP segments again.",
            self.begun.elapsed().as_secs_f64(),
            share * 100.0,
            loads.join(", "),
            repeated(&self.client)? - self.repeated,
        ))
    }
}

/// Ticks in which the processors were busy, and all ticks (proc(5), /proc/stat).
fn processors() -> Result<(f64, f64)> {
    let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let line = text.lines().next().unwrap_or_default();
    let ticks = line.split_whitespace().skip(1).take(8);
    let ticks: Vec<f64> = ticks.map(|tick| tick.parse().unwrap_or(0.0)).collect();
    let all: f64 = ticks.iter().sum();
    // The fourth and fifth are idle, and idle while a disk works.
    let idle: f64 = ticks.iter().skip(3).take(2).sum();
    Ok((all - idle, all))
}

/// `RetransSegs` of that namespace (RFC 4022), both families.
fn repeated(netns: &Netns) -> Result<u64> {
    let text = netns.run(|| fs::read_to_string("/proc/thread-self/net/snmp"));
    let text = text.context("read /proc/net/snmp")?;
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (
        lines.next().unwrap_or_default(),
        lines.next().unwrap_or_default(),
    );
    let mut both = names.split_whitespace().zip(values.split_whitespace());
    let found = both.find(|(name, _)| *name == "RetransSegs");
    found
        .and_then(|(_, value)| value.parse().ok())
        .context("/proc/net/snmp has no RetransSegs")
}
