//! What is checked in a quiet moment. Most often everything; while an API server fails
//! somebody, what has to go on without it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use highwire_e2e::Cluster;
use highwire_e2e::model::{Checker, Violations};

use crate::api_fault::{ApiClient, Networks};
use crate::history::{Disturbance, Operation};

/// How long the cluster may take until nothing is wrong any more. Leases, and lists that would
/// become empty, are good for 30 s and 12 s after the last fault; a watch that has fallen
/// silent is noticed after 44 s.
const SETTLE: Duration = Duration::from_secs(75);

/// After which what was waited for is printed.
const SLOW: Duration = Duration::from_secs(10);

/// For how long it is checked that nothing gets lost.
const WATCHED: Duration = Duration::from_secs(3);

/// Checks one history.
pub(crate) struct Quiet {
    checker: Checker,
    /// The worst since everything was last right.
    disturbed: Disturbance,
    agents_are_new: bool,
    /// Nodes whose agents could not reach the API server since.
    may_leave: BTreeSet<String>,
}

/// What a check was of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    Everything,
    /// That nothing was lost while an API server failed.
    WhatWasRight,
    /// Nothing: other things may be right now, but not everybody can know.
    Nothing,
}

impl Quiet {
    pub(crate) fn new(cluster: &Cluster) -> Self {
        Self {
            checker: Checker::new(cluster),
            disturbed: Disturbance::None,
            agents_are_new: false,
            may_leave: BTreeSet::new(),
        }
    }

    /// Has to know of everything that happens.
    pub(crate) fn note(&mut self, operation: &Operation, networks: &Networks) {
        self.disturbed = self.disturbed.max(operation.disturbs());
        self.agents_are_new |= matches!(operation, Operation::KillAgent { .. });
        for client in networks.faulty().keys() {
            if let ApiClient::Agent(node) = client {
                self.may_leave.insert(format!("n{node}"));
            }
        }
    }

    /// Checks what has to be right now.
    pub(crate) async fn check(&mut self, networks: &Networks) -> Result<Checked, Violations> {
        if networks.faulty().values().all(|fault| fault.is_harmless()) {
            return self.settled().await;
        }
        let is_kept = match self.disturbed {
            Disturbance::None => {
                self.checker.keeps(WATCHED, &self.may_leave).await?;
                true
            }
            Disturbance::OfTheKernel if self.agents_are_new => false,
            Disturbance::ForAMoment | Disturbance::OfTheKernel => {
                self.checker.regains(SETTLE, &self.may_leave).await?;
                true
            }
            Disturbance::Lasting => false,
        };
        Ok(if is_kept {
            Checked::WhatWasRight
        } else {
            Checked::Nothing
        })
    }

    async fn settled(&mut self) -> Result<Checked, Violations> {
        let began = Instant::now();
        self.checker.settled(SETTLE).await?;
        if began.elapsed() >= SLOW {
            print!("    slowly; at last:\n{}", self.checker.last_wrong());
        }
        self.disturbed = Disturbance::None;
        self.agents_are_new = false;
        self.may_leave.clear();
        Ok(Checked::Everything)
    }
}
