//! Packets need none of the programs that make the cluster: while exchanges are timed, those
//! do not run.

use anyhow::Result;
use highwire_e2e::Unit;
use nix::sys::signal::Signal;

use crate::data_path::bed::Bed;
use crate::data_path::servers::is_server;

/// Everything but the servers is stopped (`SIGSTOP`) as long as this is there.
pub(crate) struct Frozen(Vec<Unit>);

impl Frozen {
    /// Stops it.
    pub(crate) fn all_but_servers(bed: &Bed) -> Result<Self> {
        let units = Unit::list(bed.cluster.state()).into_iter();
        let mut frozen = Self(Vec::new());
        for unit in units.filter(|unit| unit.is_running() && !is_server(unit)) {
            unit.signal(Signal::SIGSTOP)?;
            frozen.0.push(unit);
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
