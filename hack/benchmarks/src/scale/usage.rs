//! What the processes of the control plane use: CPU time and memory from `/proc`, and the
//! size of etcd's database from its metrics.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use highwire_e2e::{Cluster, Netns, Unit};
use serde::{Deserialize, Serialize};

use super::api_metrics::Samples;
use crate::proc::{Memory, Times};

const MIB: f64 = 1024.0 * 1024.0;

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Usage {
    /// CPU time in seconds: user and system.
    pub(super) cpu: f64,
    /// Resident memory in MiB.
    pub(super) rss: f64,
    /// The most it ever was.
    pub(super) peak: f64,
}

impl Usage {
    /// Reads it; nothing of a process that does not run.
    pub(super) fn of(unit: &Unit) -> Option<Self> {
        let pid = unit.pid()?;
        let (times, memory) = (Times::of(pid).ok()?, Memory::of(pid).ok()?);
        Some(Self {
            cpu: times.own(),
            rss: memory.resident,
            peak: memory.peak,
        })
    }

    /// The same with the CPU time since `before`; of a process that was started since, all.
    pub(super) fn since(self, before: Option<Self>) -> Self {
        let used = before.map_or(0.0, |before| before.cpu);
        let cpu = if self.cpu >= used {
            self.cpu - used
        } else {
            self.cpu
        };
        Self { cpu, ..self }
    }
}

/// The size of etcd's database in MiB: of its file, and of what is in use in it.
pub(super) fn etcd_size(cluster: &Cluster) -> Result<(f64, f64)> {
    let place: Netns = cluster.netns("cp")?;
    let to = SocketAddr::from(([127, 0, 0, 1], 2379));
    let text = place
        .run(|| highwire_e2e::lab::http::http_text(to, "/metrics", Duration::from_secs(5)))
        .context("read etcd's metrics")?;
    let samples = Samples::parse(&text);
    let size = |name: &str| samples.sum(name, &[]) / MIB;
    Ok((
        size("etcd_mvcc_db_total_size_in_bytes"),
        size("etcd_mvcc_db_total_size_in_use_in_bytes"),
    ))
}
