//! Elects the one controller that writes.
//!
//! `kube-lease-manager` does the election, driven by hand instead of by its own
//! `watch()`, because a leader must stop writing before another can begin:
//!
//! - `watch()` goes on saying "leader" while renewals fail. Here any failed request
//!   ends leadership, and requests have a deadline, so that a leader cut off from the
//!   API server steps down 2 + 2 s after its last renewal at the latest, while the
//!   Lease is good for 6 s.
//! - A follower sleeps until the Lease expires and does not notice that the leader
//!   released it. Our own watch of the Leases does, and wakes it: [`Election::run`]'s
//!   `released`.
//!
//! Should two lead for a moment all the same, nothing bad comes of it: they compute
//! the same, and every write is tied to the version of the Service that was looked at.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use highwire_api::names::CONTROLLER_LEASE;
use highwire_runtime::{
    client::{self, ClientError},
    errors::{explain, with_sources},
    heartbeat::Heartbeat,
};
use kube::Client;
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseManagerError, LeaseParams};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tracing::{info, warn};

/// How long, in seconds, a Lease is good: the most a dead leader costs.
const LEASE_SECONDS: u64 = 6;

/// How long, in seconds, before the end of its Lease a leader renews it.
const RENEW_AHEAD_SECONDS: u64 = 4;

/// A renewal has two requests, and both must fail before the Lease ends.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

const RETRY: Duration = Duration::from_secs(1);

/// Longer than this nobody waits for the release of the Lease.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

/// What hinders the election, in words; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct ElectionHealth(Arc<Mutex<Option<String>>>);

impl ElectionHealth {
    /// What hinders the election now.
    pub(crate) fn problem(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn failed(&self, error: &LeaseManagerError) {
        let message = match error {
            LeaseManagerError::KubeError(error) => explain(error),
            other => with_sources(other),
        };
        let message = format!("electing a leader fails: {message}");
        let mut problem = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if problem.as_ref() != Some(&message) {
            warn!("{message}; will retry");
        }
        *problem = Some(message);
    }

    fn works(&self) {
        let mut problem = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if problem.take().is_some() {
            info!("electing a leader works again");
        }
    }
}

/// One candidate.
pub(crate) struct Election {
    client: Client,
    identity: String,
    namespace: String,
    health: ElectionHealth,
    leading: watch::Sender<bool>,
}

impl Election {
    /// A candidate that says in `leading` whether it leads. The Lease is in `namespace`.
    pub(crate) fn new(
        config: &kube::Config,
        heard: &Heartbeat,
        identity: String,
        namespace: String,
        health: ElectionHealth,
        leading: watch::Sender<bool>,
    ) -> Result<Self, ClientError> {
        let client = client::client(config, heard, Some(REQUEST_TIMEOUT))?;
        Ok(Self {
            client,
            identity,
            namespace,
            health,
            leading,
        })
    }

    /// Runs until `stop`, then gives leadership up so that another can take it at
    /// once. `released` says that somebody else gave it up.
    pub(crate) async fn run(self, released: &Notify, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        loop {
            let manager = tokio::select! {
                () = &mut stop => return,
                manager = self.stand() => manager,
            };
            tokio::select! {
                () = &mut stop => {
                    self.step_down(&manager).await;
                    return;
                }
                error = self.follow(&manager) => {
                    self.set(false);
                    self.health.failed(&error);
                    sleep(RETRY).await;
                }
                // To stand anew reads the Lease anew.
                () = self.wait_for(released) => {}
            }
        }
    }

    /// Becomes a candidate, however long the API server is away.
    async fn stand(&self) -> LeaseManager {
        loop {
            let params = LeaseParams::new(&self.identity, LEASE_SECONDS, RENEW_AHEAD_SECONDS);
            let builder = LeaseManagerBuilder::new(self.client.clone(), CONTROLLER_LEASE);
            match builder
                .with_namespace(&self.namespace)
                .with_parameters(params)
                .build()
                .await
            {
                Ok(manager) => {
                    self.health.works();
                    return manager;
                }
                Err(error) => self.health.failed(&error),
            }
            sleep(RETRY).await;
        }
    }

    /// Says who leads until a request fails.
    async fn follow(&self, manager: &LeaseManager) -> LeaseManagerError {
        loop {
            match manager.changed().await {
                Ok(leads) => self.set(leads),
                Err(error) => return error,
            }
        }
    }

    async fn wait_for(&self, released: &Notify) {
        loop {
            released.notified().await;
            if !*self.leading.borrow() {
                return;
            }
        }
    }

    fn set(&self, leads: bool) {
        if self.leading.send_replace(leads) != leads {
            info!(
                identity = self.identity,
                "{}",
                if leads { "leading" } else { "following" }
            );
        }
    }

    async fn step_down(&self, manager: &LeaseManager) {
        if !self.leading.send_replace(false) {
            return;
        }
        match timeout(RELEASE_TIMEOUT, manager.release()).await {
            Ok(Ok(())) => info!("leadership given up"),
            Ok(Err(error)) => warn!(
                "cannot give leadership up, another takes it in {LEASE_SECONDS} s: {}",
                with_sources(&error)
            ),
            Err(_) => warn!("cannot give leadership up in time"),
        }
    }
}
