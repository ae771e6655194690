//! How much memory a node's processes hold.

use std::time::Duration;

use anyhow::{Context, Result};
use highwire_e2e::Cluster;

use crate::output::stats::Sample;

/// How often it is read, one second apart: kubelet and containerd work all the time.
const READINGS: usize = 9;

/// Of every process; one that ends meanwhile is left out. kB.
const SUM: &str = "cat /proc/[0-9]*/smaps_rollup 2>/dev/null | awk '$1 == \"Pss:\" { sum += $2 } END { print sum }'";

/// MiB of a node, the mean of all nodes' medians.
pub(crate) fn memory(cluster: &Cluster) -> Result<f64> {
    let nodes = cluster.nodes();
    let mut sum = 0.0;
    for node in &nodes {
        let machine = node.machine();
        let mut readings = Vec::new();
        for _ in 0..READINGS {
            let printed = machine.check(&["bash", "-c", SUM])?;
            let kilobytes: f64 = printed.trim().parse().context("a number of kB")?;
            readings.push(kilobytes / 1024.0);
            std::thread::sleep(Duration::from_secs(1));
        }
        sum += Sample::new(readings).context("no readings")?.median();
    }
    Ok(sum / nodes.len() as f64)
}
