//! Elects the one controller that writes, as client-go does
//! (k8s.io/client-go tools/leaderelection).
//!
//! Clocks of two machines are never compared. A follower takes the Lease when it has not
//! seen it change for the Lease's duration, by its own clock; the update holds the version
//! it read, so that of two followers one wins. A leader steps down when it has not renewed
//! for [`RENEW_DEADLINE`], counted from before its last request that succeeded; that is
//! before any follower may take the Lease.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use highwire_api::names::CONTROLLER_LEASE;
use highwire_runtime::errors::explain;
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Resource,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tracing::{info, warn};

use crate::metrics::Metrics;

/// How long a Lease is good without renewal: the most a dead leader costs.
pub const LEASE_DURATION: Duration = Duration::from_secs(6);

/// How long after its last renewal a leader steps down.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(4);

/// How often a leader renews.
const RENEW_PERIOD: Duration = Duration::from_secs(2);

/// How often a follower reads the Lease, and how soon after a failure comes the next try.
const RETRY_PERIOD: Duration = Duration::from_secs(1);

/// The deadline of one request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the release of the Lease may take.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

/// Where the Lease is kept.
pub trait LeaseStore {
    /// The Lease; `None` if there is none.
    fn read(&self) -> impl Future<Output = kube::Result<Option<Lease>>> + Send;

    /// Creates the Lease, or updates it if it still has the version of `old`. Returns it as
    /// it is then, or `None` if another one was faster.
    fn write(
        &self,
        old: Option<&Lease>,
        spec: &LeaseSpec,
    ) -> impl Future<Output = kube::Result<Option<Lease>>> + Send;
}

impl LeaseStore for Api<Lease> {
    async fn read(&self) -> kube::Result<Option<Lease>> {
        self.get_opt(CONTROLLER_LEASE).await
    }

    async fn write(&self, old: Option<&Lease>, spec: &LeaseSpec) -> kube::Result<Option<Lease>> {
        let mut lease = Lease {
            spec: Some(spec.clone()),
            ..Lease::default()
        };
        lease.meta_mut().name = Some(CONTROLLER_LEASE.to_owned());
        let written = match old {
            None => self.create(&PostParams::default(), &lease).await,
            Some(old) => {
                let version = json!({ "resourceVersion": old.metadata.resource_version });
                // Every field, for a merge patch keeps what is missing.
                let spec = json!({
                    "holderIdentity": spec.holder_identity,
                    "leaseDurationSeconds": spec.lease_duration_seconds,
                    "acquireTime": spec.acquire_time,
                    "renewTime": spec.renew_time,
                    "leaseTransitions": spec.lease_transitions,
                });
                let patch = Patch::Merge(json!({ "metadata": version, "spec": spec }));
                self.patch(CONTROLLER_LEASE, &PatchParams::default(), &patch)
                    .await
            }
        };
        match written {
            Ok(lease) => Ok(Some(lease)),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Until when a candidate leads, by its own clock; clones share it. The news that it no
/// longer does can come late to a process that was stopped: this is never late.
#[derive(Clone, Debug, Default)]
pub struct Term(Arc<Mutex<Option<Instant>>>);

impl Term {
    fn set(&self, end: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = end;
    }

    /// Whether it leads at this moment.
    #[must_use]
    pub fn lasts(&self) -> bool {
        let end = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        end.is_some_and(|end| Instant::now() < end)
    }
}

/// One candidate.
#[derive(Debug)]
pub struct Election<S> {
    store: S,
    identity: String,
    leading: watch::Sender<bool>,
    term: Term,
    problem: watch::Sender<Option<String>>,
    /// The Lease as last seen to change, and when that was.
    observed: Option<(Lease, Instant)>,
    /// Who was last seen to lead; not empty while nobody does.
    last_leader: Option<String>,
    metrics: Metrics,
}

impl<S: LeaseStore> Election<S> {
    /// A candidate of this name, which no other has.
    pub fn new(store: S, identity: String, metrics: Metrics) -> Self {
        Self {
            store,
            identity,
            leading: watch::Sender::new(false),
            term: Term::default(),
            problem: watch::Sender::new(None),
            observed: None,
            last_leader: None,
            metrics,
        }
    }

    /// Whether it leads.
    #[must_use]
    pub fn leading(&self) -> watch::Receiver<bool> {
        self.leading.subscribe()
    }

    /// Until when it leads.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term.clone()
    }

    /// What hinders it.
    #[must_use]
    pub fn problem(&self) -> watch::Receiver<Option<String>> {
        self.problem.subscribe()
    }

    /// Runs until `stop`, then gives leadership up so that another can take it at once.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::select! {
            () = self.campaign() => {}
            () = stop => {}
        }
        self.term.set(None);
        if self.leading.send_replace(false) {
            match timeout(RELEASE_TIMEOUT, self.release()).await {
                Ok(Ok(_)) => info!("leadership given up"),
                Ok(Err(error)) => warn!("cannot give leadership up: {}", explain(&error)),
                Err(_) => warn!("cannot give leadership up in time"),
            }
        }
    }

