//! Processor time, from `/proc`.
//!
//! Without `CONFIG_IRQ_TIME_ACCOUNTING` the kernel charges softirq work, which is what a node
//! does for a packet here, to the process that happens to run: mostly to the client or the
//! server that sent the packet. So no counter holds the node's share alone. What is
//! comparable between paths is the whole machine's time for an exchange.

use std::fs;

use anyhow::{Context, Result};
use highwire_e2e::Unit;

/// Ticks in a second of `/proc` (`USER_HZ`), the same on all architectures we build for.
const TICKS: f64 = 100.0;

/// Processor time in seconds, since some moment or between two.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cpu {
    /// All processors, whatever they did but wait.
    pub(crate) machine: f64,
    /// Of that, what the kernel counts as softirq.
    pub(crate) softirq: f64,
    /// In user space of the client.
    pub(crate) client: f64,
    /// In user space of the servers.
    pub(crate) servers: f64,
}

impl Cpu {
    /// Until now. The client is whatever this process has started and waited for.
    pub(crate) fn read(servers: &[Unit]) -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let first = stat.lines().next().unwrap_or_default();
        let ticks: Vec<f64> = first
            .split_whitespace()
            .skip(1)
            .filter_map(number)
            .collect();
        // user nice system idle iowait irq softirq steal, proc(5)
        let (Some([user, nice, system]), Some([irq, softirq])) = (
            ticks.first_chunk::<3>(),
            ticks.get(5..).and_then(<[f64]>::first_chunk::<2>),
        ) else {
            anyhow::bail!("/proc/stat begins with {first:?}");
        };
        let mut of_servers = 0.0;
        for pid in servers.iter().filter_map(Unit::pid) {
            for pid in family(pid) {
                of_servers += times(&pid.to_string())?[0];
            }
        }
        Ok(Self {
            machine: (user + nice + system + irq + softirq) / TICKS,
            softirq: softirq / TICKS,
            client: times("self")?[2],
            servers: of_servers,
        })
    }

    /// From `before` until this.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            machine: self.machine - before.machine,
            softirq: self.softirq - before.softirq,
            client: self.client - before.client,
            servers: self.servers - before.servers,
        }
    }
}

/// Seconds that all processes in the PID namespace of `pid` have used, those that have ended
/// included: all processes of a cluster, for one of them.
pub(crate) fn namespace_time(pid: i32) -> Result<f64> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid"));
    let wanted = namespace(&pid.to_string()).with_context(|| format!("process {pid}"))?;
    let mut total = 0.0;
    for entry in fs::read_dir("/proc").context("read /proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str() else { continue };
        if namespace(pid).is_ok_and(|found| found == wanted) {
            // It may have ended meanwhile; then its parent has its time.
            total += times(pid).map_or(0.0, |times| times.iter().sum());
        }
    }
    Ok(total)
}

/// Seconds in user space and in the kernel: its own, then those of its children that have
/// ended and were waited for.
fn times(pid: &str) -> Result<[f64; 4]> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    // The second field, a name in brackets, may hold anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: Vec<f64> = fields
        .split_whitespace()
        .skip(11)
        .map_while(number)
        .collect();
    let ticks = ticks.first_chunk::<4>();
    let ticks = ticks.with_context(|| format!("understand {path}"))?;
    Ok(ticks.map(|ticks| ticks / TICKS))
}

/// A process and its children.
fn family(pid: i32) -> Vec<i32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(path).unwrap_or_default();
    let children = children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok());
    std::iter::once(pid).chain(children).collect()
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok()
}
