//! What the agent reports about its node. Pure: [`writer`] writes it.

pub mod awaited;
pub mod first_slices;
mod lease;
mod objects;
pub mod writer;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use highwire_api::{
    LoadBalancerNodeStatus, ResourceVersion,
    node::{Conflict, LONGEST_HELD_BY, ProxyMode, READY},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use tracing::info;

use crate::{
    decide::{Decision, Readiness, for_report},
    metrics::{Metrics, count},
    table::kernel_table::Failure,
};

/// A node whose rules could not be changed for less than this is as ready as before:
/// the kernel has the last good ones.
const GRACE: Duration = Duration::from_secs(10);

/// The state of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The Node's UID.
    pub node_uid: String,
    /// Grows when what some Service asks for has changed; see
    /// [`crate::facts::services::Services::revision`].
    pub revision: u64,
    /// What it forwards and refuses.
    pub decision: Arc<Decision>,
    /// Every Service event up to this version is in the kernel.
    pub observed: ResourceVersion,
    /// How kube-proxy works here, if known.
    pub proxy_mode: Option<ProxyMode>,
    /// How many entrances kube-proxy has yet to program ([`awaited`]), or how many slots wait
    /// for their Service's first EndpointSlice ([`first_slices`]).
    pub awaited: usize,
}

impl Report {
    /// What to report while the kernel does not follow: what it still has. `still` says
    /// what that makes of the node now.
    #[must_use]
    pub fn behind(
        last: Option<Self>,
        still: impl FnOnce(&Decision) -> Readiness,
        failure: &Failure,
    ) -> Self {
        let brief = failure.since.elapsed() < GRACE;
        let was_well = |last: &&Self| !matches!(last.readiness(), Readiness::ApplyFailed(_));
        let well = last.as_ref().filter(was_well).filter(|_| brief);
        let readiness = match well {
            Some(last) => still(&last.decision),
            None => Readiness::ApplyFailed(failure.message.clone()),
        };
        let mut report = last.unwrap_or_default();
        Arc::make_mut(&mut report.decision).readiness = readiness;
        report
    }

    /// Whether the node forwards, and if not, why.
    #[must_use]
    pub fn readiness(&self) -> &Readiness {
        &self.decision.readiness
    }

    /// Whether the status has to be written again, given what was written last.
    /// A newer `observed` alone is no reason: the Lease carries that. Nor is another Pod of a
    /// served port: where our rules pick the Pods, each change of an endpoint would be a write
    /// of every node.
    #[must_use]
    pub fn differs_from(&self, written: &Self) -> bool {
        let (now, then) = (&self.decision, &written.decision);
        self.node_uid != written.node_uid
            || self.revision != written.revision
            || self.proxy_mode != written.proxy_mode
            || self.awaited != written.awaited
            || now.readiness != then.readiness
            || now.served != then.served
            || now.conflicts != then.conflicts
            || now.plan.addresses != then.plan.addresses
            || !now.plan.forwards.keys().eq(then.plan.forwards.keys())
    }

    /// Whether this can wait, for kube-proxy or an EndpointSlice: it says no more than which Services are served,
    /// and none of them has become ready to be advertised. One that has never waits for
    /// others, or a steady stream of new Services would hold all of them back.
    #[must_use]
    pub fn can_wait_after(&self, reported: &Self) -> bool {
        let (now, before) = (&self.decision, &reported.decision);
        self.awaited > 0
            && self.observed <= reported.observed
            && self.node_uid == reported.node_uid
            && self.proxy_mode == reported.proxy_mode
            && now.readiness == before.readiness
            && now.conflicts == before.conflicts
            && now.plan.addresses == before.plan.addresses
    }

    /// The status to write; `previous` keeps the time of an unchanged condition.
    #[must_use]
    pub fn status(&self, previous: Option<&Condition>, now: Timestamp) -> LoadBalancerNodeStatus {
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let Decision {
            plan,
            served,
            conflicts,
            ..
        } = &*self.decision;
        let (explained, refused) = for_report(conflicts);
        LoadBalancerNodeStatus {
            conditions: vec![self.condition(previous, now)],
            observed_resource_version: Some(self.observed.to_string()),
            services: count(served.len()),
            ports: count(self.ports()),
            conflict_count: count(conflicts.len()),
            conflicts: explained.iter().map(shortened).collect(),
            refused: refused.unwrap_or_default(),
            addresses: plan.addresses.iter().map(ToString::to_string).collect(),
            proxy_mode: self.proxy_mode,
        }
    }

    /// How many ports are served; one in two families is one port.
    fn ports(&self) -> usize {
        let slots = self.decision.plan.forwards.keys();
        slots.map(|slot| slot.port).collect::<BTreeSet<_>>().len()
    }

    fn condition(&self, previous: Option<&Condition>, now: Timestamp) -> Condition {
        let readiness = self.readiness();
        let status = if readiness.is_ready() {
            "True"
        } else {
            "False"
        };
        let unchanged = previous.filter(|previous| previous.status == status);
        Condition {
            type_: READY.to_owned(),
            status: status.to_owned(),
            reason: readiness.reason().to_owned(),
            message: readiness.to_string(),
            last_transition_time: unchanged
                .map_or(Time(now), |previous| previous.last_transition_time.clone()),
            observed_generation: None,
        }
    }

    /// Shows it in the metrics.
    pub fn show(&self, metrics: &Metrics) {
        metrics.services.set(count(self.decision.served.len()));
        metrics.ports.set(count(self.ports()));
        metrics.show_conflicts(&self.decision.conflicts);
        metrics.show_readiness(self.readiness());
        let observed = i64::try_from(self.observed.0).unwrap_or(i64::MAX);
        metrics.observed.set(observed);
    }

    /// Logs another readiness, and each conflict once when it appears and once when it is
    /// gone.
    pub fn log_changes(&self, before: Option<&Self>) {
        let readiness = self.readiness();
        if before.map(Self::readiness) != Some(readiness) {
            let (reason, services) = (readiness.reason(), self.decision.served.len());
            info!(reason, services, "{readiness}");
        }
        let before = before.map_or(&[][..], |before| &before.decision.conflicts);
        let before: BTreeSet<&Conflict> = before.iter().collect();
        let now: BTreeSet<&Conflict> = self.decision.conflicts.iter().collect();
        for new in now.difference(&before) {
            log(new, "port refused");
        }
        for gone in before.difference(&now) {
            log(gone, "port no longer refused");
        }
    }
}

/// The version up to which what the Services ask for is done, if it is in the kernel up to
/// `read`: before what is awaited, of which these are the last versions before it. Without any
/// `known` becomes `read`.
fn done_up_to(
    awaited: impl Iterator<Item = ResourceVersion>,
    known: &mut ResourceVersion,
    read: ResourceVersion,
) -> ResourceVersion {
    awaited.min().unwrap_or_else(|| {
        *known = read;
        read
    })
}

fn log(conflict: &Conflict, what: &str) {
    let Conflict {
        service,
        protocol,
        port,
        reason,
        held_by,
    } = conflict;
    let reason = reason.as_str();
    info!(%service, port, %protocol, reason, held_by, "{what}");
}

/// The conflict with words that fit into a report.
fn shortened(conflict: &Conflict) -> Conflict {
    Conflict {
        held_by: conflict.held_by.chars().take(LONGEST_HELD_BY).collect(),
        ..conflict.clone()
    }
}

#[cfg(test)]
mod tests;
