//! Watching resources on the API server, with endless retries.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use backon::ExponentialBuilder;
use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, ExponentialBackoff, watcher},
    },
};
use prometheus::{
    GaugeVec, IntCounterVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::{
    client::SILENCE,
    errors::{explain_status, with_sources},
};

const SHORTEST_DELAY: Duration = Duration::from_millis(200);
/// After an outage of the API server every watch is back within twice this time
/// (jitter doubles it).
const LONGEST_DELAY: Duration = Duration::from_secs(2);
/// A watch that has not failed for this long counts as healthy again, since an idle watch
/// delivers nothing that would prove it sooner.
const HEALTHY_AGAIN: Duration = Duration::from_secs(15);

/// After a watch was silent, only an event or a list proves sooner that it works: it must not
/// count as healthy while the next one is silent too.
const HEALTHY_AFTER_SILENCE: Duration = SILENCE.saturating_add(HEALTHY_AGAIN);

/// Objects per page of a list: a page is in memory as a whole, and the status of a
/// Service may list many nodes, an EndpointSlice a hundred endpoints.
const PAGE: u32 = 100;

/// How long, in seconds, the API server lets a watch run before it is renewed. Shorter
/// than [`SILENCE`], so that a watch without events is not taken for a dead connection; kube
/// drops a watch that is silent 5 s longer than this, which must be later.
const WATCH_SECONDS: u32 = 40;

/// The configuration of every watch: lists in pages, and renewed in time.
#[must_use]
pub fn paged() -> watcher::Config {
    watcher::Config::default()
        .page_size(PAGE)
        .timeout(WATCH_SECONDS)
}

/// Which watches of a process fail now, and why; clones share it.
#[derive(Clone, Debug)]
pub struct WatchHealth {
    watches: Arc<Mutex<Watches>>,
    errors: IntCounterVec,
}

/// The last failure of each watch that has begun, until it works again.
type Watches = BTreeMap<&'static str, Option<Failure>>;

#[derive(Debug)]
struct Failure {
    since: Instant,
    last: Instant,
    message: String,
    /// When it is over if it does not fail again.
    healthy_again: Duration,
}

impl Failure {
    fn is_over(&self) -> bool {
        self.last.elapsed() >= self.healthy_again
    }
}

impl WatchHealth {
    /// Counts errors in `errors`, which has the one label `kind`.
    #[must_use]
    pub fn new(errors: IntCounterVec) -> Self {
        Self {
            watches: Arc::default(),
            errors,
        }
    }

    fn watches(&self) -> MutexGuard<'_, Watches> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The metric of how long each watch has been failing, under that name.
    ///
    /// # Errors
    /// If the name is not valid.
    pub fn failing_seconds(&self, name: &str) -> prometheus::Result<FailingSeconds> {
        let help = "For how long a watch has been failing; 0 while it works";
        Ok(FailingSeconds {
            health: self.clone(),
            gauges: GaugeVec::new(Opts::new(name, help), &["kind"])?,
        })
    }

    /// A watch begins. It has not failed yet, which the metrics are to show.
    pub fn begins(&self, kind: &'static str) {
        self.errors.with_label_values(&[kind]);
        self.watches().entry(kind).or_default();
    }

    /// A text for each watch that fails now.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let watches = self.watches();
        let failing = watches
            .iter()
            .filter_map(|(kind, failure)| Some((kind, failure.as_ref()?)));
        failing
            .filter(|(_, failure)| !failure.is_over())
            .map(|(kind, failure)| {
                let seconds = failure.since.elapsed().as_secs();
                format!(
                    "watching {kind} has failed for {seconds} s: {}",
                    failure.message
                )
            })
            .collect()
    }

    /// Notes a failure, and logs it unless it is the same as before.
    fn failed(&self, kind: &'static str, error: &watcher::Error) {
        self.errors.with_label_values(&[kind]).inc();
        let message = explain(error);
        let now = Instant::now();
        let mut watches = self.watches();
        let known = watches.get(kind).and_then(Option::as_ref);
        let known = known.filter(|known| !known.is_over());
        if known.is_none_or(|known| known.message != message) {
            warn!(kind, "watch failed, will retry: {message}");
        }
        let since = known.map_or(now, |known| known.since);
        let healthy_again = match is_silence(error) {
            true => HEALTHY_AFTER_SILENCE,
            false => HEALTHY_AGAIN,
        };
        let failure = Failure {
            since,
            last: now,
            message,
            healthy_again,
        };
        watches.insert(kind, Some(failure));
    }

    fn succeeded(&self, kind: &'static str) {
        if self.watches().insert(kind, None).flatten().is_some() {
            info!(kind, "watch works again");
        }
    }
}