    /// Leads or follows. Does not return.
    async fn campaign(&mut self) {
        let mut deadline = None;
        loop {
            let start = Instant::now();
            // A request that hangs must not keep a leader in office.
            let end = deadline.unwrap_or(start + RENEW_DEADLINE);
            let (period, problem) = match timeout_at(end, self.try_to_lead()).await {
                Ok(Ok(true)) => {
                    deadline = Some(start + RENEW_DEADLINE);
                    (RENEW_PERIOD, None)
                }
                Ok(Ok(false)) => {
                    deadline = None;
                    (RETRY_PERIOD, None)
                }
                Ok(Err(error)) => (RETRY_PERIOD, Some(explain(&error))),
                Err(_) => (
                    RETRY_PERIOD,
                    Some("no answer from the API server".to_owned()),
                ),
            };
            deadline = deadline.filter(|deadline| Instant::now() < *deadline);
            self.term.set(deadline);
            self.set_leading(deadline.is_some());
            self.set_problem(problem.map(|it| format!("electing a leader fails: {it}")));
            let next = start + period;
            sleep_until(deadline.map_or(next, |deadline| deadline.min(next))).await;
        }
    }

    fn set_leading(&self, leads: bool) {
        let modify = |known: &mut bool| mem::replace(known, leads) != leads;
        if self.leading.send_if_modified(modify) {
            let state = if leads { "leading" } else { "following" };
            info!(identity = self.identity, state, "election");
        }
    }

    fn set_problem(&self, problem: Option<String>) {
        if self.problem.send_replace(problem.clone()) != problem {
            match problem {
                Some(problem) => warn!("{problem}; will retry"),
                None => info!("electing a leader works again"),
            }
        }
    }

    /// One try to take the Lease, or to renew it. Says whether it is ours then.
    async fn try_to_lead(&mut self) -> kube::Result<bool> {
        let lease = self.store.read().await?;
        self.observe(lease);
        let observed = self.observed.as_ref();
        let spec = observed
            .and_then(|(lease, _)| lease.spec.clone())
            .unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let is_ours = holder == self.identity;
        if let Some((_, changed)) = observed
            && !(is_ours || holder.is_empty())
            && changed.elapsed() < duration_of(&spec)
        {
            return Ok(false);
        }
        let now = MicroTime(Timestamp::now());
        let transitions = spec.lease_transitions.unwrap_or(0);
        let wanted = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            acquire_time: spec.acquire_time.filter(|_| is_ours).or(Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions + i32::from(!is_ours)),
            ..LeaseSpec::default()
        };
        let written = self
            .store
            .write(observed.map(|(lease, _)| lease), &wanted)
            .await?;
        let is_ours = written.is_some();
        if is_ours {
            self.observe(written);
            self.metrics.lease_renewed.note();
        }
        Ok(is_ours)
    }

    /// Notes when the Lease was last seen to change, and whether the leader has.
    fn observe(&mut self, lease: Option<Lease>) {
        let spec = lease.as_ref().and_then(|lease| lease.spec.as_ref());
        let holder = spec.and_then(|spec| spec.holder_identity.clone());
        if let Some(holder) = holder.filter(|holder| !holder.is_empty()) {
            let before = self.last_leader.replace(holder);
            if before.is_some() && before != self.last_leader {
                self.metrics.leader_changes.inc();
            }
        }
        let spec = |lease: &Lease| lease.spec.clone();
        self.observed = lease.map(|lease| {
            let known = self.observed.as_ref();
            let changed = known.filter(|(known, _)| spec(known) == spec(&lease));
            let changed = changed.map_or_else(Instant::now, |(_, changed)| *changed);
            (lease, changed)
        });
    }

    /// Leaves the Lease to whoever is next.
    async fn release(&self) -> kube::Result<Option<Lease>> {
        // A renewal may have been under way.
        let lease = self.store.read().await?;
        let spec = lease.as_ref().and_then(|lease| lease.spec.as_ref());
        let Some(spec) = spec.filter(|it| it.holder_identity.as_ref() == Some(&self.identity))
        else {
            return Ok(None);
        };
        let released = LeaseSpec {
            lease_transitions: spec.lease_transitions,
            ..LeaseSpec::default()
        };
        self.store.write(lease.as_ref(), &released).await
    }
}

/// How long a Lease is good, by itself; ours if it does not say.
fn duration_of(spec: &LeaseSpec) -> Duration {
    let seconds = spec
        .lease_duration_seconds
        .and_then(|it| u64::try_from(it).ok());
    seconds.map_or(LEASE_DURATION, Duration::from_secs)
}

#[cfg(test)]
#[path = "election_tests.rs"]
mod tests;
