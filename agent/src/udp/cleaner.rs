//! The task that has stale UDP flows deleted.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use highwire_api::{
    ServiceKey,
    names::SERVICE_NAME_LABEL,
    runtime::watch::{WatchHealth, follow},
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, Client,
    runtime::watcher::{self, Event},
};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinSet, spawn_blocking},
    time::{sleep_until, timeout},
};
use tracing::{debug, info, warn};

use super::{
    conntrack::{Conntrack, ConntrackError},
    endpoints::EndpointIndex,
    frontends::Frontends,
    schedule::Schedule,
    stale::{Frontend, View},
};
use crate::metrics::Metrics;

/// Enough for a burst; beyond it the watches wait.
const EVENTS: usize = 256;
/// The kernel answers within milliseconds; this is for one that does not at all.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a port is looked at after it was served. Our rules are gone before
/// the first look, so nobody sends flows to the Service's Pods again; the second is
/// for packets that were under way.
const LOOKS_AFTER_RETIREMENT: u8 = 2;

/// What a watch of one Service's EndpointSlices brings.
struct Update {
    service: ServiceKey,
    session: u64,
    event: Event<EndpointSlice>,
}

/// Follows the EndpointSlices of one Service for as long as it exists.
struct Session {
    number: u64,
    endpoints: EndpointIndex,
    /// Its watch, which ends with it.
    _watch: JoinSet<()>,
}

/// Owns what is known of UDP Services and their endpoints.
pub struct Cleaner {
    client: Client,
    health: WatchHealth,
    metrics: Metrics,
    frontends: Frontends,
    sessions: BTreeMap<ServiceKey, Session>,
    sessions_begun: u64,
    /// Served until just now, and how often they will still be looked at.
    retired: BTreeMap<SocketAddr, u8>,
    schedule: Schedule,
    /// The failure told last, while there is one.
    failure: Option<String>,
}

impl Cleaner {
    /// A cleaner that knows of no Service yet. `taken` is where UDP was taken until
    /// now, by an earlier agent's table.
    #[must_use]
    pub fn new(
        client: Client,
        health: WatchHealth,
        metrics: Metrics,
        taken: BTreeSet<SocketAddr>,
    ) -> Self {
        Self {
            client,
            health,
            metrics,
            frontends: Frontends::default(),
            sessions: BTreeMap::new(),
            sessions_begun: 0,
            retired: taken
                .into_iter()
                .map(|at| (at, LOOKS_AFTER_RETIREMENT))
                .collect(),
            schedule: Schedule::default(),
            failure: None,
        }
    }

    /// Runs until the sender of `served` is gone, which is `None` until the kernel
    /// forwards what it should. While no UDP is served, and while nothing changes, it
    /// does nothing at all.
    pub async fn run(mut self, mut served: watch::Receiver<Option<Frontends>>) {
        let (sender, mut updates) = mpsc::channel(EVENTS);
        loop {
            let due = self.schedule.due();
            tokio::select! {
                changed = served.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let frontends = served.borrow_and_update().clone();
                    if let Some(frontends) = frontends {
                        self.serve(frontends, &sender);
                    }
                }
                Some(update) = updates.recv() => self.absorb(update),
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                    self.sweep().await;
                }
            }
        }
    }

    /// The kernel now forwards these.
    fn serve(&mut self, frontends: Frontends, sender: &mpsc::Sender<Update>) {
        for gone in self.frontends.served.keys() {
            if !frontends.served.contains_key(gone) {
                self.retired.insert(*gone, LOOKS_AFTER_RETIREMENT);
            }
        }
        self.retired
            .retain(|retired, _| !frontends.served.contains_key(retired));
        let services: BTreeSet<ServiceKey> = frontends.services().into_iter().cloned().collect();
        self.sessions
            .retain(|service, _| services.contains(service));
        for service in services {
            if !self.sessions.contains_key(&service) {
                let session = self.begin(&service, sender.clone());
                self.sessions.insert(service, session);
            }
        }
        self.frontends = frontends;
        self.schedule.changed(Instant::now());
    }

    fn begin(&mut self, service: &ServiceKey, sender: mpsc::Sender<Update>) -> Session {
        self.sessions_begun += 1;
        let number = self.sessions_begun;
        let api = Api::<EndpointSlice>::namespaced(self.client.clone(), &service.namespace);
        let config =
            watcher::Config::default().labels(&format!("{SERVICE_NAME_LABEL}={}", service.name));
        let (health, service) = (self.health.clone(), service.clone());
        let mut watch = JoinSet::new();
        watch.spawn(async move {
            let wrap = |event| Update {
                service: service.clone(),
                session: number,
                event,
            };
            follow("EndpointSlice", api, config, health, sender, wrap).await;
        });
        Session {
            number,
            endpoints: EndpointIndex::default(),
            _watch: watch,
        }
    }

    fn absorb(&mut self, update: Update) {
        let session = self.sessions.get_mut(&update.service);
        // What an ended session has left in the channel is of no use.
        let Some(session) = session.filter(|session| session.number == update.session) else {
            return;
        };
        if session.endpoints.absorb(update.event) {
            self.schedule.changed(Instant::now());
        }
    }

    fn view(&self) -> View {
        let retired = self.retired.keys().map(|at| (*at, Frontend::Retired));
        let served = self.frontends.served.iter().filter_map(|(at, behind)| {
            let session = self.sessions.get(&behind.port.service)?;
            let frontend = Frontend::Served {
                entrance: behind.entrance,
                endpoints: session.endpoints.serving(&behind.port.port)?,
            };
            Some((*at, frontend))
        });
        View {
            frontends: retired.chain(served).collect(),
            own: self.frontends.own.clone(),
        }
    }

    async fn sweep(&mut self) {
        let view = self.view();
        if view.frontends.is_empty() {
            self.schedule.looked(Instant::now(), true);
            return;
        }
        // On a thread of its own: the event loop has others to serve meanwhile.
        let work = spawn_blocking(move || {
            let mut deleted = 0;
            let result = sweep(&view, &mut deleted);
            (deleted, result)
        });
        let outcome = timeout(PATIENCE, work).await;
        let unanswered = Err(ConntrackError::NoAnswer);
        let (deleted, result) = outcome.ok().and_then(Result::ok).unwrap_or((0, unanswered));
        self.metrics.udp_flows_deleted.inc_by(deleted);
        self.metrics.udp_swept(result.is_ok());
        if deleted > 0 {
            info!(deleted, "stale UDP flows deleted");
        }
        match &result {
            Ok(()) => {
                self.failure = None;
                self.retired.retain(|_, looks| {
                    *looks -= 1;
                    *looks > 0
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
        self.schedule.looked(Instant::now(), quiet);
    }
}

/// Deletes what is stale, and counts it in `deleted` even if it fails halfway.
fn sweep(view: &View, deleted: &mut u64) -> Result<(), ConntrackError> {
    let conntrack = Conntrack::open()?;
    for address in view.addresses() {
        for flow in conntrack.udp_flows_to(address, |flow| view.is_stale(flow))? {
            if conntrack.delete(&flow)? {
                debug!(%flow, "stale UDP flow deleted");
                *deleted += 1;
            }
        }
    }
    Ok(())
}
