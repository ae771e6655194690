//! The task that deletes stale UDP flows.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    net::SocketAddr,
    time::{Duration, Instant},
};

use highwire_api::ServiceKey;
use highwire_runtime::watch::WatchHealth;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Client, runtime::watcher::Event};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinSet, spawn_blocking},
    time::{sleep_until, timeout},
};
use tracing::{debug, info, warn};

use super::{
    conntrack::{Conntrack, ConntrackError},
    frontends::Frontends,
    schedule::Schedule,
    stale::{Frontend, View},
};
use crate::{
    facts::endpoints::{EndpointIndex, watch_slices},
    metrics::Metrics,
};

/// Whole EndpointSlices, with up to a hundred endpoints each; beyond it the watch waits.
const EVENTS: usize = 16;
/// The kernel answers within milliseconds; this is the limit if it does not.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often a port is swept that is no longer served. Our rules are gone before the
/// first sweep, so no new flow reaches the Service's Pods; the second one is for packets
/// that were under way.
const SWEEPS_AFTER_RETIREMENT: u8 = 2;

/// The one watch of EndpointSlices, for as long as UDP of Services is served.
struct Session {
    endpoints: EndpointIndex,
    events: mpsc::Receiver<Event<EndpointSlice>>,
    /// The watch itself, which ends with this.
    _watch: JoinSet<()>,
}

/// The cleaner and what it knows of UDP Services and their endpoints.
pub struct Cleaner {
    client: Client,
    node: String,
    health: WatchHealth,
    metrics: Metrics,
    frontends: Frontends,
    /// Those behind `frontends`.
    services: BTreeSet<ServiceKey>,
    session: Option<Session>,
    /// No longer served, and how often they will still be swept.
    retired: BTreeMap<SocketAddr, u8>,
    schedule: Schedule,
    /// The failure that was logged last, while there is one.
    failure: Option<String>,
}

impl Cleaner {
    /// A cleaner on `node` that knows of no Service yet. `taken` is where an earlier agent's
    /// table forwarded UDP.
    #[must_use]
    pub fn new(
        client: Client,
        node: String,
        health: WatchHealth,
        metrics: Metrics,
        taken: BTreeSet<SocketAddr>,
    ) -> Self {
        Self {
            client,
            node,
            health,
            metrics,
            frontends: Frontends::default(),
            services: BTreeSet::new(),
            session: None,
            retired: taken
                .into_iter()
                .map(|at| (at, SWEEPS_AFTER_RETIREMENT))
                .collect(),
            schedule: Schedule::default(),
            failure: None,
        }
    }

    /// Runs until the sender of `served` is dropped. That is `None` until the kernel
    /// forwards what was decided. While no UDP is served, or nothing changes, it does
    /// nothing.
    pub async fn run(mut self, mut served: watch::Receiver<Option<Frontends>>) {
        loop {
            let due = self.schedule.due();
            tokio::select! {
                changed = served.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let frontends = served.borrow_and_update().clone();
                    if let Some(frontends) = frontends {
                        self.serve(frontends);
                    }
                }
                Some(event) = next_event(&mut self.session) => self.absorb(event),
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                    self.sweep().await;
                }
            }
        }
    }

    /// The kernel now forwards these.
    fn serve(&mut self, frontends: Frontends) {
        for gone in self.frontends.served.keys() {
            if !frontends.served.contains_key(gone) {
                self.retired.insert(*gone, SWEEPS_AFTER_RETIREMENT);
            }
        }
        self.retired
            .retain(|retired, _| !frontends.served.contains_key(retired));
        self.services = frontends.services();
        if self.services.is_empty() {
            self.session = None;
        } else if self.session.is_none() {
            self.session = Some(self.begin());
        }
        self.frontends = frontends;
        self.schedule.changed(Instant::now());
    }

    fn begin(&self) -> Session {
        let (sender, events) = mpsc::channel(EVENTS);
        let (client, health) = (self.client.clone(), self.health.clone());
        let mut watch = JoinSet::new();
        watch.spawn(async move {
            watch_slices(&client, health, sender, |event| event).await;
        });
        Session {
            endpoints: EndpointIndex::new(self.node.clone()),
            events,
            _watch: watch,
        }
    }

    fn absorb(&mut self, event: Event<EndpointSlice>) {
        let Some(session) = &mut self.session else {
            return;
        };
        if session.endpoints.absorb(event, &self.services) {
            self.schedule.changed(Instant::now());
        }
    }

    fn view(&self) -> View {
        let retired = self.retired.keys().map(|at| (*at, Frontend::Retired));
        let session = self.session.as_ref();
        let known = session.and_then(|session| session.endpoints.of(&self.services));
        let served = self.frontends.served.iter();
        let served =
            served.filter_map(|(at, behind)| Some((*at, behind.frontend(known.as_ref())?)));
        View {
            frontends: retired.chain(served).collect(),
            own: self.frontends.own.clone(),
        }
    }

    async fn sweep(&mut self) {
        let view = self.view();
        if view.frontends.is_empty() {
            self.schedule.swept(Instant::now(), true);
            return;
        }
        // On a thread of its own, since it blocks.
        let work = spawn_blocking(move || {
            let mut found = Found::default();
            let result = sweep(&view, &mut found);
            (found, result)
        });
        let outcome = timeout(TIMEOUT, work).await;
        let unanswered = (Found::default(), Err(ConntrackError::NoAnswer));
        let (found, result) = outcome.ok().and_then(Result::ok).unwrap_or(unanswered);
        let Found {
            deleted,
            unreadable,
        } = found;
        self.metrics.udp_flows_deleted.inc_by(deleted);
        self.metrics.udp_flows_unreadable.inc_by(unreadable);
        self.metrics.udp_swept(result.is_ok());
        if deleted > 0 {
            info!(deleted, "stale UDP flows deleted");
        }
        match &result {
            Ok(()) => {
                self.failure = None;
                self.retired.retain(|_, sweeps| {
                    *sweeps -= 1;
                    *sweeps > 0
                });
            }
            Err(error) => {
                let message = error.to_string();
                if self.failure.as_ref() != Some(&message) {
                    warn!("clients of UDP Services may go on sending to dead Pods: {message}");
                }
                self.failure = Some(message);
            }
        }
        let quiet = result.is_ok() && deleted == 0;
        self.schedule.swept(Instant::now(), quiet);
    }
}

/// The next event of the watch; never, while there is none.
async fn next_event(session: &mut Option<Session>) -> Option<Event<EndpointSlice>> {
    match session {
        Some(session) => session.events.recv().await,
        None => pending().await,
    }
}

/// What a sweep found.
#[derive(Debug, Default)]
struct Found {
    deleted: u64,
    unreadable: u64,
}

/// Deletes what is stale, and counts it in `found` even if it fails halfway.
fn sweep(view: &View, found: &mut Found) -> Result<(), ConntrackError> {
    let conntrack = Conntrack::open()?;
    for address in view.addresses() {
        let listed = conntrack.udp_flows_to(address, |flow| view.is_stale(flow))?;
        found.unreadable += listed.unreadable;
        for flow in listed.flows {
            if conntrack.delete(&flow)? {
                debug!(%flow, "stale UDP flow deleted");
                found.deleted += 1;
            }
        }
    }
    Ok(())
}
