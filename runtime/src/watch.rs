//! Following resources on the API server, however long it is away.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use backon::ExponentialBuilder;
use futures::{StreamExt, TryStreamExt};
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, ExponentialBackoff, watcher},
    },
};
use prometheus::IntCounterVec;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::errors::{explain_status, with_sources};

const SHORTEST_DELAY: Duration = Duration::from_millis(200);
/// After an outage of the API server everybody is back within twice this time
/// (jitter doubles it).
const LONGEST_DELAY: Duration = Duration::from_secs(2);
/// A watch that has not failed for this long is well again: an idle watch
/// delivers nothing by which it could be told sooner.
const WELL_AGAIN: Duration = Duration::from_secs(15);

/// Objects per page of a list: a page is in memory as a whole, and the status of a
/// Service may list many nodes, an EndpointSlice a hundred endpoints.
const PAGE: u32 = 100;

/// How long, in seconds, the API server lets a watch run before it is asked for anew.
/// Shorter than [`super::client::SILENCE`], so that a watch on which nothing happens is
/// not taken for a dead one; kube gives one up that is silent 5 s longer than this.
const WATCH_SECONDS: u32 = 40;

/// How everything is watched: by lists in pages, and never silent for long.
#[must_use]
pub fn paged() -> watcher::Config {
    watcher::Config::default()
        .page_size(PAGE)
        .timeout(WATCH_SECONDS)
}

/// How the watches of a process fare; clones share it.
#[derive(Clone, Debug)]
pub struct WatchHealth {
    failures: Arc<Mutex<BTreeMap<&'static str, Failure>>>,
    errors: IntCounterVec,
}

#[derive(Debug)]
struct Failure {
    since: Instant,
    last: Instant,
    message: String,
}

impl WatchHealth {
    /// Counts errors in `errors`, which has the one label `kind`.
    #[must_use]
    pub fn new(errors: IntCounterVec) -> Self {
        Self {
            failures: Arc::default(),
            errors,
        }
    }

    /// The watches that fail now, each in words.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let failing = failures
            .iter()
            .filter(|(_, failure)| failure.last.elapsed() < WELL_AGAIN);
        failing
            .map(|(kind, failure)| {
                let seconds = failure.since.elapsed().as_secs();
                format!(
                    "watching {kind} has failed for {seconds} s: {}",
                    failure.message
                )
            })
            .collect()
    }

    /// Notes a failure; logs it unless the same is known already.
    fn failed(&self, kind: &'static str, error: &watcher::Error) {
        self.errors.with_label_values(&[kind]).inc();
        let message = explain(error);
        let now = Instant::now();
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let known = failures
            .get(kind)
            .filter(|known| known.last.elapsed() < WELL_AGAIN);
        if known.is_none_or(|known| known.message != message) {
            warn!(kind, "watch failed, will retry: {message}");
        }
        let since = known.map_or(now, |known| known.since);
        failures.insert(
            kind,
            Failure {
                since,
                last: now,
                message,
            },
        );
    }

    fn succeeded(&self, kind: &'static str) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.remove(kind).is_some() {
            info!(kind, "watch works again");
        }
    }
}

/// What failed and what to do about it.
fn explain(error: &watcher::Error) -> String {
    let status = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => status.as_ref(),
        watcher::Error::WatchError(status) => status.as_ref(),
        other => return with_sources(other),
    };
    explain_status(status)
}

/// Sends every event of a watch, turned into an `Input` by `wrap`, until the
/// receiver is gone. Errors are retried forever, with backoff.
pub async fn follow<K, Input>(
    kind: &'static str,
    api: Api<K>,
    config: watcher::Config,
    health: WatchHealth,
    sender: mpsc::Sender<Input>,
    wrap: impl Fn(Event<K>) -> Input,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let backoff = ExponentialBuilder::default()
        .with_min_delay(SHORTEST_DELAY)
        .with_max_delay(LONGEST_DELAY)
        .with_jitter()
        .without_max_times();
    let mut events = watcher(api, config)
        .backoff(ExponentialBackoff::from(backoff))
        .into_stream()
        .boxed();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                // `Init` comes before the first request, so it proves nothing.
                if !matches!(event, Event::Init) {
                    health.succeeded(kind);
                }
                if sender.send(wrap(event)).await.is_err() {
                    return;
                }
            }
            Err(error) => health.failed(kind, &error),
        }
    }
}
