//! Programs that do not run while something else is measured.

use anyhow::Result;
use highwire_e2e::{Cluster, Unit};
use nix::sys::signal::Signal;

/// They are stopped (`SIGSTOP`) as long as this is there.
pub(crate) struct Frozen(Vec<Unit>);

impl Frozen {
    /// Stops every kube-proxy.
    pub(crate) fn kube_proxies(cluster: &Cluster) -> Result<Self> {
        Self::all(cluster, |unit| unit.name().starts_with("kube-proxy-"))
    }

    /// Stops those programs of the cluster.
    pub(crate) fn all(cluster: &Cluster, is_meant: impl Fn(&Unit) -> bool) -> Result<Self> {
        let mut frozen = Self(Vec::new());
        for unit in Unit::list(cluster.state()) {
            if unit.is_running() && is_meant(&unit) {
                unit.signal(Signal::SIGSTOP)?;
                frozen.0.push(unit);
            }
        }
        Ok(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for unit in &self.0 {
            // One that has ended needs no signal.
            unit.signal(Signal::SIGCONT).ok();
        }
    }
}