/// The metric of how long each watch has been failing. It is not the time since the last
/// event: a watch of things that do not change is silent and well.
#[derive(Debug)]
pub struct FailingSeconds {
    health: WatchHealth,
    gauges: GaugeVec,
}

impl Collector for FailingSeconds {
    fn desc(&self) -> Vec<&Desc> {
        self.gauges.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        for (kind, failure) in self.health.watches().iter() {
            let failing = failure.as_ref().filter(|failure| !failure.is_over());
            let seconds = failing.map_or(0.0, |failure| failure.since.elapsed().as_secs_f64());
            self.gauges.with_label_values(&[*kind]).set(seconds);
        }
        self.gauges.collect()
    }
}

/// Whether nothing came for [`SILENCE`].
fn is_silence(error: &watcher::Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|io| io.kind() == io::ErrorKind::TimedOut) {
            return true;
        }
        // What an I/O error wraps is not its source.
        let wrapped = io.and_then(io::Error::get_ref);
        next = wrapped.map_or_else(|| error.source(), |inner| Some(inner));
    }
    false
}

/// The error with its remedy.
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
    let mut events = pin!(events(kind, api, config, health));
    while let Some(event) = events.next().await {
        if sender.send(wrap(event)).await.is_err() {
            return;
        }
    }
}

/// Sends the one object of that name at first and after every change; `None` while it does
/// not exist. Until the receiver is gone, as [`follow`]. (kube's `watch_object` does the
/// same, but its watches can't be renewed in time for [`SILENCE`].)
pub async fn follow_object<K, Input>(
    kind: &'static str,
    api: Api<K>,
    name: &str,
    health: WatchHealth,
    sender: mpsc::Sender<Input>,
    wrap: impl Fn(Option<K>) -> Input,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = paged().fields(&format!("metadata.name={name}"));
    let mut events = pin!(events(kind, api, config, health));
    let mut listed = None;
    while let Some(event) = events.next().await {
        let current = match event {
            Event::Init => {
                listed = None;
                continue;
            }
            Event::InitApply(object) => {
                listed = Some(object);
                continue;
            }
            Event::InitDone => listed.take(),
            Event::Apply(object) => Some(object),
            Event::Delete(_) => None,
        };
        if sender.send(wrap(current)).await.is_err() {
            return;
        }
    }
}

/// The events of a watch without its errors, which go to `health`. It never ends.
fn events<K>(
    kind: &'static str,
    api: Api<K>,
    config: watcher::Config,
    health: WatchHealth,
) -> impl Stream<Item = Event<K>>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    health.begins(kind);
    let backoff = ExponentialBuilder::default()
        .with_min_delay(SHORTEST_DELAY)
        .with_max_delay(LONGEST_DELAY)
        .with_jitter()
        .without_max_times();
    restarting(move || watcher(api.clone(), config.clone()).boxed())
        .backoff(ExponentialBackoff::from(backoff))
        .filter_map(move |event| {
            let event = match event {
                Ok(event) => {
                    // `Init` comes before the first request, so it proves nothing.
                    if !matches!(event, Event::Init) {
                        health.succeeded(kind);
                    }
                    Some(event)
                }
                Err(error) => {
                    health.failed(kind, &error);
                    None
                }
            };
            std::future::ready(event)
        })
}

/// A watch that begins anew when its version is too old to begin with: kube would ask for
/// the same version forever. (It begins anew by itself if an event says so, as kube-apiserver
/// does; others answer 410.)
fn restarting<K: 'static>(
    begin: impl Fn() -> BoxStream<'static, watcher::Result<Event<K>>>,
) -> impl Stream<Item = watcher::Result<Event<K>>> {
    stream::unfold((begin(), begin), |(mut watch, begin)| async move {
        let event = watch.next().await?;
        if event.as_ref().is_err_and(is_too_old) {
            watch = begin();
        }
        Some((event, (watch, begin)))
    })
}

