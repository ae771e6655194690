//! Processor time, from `/proc`.
//!
//! Without `CONFIG_IRQ_TIME_ACCOUNTING` the kernel charges softirq work, which is what a node
//! does for a packet here, to the process that happens to run: mostly to the client or the
//! server that sent the packet. So no counter holds the node's share alone. What is
//! comparable between paths is the whole machine's time for an exchange.

use std::fs;

use anyhow::{Context, Result};
use highwire_e2e::Unit;

use crate::proc::{TICKS, Times};

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
                of_servers += Times::of(pid)?.user;
            }
        }
        Ok(Self {
            machine: (user + nice + system + irq + softirq) / TICKS,
            softirq: softirq / TICKS,
            client: Times::of("self")?.children_user,
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
            total += Times::of(pid).map_or(0.0, |times| times.own() + times.children());
        }
    }
    Ok(total)
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
