//! The one loop that owns the reconciler and carries out what it says.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use highwire_runtime::heartbeat::Heartbeat;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep_until, timeout},
};
use tracing::warn;

use crate::{
    events::ServiceEvent,
    explain::Question,
    external::snapshot::Snapshot,
    facts::Input,
    leading::Role,
    liveness::Now,
    metrics::{Metrics, Sending},
    reconciler::Reconciler,
    status_write::{StatusWrite, WriteResult},
    writer::Writer,
};

/// How many writes are done at once.
const WRITES: usize = 8;

/// How many inputs are taken in before the next write may begin.
const BATCH: usize = 1024;

/// The loop turns at least this often, so that its heartbeat is seen.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);

/// Counting everything for the metrics is worth it at most this often.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);

/// Unfinished writes may take this long when the loop is asked to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// What the loop works with.
pub struct EventLoop {
    /// What the watches say.
    pub inputs: mpsc::Receiver<Input>,
    /// What people want to know.
    pub questions: mpsc::Receiver<Question>,
    /// What this controller is to do.
    pub role: watch::Receiver<Role>,
    /// Shows whether it has left.
    pub left: watch::Sender<bool>,
    /// Decides.
    pub reconciler: Reconciler,
    /// Writes statuses.
    pub writer: Arc<Writer>,
    /// Shows what boxes outside the cluster are planned from.
    pub snapshots: watch::Sender<Arc<Snapshot>>,
    /// Sends Events.
    pub events: mpsc::Sender<ServiceEvent>,
    /// Counts.
    pub metrics: Metrics,
    /// Shows that the loop turns.
    pub heartbeat: Heartbeat,
    /// Shows the watches whose first list is not complete yet.
    pub missing: watch::Sender<Vec<&'static str>>,
}

type Writes = JoinSet<(StatusWrite, WriteResult)>;

impl EventLoop {
    /// Turns until `stop`, then waits for unfinished writes, or until the inputs end.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        let mut writes = Writes::new();
        let mut batch = Vec::with_capacity(BATCH);
        let mut counted = Instant::now();
        loop {
            let latest = Instant::now() + LONGEST_SLEEP;
            let wake = self.reconciler.next_turn(writes.len() < WRITES);
            let wake = wake.map_or(latest, |at| at.min(latest));
            tokio::select! {
                biased;
                () = &mut stop => break,
                changed = self.role.changed() => {
                    let role = changed.map(|()| *self.role.borrow_and_update());
                    let role = role.unwrap_or_default();
                    self.metrics.leads(role == Role::Lead);
                    self.reconciler.begin(role);
                    if role != Role::Lead {
                        writes.abort_all();
                    }
                }
                Some(write) = writes.join_next(), if !writes.is_empty() => {
                    // A write that was aborted has no result.
                    if let Ok((write, result)) = write {
                        self.reconciler.finish(&write, result, Now::read());
                    }
                }
                count = self.inputs.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        break;
                    }
                    for input in batch.drain(..) {
                        self.reconciler.apply(input, Now::read());
                    }
                }
                Some(question) = self.questions.recv() => self.answer(question),
                () = sleep_until(wake.into()) => {}
            }
            self.turn(&mut writes);
            if counted.elapsed() >= COUNT_INTERVAL {
                counted = Instant::now();
                self.count();
            }
        }
        let drained = async {
            while let Some(Ok((write, result))) = writes.join_next().await {
                self.reconciler.finish(&write, result, Now::read());
                self.publish();
            }
        };
        if timeout(DRAIN, drained).await.is_err() {
            warn!("stopping with {} unfinished writes", writes.len());
        }
    }

    /// Who asked may have given up: a question that nobody waits for any more is answered all
    /// the same.
    fn answer(&self, question: Question) {
        match question {
            Question::Overview(asker) => {
                let _ = asker.send(self.reconciler.overview());
            }
            Question::Service(key, asker) => {
                let _ = asker.send(self.reconciler.explain(&key, Now::read()));
            }
        }
    }

    /// Does everything there is to do now.
    fn turn(&mut self, writes: &mut Writes) {
        let now = Now::read();
        self.heartbeat.beat();
        // A renewal that waits to be read prevents an expiry.
        if self.inputs.is_empty() {
            self.reconciler.expire(now);
        }
        self.reconciler.turn(now);
        self.missing.send_replace(self.reconciler.facts().missing());
        while writes.len() < WRITES
            && let Some(write) = self.next_write(now)
        {
            let writer = Arc::clone(&self.writer);
            writes.spawn(async move {
                let result = writer.write(&write).await;
                (write, result)
            });
        }
        if let Some(snapshot) = self.reconciler.take_snapshot() {
            self.snapshots.send_replace(Arc::new(snapshot));
        }
        self.publish();
        self.left.send_replace(self.reconciler.has_left());
    }

    /// The next write; shows how long it took to decide about what was due.
    fn next_write(&mut self, now: Now) -> Option<StatusWrite> {
        let is_due = self.reconciler.is_due(now);
        let began = Instant::now();
        let write = self.reconciler.next_write(now);
        if is_due {
            self.metrics.decided(began.elapsed());
        }
        write
    }

    fn publish(&mut self) {
        let news = self.reconciler.take_news();
        for event in news.events {
            let reason = event.happened.reason;
            if self.events.try_send(event).is_err() {
                self.metrics.event(reason, Sending::Dropped);
            }
        }
        for waited in news.waited {
            self.metrics.first_address(waited);
        }
    }

    fn count(&self) {
        let (services, nodes) = (
            self.reconciler.service_states(),
            self.reconciler.node_states(),
        );
        self.metrics.states(services, nodes);
        self.metrics.conflicts(self.reconciler.refusals());
        self.metrics
            .queue_depth(self.reconciler.queue_depth(Now::read()));
    }
}