fn is_too_old(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_watch_whose_version_is_too_old_begins_anew() {
        let mut begun = 0;
        let refused = |code| {
            let status = kube::core::Status::failure("no", "Reason").with_code(code);
            Err(watcher::Error::WatchStartFailed(kube::Error::Api(
                Box::new(status),
            )))
        };
        let watch = std::sync::Mutex::new(|| {
            begun += 1;
            let events: Vec<watcher::Result<Event<()>>> = match begun {
                1 => vec![
                    refused(500),
                    Ok(Event::Init),
                    refused(410),
                    Ok(Event::InitDone),
                ],
                _ => vec![Ok(Event::Apply(()))],
            };
            stream::iter(events).boxed()
        });
        let events = restarting(|| watch.lock().unwrap()());
        let seen: Vec<String> = events.map(|it| format!("{:?}", it.ok())).collect().await;
        assert_eq!(seen, ["None", "Some(Init)", "None", "Some(Apply(()))"]);
    }

    fn health() -> WatchHealth {
        let errors = Opts::new("errors_total", "x");
        WatchHealth::new(IntCounterVec::new(errors, &["kind"]).unwrap())
    }

    fn values(metric: &FailingSeconds) -> Vec<f64> {
        let families = metric.collect();
        let metrics = families.iter().flat_map(MetricFamily::get_metric);
        metrics.map(|it| it.get_gauge().get_value()).collect()
    }

    #[test]
    fn a_watch_is_a_series_from_its_beginning_and_grows_while_it_fails() {
        let health = health();
        let metric = health.failing_seconds("failing_seconds").unwrap();
        assert!(values(&metric).is_empty());
        health.begins("Node");
        assert_eq!(values(&metric), [0.0]);
        assert_eq!(health.errors.with_label_values(&["Node"]).get(), 0);

        let error = watcher::Error::NoResourceVersion;
        health.failed("Node", &error);
        let first = values(&metric)[0];
        health.failed("Node", &error);
        while values(&metric)[0] <= first {}
        assert_eq!(health.errors.with_label_values(&["Node"]).get(), 2);
        assert_eq!(health.problems().len(), 1);

        health.succeeded("Node");
        assert_eq!(values(&metric), [0.0]);
        assert!(health.problems().is_empty());
    }

    #[test]
    fn a_silent_watch_fails_until_the_next_one_is_known_not_to_be_silent() {
        let failed = |kind| {
            let inner = io::Error::other(io::Error::new(kind, "deadline has elapsed"));
            watcher::Error::WatchFailed(kube::Error::ReadEvents(inner))
        };
        assert!(is_silence(&failed(io::ErrorKind::TimedOut)));
        assert!(!is_silence(&failed(io::ErrorKind::ConnectionReset)));
        assert!(!is_silence(&watcher::Error::NoResourceVersion));
        let (health, kinds) = (health(), ["Node", "Pod"]);
        health.failed(kinds[0], &failed(io::ErrorKind::TimedOut));
        health.failed(kinds[1], &failed(io::ErrorKind::ConnectionReset));
        for kind in kinds {
            if let Some(Some(failure)) = health.watches().get_mut(kind) {
                failure.last = failure.last.checked_sub(SILENCE).unwrap();
            }
        }
        let problems = health.problems();
        assert!(
            problems.len() == 1 && problems[0].contains("Node"),
            "{problems:?}"
        );
        let renewed = Duration::from_secs(WATCH_SECONDS.into());
        let kube_gives_up = renewed + Duration::from_secs(5);
        assert!(renewed < SILENCE && SILENCE < kube_gives_up);
    }

    #[test]
    fn one_that_has_not_failed_for_a_while_works() {
        let health = health();
        let metric = health.failing_seconds("failing_seconds").unwrap();
        health.failed("Node", &watcher::Error::NoResourceVersion);
        let long_ago = Instant::now().checked_sub(HEALTHY_AGAIN).unwrap();
        if let Some(Some(failure)) = health.watches().get_mut("Node") {
            (failure.since, failure.last) = (long_ago, long_ago);
        }
        assert_eq!(values(&metric), [0.0]);
    }
}
