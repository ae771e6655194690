//! Requests at a fixed rate, whatever becomes of them, and what became of each.
//!
//! The rate is open-loop: a request is sent when its time has come, however many others are
//! not answered yet. What the generator itself is too busy to send in time is counted too
//! ([`Tally::late`]), so that its own trouble is not taken for somebody else's.

mod exchange;
mod kept;
mod tally;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::future::join_all;
use highwire_e2e::Netns;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Interval, MissedTickBehavior, interval};

use exchange::{Answered, Fault};
use kept::Kept;
pub(crate) use tally::Tally;

/// A request that takes longer is lost. A SYN is sent again after 1, 3 and 7 s.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);
/// UDP repeats nothing: what has not come after this will not come.
pub(crate) const UDP_LIMIT: Duration = Duration::from_secs(3);
/// Requests of one stream under way at a time; beyond it none is sent, and counted as unsent.
const MOST_AT_ONCE: usize = 2_000;
/// How many connections or sockets a stream that keeps them has per address.
const KEPT: usize = 4;

/// How a stream asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A TCP connection for each request.
    NewConnection,
    /// Requests on TCP connections that stay open.
    KeptConnection,
    /// A UDP socket for each request.
    NewFlow,
    /// Requests on UDP sockets that stay open.
    KeptFlow,
}

impl Kind {
    /// What it is called in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NewConnection => "TCP, a connection each",
            Self::KeptConnection => "TCP, kept connections",
            Self::NewFlow => "UDP, a socket each",
            Self::KeptFlow => "UDP, kept sockets",
        }
    }

    /// Whether it asks by UDP.
    pub(crate) fn is_udp(self) -> bool {
        matches!(self, Self::NewFlow | Self::KeptFlow)
    }
}

/// Requests of one kind to one Service.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    /// What it is called in tables.
    pub(crate) name: String,
    /// How it asks.
    pub(crate) kind: Kind,
    /// Where, in turn.
    pub(crate) to: Vec<SocketAddr>,
    /// Requests a second.
    pub(crate) rate: f64,
    /// What the names of the Pods begin with that may answer.
    pub(crate) pods: &'static str,
}

/// Streams that run until they are stopped.
pub(crate) struct Load {
    done: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<Vec<Tally>>>>,
}

impl Load {
    /// Starts them from that namespace, on a thread of their own.
    pub(crate) fn start(from: &Netns, streams: Vec<Stream>) -> Self {
        let (done, sent) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (from, stop, count) = (from.clone(), done.clone(), sent.clone());
        let thread = std::thread::spawn(move || {
            from.run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .context("start the load")?;
                Ok(runtime.block_on(run_all(streams, &stop, &count)))
            })
        });
        Self {
            done,
            sent,
            thread: Some(thread),
        }
    }

    /// How many requests were sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Sends no more, waits for what is under way, and says what became of all, by stream.
    pub(crate) fn stop(mut self) -> Result<Vec<Tally>> {
        self.done.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the load was stopped before")?;
        thread.join().ok().context("the load panicked")?
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Else its thread would outlive a run that failed.
        self.done.store(true, Ordering::Relaxed);
    }
}

/// One request: how late it was sent, how long it took, what came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// When, since the load began.
    pub(crate) at: Duration,
    /// Its time had come so long before.
    pub(crate) late: Duration,
    /// From then on.
    pub(crate) took: Duration,
    /// Where it went.
    pub(crate) to: SocketAddr,
    /// The answer.
    pub(crate) result: Result<Answered, Fault>,
}

async fn run_all(
    streams: Vec<Stream>,
    done: &Arc<AtomicBool>,
    sent: &Arc<AtomicU64>,
) -> Vec<Tally> {
    let start = Instant::now();
    let each = streams.into_iter().map(|stream| Pace {
        start,
        done: done.clone(),
        sent: sent.clone(),
        stream,
    });
    join_all(each.map(|pace| tokio::spawn(pace.run())))
        .await
        .into_iter()
        .flatten()
        .collect()
}

/// A stream that is being sent.
#[derive(Clone)]
struct Pace {
    start: Instant,
    done: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    stream: Stream,
}

impl Pace {
    async fn run(self) -> Tally {
        let (outcomes, mut finished) = mpsc::unbounded_channel();
        let mut tally = Tally::new(&self.stream);
        let sending = tokio::spawn(async move {
            match self.stream.kind {
                Kind::NewConnection | Kind::NewFlow => self.each_anew(&outcomes).await,
                Kind::KeptConnection | Kind::KeptFlow => self.all_kept(&outcomes).await,
            }
        });
        // The channel ends with the last request that is under way.
        while let Some(outcome) = finished.recv().await {
            tally.add(outcome);
        }
        tally.unsent = sending.await.unwrap_or_default();
        tally
    }

    /// Sends at the stream's rate; returns how many could not be sent.
    async fn each_anew(self, outcomes: &mpsc::UnboundedSender<Outcome>) -> u64 {
        let room = Arc::new(Semaphore::new(MOST_AT_ONCE));
        let mut ticks = ticks(self.stream.rate);
        let mut unsent = 0;
        for to in self.stream.to.iter().copied().cycle() {
            let due = ticks.tick().await.into_std();
            if self.done.load(Ordering::Relaxed) {
                break;
            }
            let Ok(permit) = room.clone().try_acquire_owned() else {
                unsent += 1;
                continue;
            };
            let (one, outcomes) = (self.clone(), outcomes.clone());
            self.sent.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let (kind, pods) = (one.stream.kind, one.stream.pods);
                let outcome = one.timed(due, to, exchange::anew(kind, to, pods)).await;
                // Nobody counts any more once the load has been given up.
                outcomes.send(outcome).ok();
                drop(permit);
            });
        }
        unsent
    }

    /// Has each kept connection or socket send its share of the stream's rate.
    async fn all_kept(self, outcomes: &mpsc::UnboundedSender<Outcome>) -> u64 {
        let ends: Vec<SocketAddr> = self
            .stream
            .to
            .iter()
            .copied()
            .cycle()
            .take(self.stream.to.len() * KEPT)
            .collect();
        let rate = self.stream.rate / ends.len() as f64;
        let each = ends.into_iter().map(|to| {
            let (pace, outcomes) = (self.clone(), outcomes.clone());
            tokio::spawn(async move { pace.kept(to, rate, &outcomes).await })
        });
        join_all(each).await;
        0
    }

    /// One request after the other on a connection or socket that is opened anew only after a
    /// fault.
    async fn kept(self, to: SocketAddr, rate: f64, outcomes: &mpsc::UnboundedSender<Outcome>) {
        let mut ticks = ticks(rate);
        let mut kept = Kept::new(self.stream.kind, to, self.stream.pods);
        loop {
            let due = ticks.tick().await.into_std();
            if self.done.load(Ordering::Relaxed) {
                return;
            }
            self.sent.fetch_add(1, Ordering::Relaxed);
            let outcome = self.timed(due, to, kept.ask()).await;
            outcomes.send(outcome).ok();
        }
    }

    async fn timed(
        &self,
        due: Instant,
        to: SocketAddr,
        asking: impl Future<Output = Result<Answered, Fault>>,
    ) -> Outcome {
        let begun = Instant::now();
        let result = asking.await;
        Outcome {
            at: begun - self.start,
            late: begun.saturating_duration_since(due),
            took: begun.elapsed(),
            to,
            result,
        }
    }
}

/// The times at which to send: those that were missed come at once.
fn ticks(rate: f64) -> Interval {
    let mut ticks = interval(Duration::from_secs_f64(1.0 / rate));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    ticks
}
