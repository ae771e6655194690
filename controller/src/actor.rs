//! The one loop that owns the engine and carries out what it says.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use highwire_api::names::CONTROLLER_LEASE;
use highwire_runtime::heartbeat::Heartbeat;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::{sleep_until, timeout},
};
use tracing::warn;

use crate::{
    desired::Advertising,
    engine::{Engine, StatusWrite, WriteResult},
    index::{Input, listing::Fed},
    liveness::Now,
    metrics::{Metrics, Sending},
    notice_text::Announcement,
    writer::Writer,
};

/// How many writes are under way at once.
const FLIGHTS: usize = 8;

/// How many events are taken in before the next look at what to do.
const BATCH: usize = 256;

/// The loop turns at least this often, so that its heartbeat is heard.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);

/// Counting everything for the metrics is worth it at most this often.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);

/// Writes that are under way when the loop is asked to stop may take this long.
const DRAIN: Duration = Duration::from_secs(5);

/// What hinders the controller from knowing everything; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Missing(Arc<Mutex<Vec<&'static str>>>);

impl Missing {
    /// The watches whose first list is not complete yet, each in words.
    pub(crate) fn problems(&self) -> Vec<String> {
        let missing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        missing
            .iter()
            .map(|kind| format!("the first list of {kind} is not complete yet"))
            .collect()
    }

    fn set(&self, missing: Vec<&'static str>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = missing;
    }
}

impl Default for Missing {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Engine::default().index().missing())))
    }
}

/// What the loop works with.
pub(crate) struct Actor {
    /// What the watches say.
    pub(crate) inputs: mpsc::Receiver<Input>,
    /// Whether this controller leads.
    pub(crate) leading: watch::Receiver<bool>,
    /// Is told when another controller gave leadership up.
    pub(crate) released: Arc<Notify>,
    /// How nodes are advertised.
    pub(crate) advertising: Advertising,
    /// Writes statuses.
    pub(crate) writer: Arc<Writer>,
    /// Sends Events.
    pub(crate) announcements: mpsc::Sender<Announcement>,
    /// Counts.
    pub(crate) metrics: Metrics,
    /// Shows that the loop turns.
    pub(crate) heartbeat: Heartbeat,
    /// Shows what is not known yet.
    pub(crate) missing: Missing,
}

type Flights = JoinSet<(StatusWrite, WriteResult)>;

impl Actor {
    /// Turns until `stop`, then waits for the writes under way, or until the inputs end.
    pub(crate) async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        let mut engine = Engine::new(self.advertising.clone());
        let mut flights = Flights::new();
        let mut batch = Vec::with_capacity(BATCH);
        let mut counted = Instant::now();
        loop {
            let latest = Instant::now() + LONGEST_SLEEP;
            let wake = engine
                .next_turn(flights.len() < FLIGHTS)
                .map_or(latest, |at| at.min(latest));
            // What happened comes before what time brings: a renewal that waits to be
            // read must not be overtaken by the expiry it prevents.
            tokio::select! {
                biased;
                () = &mut stop => break,
                changed = self.leading.changed() => {
                    let leads = changed.is_ok() && *self.leading.borrow_and_update();
                    self.lead(leads, &mut engine, &mut flights);
                }
                Some(flight) = flights.join_next(), if !flights.is_empty() => {
                    // A flight that was called back has nothing to say.
                    if let Ok((write, result)) = flight {
                        let took = engine.finish(&write, result, Now::read());
                        took.into_iter().for_each(|took| self.metrics.first_address(took));
                    }
                }
                count = self.inputs.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        break;
                    }
                    for input in batch.drain(..) {
                        self.notice_release(&input);
                        engine.feed(input, Now::read());
                    }
                }
                () = sleep_until(wake.into()) => {}
            }
            self.turn(&mut engine, &mut flights);
            if counted.elapsed() >= COUNT_INTERVAL {
                counted = Instant::now();
                let (services, nodes) = engine.index().states();
                self.metrics.states(services, nodes);
                self.metrics.conflicts(engine.index().refused());
            }
        }
        if timeout(DRAIN, async {
            while flights.join_next().await.is_some() {}
        })
        .await
        .is_err()
        {
            warn!("stopping with {} writes under way", flights.len());
        }
    }

    fn lead(&self, leads: bool, engine: &mut Engine, flights: &mut Flights) {
        self.metrics.leads(leads);
        engine.lead(leads);
        if !leads {
            flights.abort_all();
        }
    }

    fn notice_release(&self, input: &Input) {
        if let Input::Lease(Fed::Put(name, lease)) = input
            && name == CONTROLLER_LEASE
            && !lease.held
        {
            self.released.notify_one();
        }
    }

    /// Does everything there is to do now.
    fn turn(&self, engine: &mut Engine, flights: &mut Flights) {
        let now = Now::read();
        self.heartbeat.beat();
        engine.turn(now);
        self.missing.set(engine.index().missing());
        while flights.len() < FLIGHTS
            && let Some(write) = engine.next_write(now)
        {
            let writer = Arc::clone(&self.writer);
            flights.spawn(async move {
                let result = writer.write(&write).await;
                (write, result)
            });
        }
        for announcement in engine.announcements(now) {
            let reason = announcement.reason;
            if self.announcements.try_send(announcement).is_err() {
                self.metrics.event(reason, Sending::Dropped);
            }
        }
    }
}
