//! Writes what the agent reports: the LoadBalancerNode's status when it has
//! something new to say, and the Lease at every renewal.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use highwire_api::{LoadBalancerNode, LoadBalancerNodeSpec, ResourceVersion};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Api, Client};
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tracing::{info, warn};

use super::{
    Report,
    lease::{AgentLease, Observed},
    objects::{CallError, RETRY_PAUSE, call, delete, owned_by_node, patch_or_create},
};
use crate::{
    config::Config,
    metrics::{Metrics, Reported},
};

/// Bursts of Service changes are reported together, at most this often …
const STATUS_PAUSE: Duration = Duration::from_millis(50);
/// … and with pauses of so many times what the last write took, so that a status
/// with a thousand conflicts does not keep the API server busy …
const PAUSE_FACTOR: u32 = 5;
/// … but never less often than this. While the API server is overloaded, each report of a
/// thousand agents has to say more, or their writes alone would keep it so.
const LONGEST_STATUS_PAUSE: Duration = Duration::from_secs(10);
/// A Lease is renewed so many times while it is good.
const RENEWALS: u32 = 3;

/// The writer of one node's report.
#[derive(Debug)]
pub struct Writer {
    node_name: String,
    nodes: Api<LoadBalancerNode>,
    lease: AgentLease,
    lease_duration: Duration,
    /// The UID of the Node, while it exists.
    node: watch::Receiver<Option<String>>,
    metrics: Metrics,
    /// What the status says; `None` if it has to be written.
    written: Option<Report>,
    ready: Option<Condition>,
    /// The resource version of the object that [`Self::written`] is about.
    version: Option<String>,
    status_failure: Option<String>,
    lease_failure: Option<String>,
}

impl Writer {
    /// A writer for the agent's node; `node` says its UID while it exists.
    #[must_use]
    pub fn new(
        client: &Client,
        config: &Config,
        node: watch::Receiver<Option<String>>,
        metrics: Metrics,
    ) -> Self {
        Self {
            nodes: Api::all(client.clone()),
            lease: AgentLease::new(client, &config.place.namespace, &config.node_name),
            lease_duration: config.lease_duration,
            node,
            node_name: config.node_name.clone(),
            metrics,
            written: None,
            ready: None,
            version: None,
            status_failure: None,
            lease_failure: None,
        }
    }

    /// Writes every report until the sender is gone, and the last one again when the
    /// object was deleted: `exists` says whether it is there. Failures are retried.
    pub async fn run(
        mut self,
        mut reports: watch::Receiver<Option<Report>>,
        mut exists: mpsc::Receiver<bool>,
    ) {
        let mut renewal = interval(self.lease_duration / RENEWALS);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut retries = retries();
        let mut may_write = Instant::now();
        let mut existed = false;
        loop {
            let mut news = reports.borrow_and_update().clone();
            news = news.filter(|report| self.has_owner(report) && self.is_news(report));
            let mut waits = news.is_some();
            if let Some(report) = news.filter(|_| may_write <= Instant::now()) {
                let first = self.written.is_none();
                let start = Instant::now();
                let result = self.write_status(report).await;
                waits = result.is_err();
                let pause = if result.is_ok() {
                    retries = self::retries();
                    (start.elapsed() * PAUSE_FACTOR).clamp(STATUS_PAUSE, LONGEST_STATUS_PAUSE)
                } else {
                    retries.next().unwrap_or(LONGEST_STATUS_PAUSE)
                };
                may_write = Instant::now() + pause;
                if first && result.is_ok() {
                    // Without a Lease the node is not live: do not wait for the next renewal.
                    renewal.reset_immediately();
                }
                note(
                    Reported::LoadBalancerNode,
                    &mut self.status_failure,
                    result,
                    &self.metrics,
                );
            }
            tokio::select! {
                _ = renewal.tick() => {
                    let latest = reports.borrow().clone();
                    if let Some(report) = latest.filter(|report| self.has_owner(report)) {
                        let observed = confirmed(self.written.as_ref(), &report)
                            .zip(self.version.clone())
                            .map(|(version, report)| Observed { version, report });
                        let (uid, duration) = (&report.node_uid, self.lease_duration);
                        let result = self.lease.renew(uid, duration, observed).await;
                        if result.is_ok() {
                            self.metrics.lease_renewed.note();
                        }
                        note(Reported::Lease, &mut self.lease_failure, result, &self.metrics);
                    }
                }
                () = sleep_until(may_write), if waits => {}
                Some(exists) = exists.recv() => {
                    if std::mem::replace(&mut existed, exists) && !exists {
                        warn!(object = Reported::LoadBalancerNode.as_str(), "it was deleted; it is written again while the Node exists");
                        (self.written, self.ready, self.version) = (None, None, None);
                    }
                }
                changed = reports.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Whether the status has to be written to say this.
    fn is_news(&self, report: &Report) -> bool {
        let written = self.written.as_ref();
        written.is_none_or(|written| report.differs_from(written))
    }

    /// Whether the Node that the report is about exists. Without it there is nothing to
    /// report, and the garbage collector would delete at once what has a dead owner.
    fn has_owner(&self, report: &Report) -> bool {
        self.node.borrow().as_ref() == Some(&report.node_uid)
    }

    /// Each write names the version that it replaces. Without that, a write that got no
    /// answer in time could still be carried out after the next one, and the status would
    /// lack conflicts of Services that the Lease says were observed.
    async fn write_status(&mut self, report: Report) -> Result<(), CallError> {
        match self.replace_status(&report).await {
            Err(error) if error.code() == Some(409) => {
                let current = call(self.nodes.get_metadata_opt(&self.node_name)).await?;
                self.version = current.and_then(|object| object.metadata.resource_version);
                self.replace_status(&report).await?;
            }
            result => result?,
        }
        self.written = Some(report);
        Ok(())
    }

    async fn replace_status(&mut self, report: &Report) -> Result<(), CallError> {
        let status = report.status(self.ready.as_ref(), Timestamp::now());
        let mut patch = json!({ "status": status });
        if let Some(version) = &self.version {
            patch["metadata"] = json!({ "resourceVersion": version });
        }
        let name = &self.node_name;
        let create = || LoadBalancerNode {
            metadata: owned_by_node(name, name, &report.node_uid),
            spec: LoadBalancerNodeSpec::default(),
            status: None,
        };
        let written = patch_or_create(&self.nodes, name, &patch, Some("status"), create).await?;
        self.ready = written.status.and_then(|status| status.ready().cloned());
        self.version = written.metadata.resource_version;
        Ok(())
    }
}

/// Counts a failure, and logs it unless it is the same as before.
fn note(
    object: Reported,
    failure: &mut Option<String>,
    result: Result<(), CallError>,
    metrics: &Metrics,
) {
    let now = result.err().map(|error| error.to_string());
    if let Some(message) = &now {
        metrics.report_failed(object);
        let object = object.as_str();
        if *failure != now {
            warn!(object, "cannot write, will retry: {message}");
        }
    } else if failure.is_some() {
        info!(object = object.as_str(), "written again");
    }
    *failure = now;
}

/// Deletes the node's report and Lease, so that it leaves every ingress at once.
pub async fn withdraw(client: &Client, namespace: &str, node_name: &str) {
    let nodes: Api<LoadBalancerNode> = Api::all(client.clone());
    let lease = AgentLease::new(client, namespace, node_name);
    tokio::join!(
        delete(&nodes, node_name, Reported::LoadBalancerNode.as_str()),
        lease.delete()
    );
}

/// Leaves a Lease that is good until another agent is there.
pub async fn extend_lease(client: &Client, namespace: &str, node_name: &str) {
    AgentLease::new(client, namespace, node_name).extend().await;
}

/// How long to wait after each failed write. Not all nodes at the same times: what fails may
/// be an API server that they keep busy.
fn retries() -> impl Iterator<Item = Duration> {
    let retries = ExponentialBuilder::default().without_max_times();
    retries
        .with_min_delay(RETRY_PAUSE)
        .with_max_delay(RETRY_PAUSE * 4)
        .with_jitter()
        .build()
}

/// The version that the Lease may carry: never one whose conflicts are not written
/// yet, or the controller would list this node for a Service that it refuses. Before
/// the first write there is none: what stands in the status is an earlier agent's.
fn confirmed(written: Option<&Report>, latest: &Report) -> Option<ResourceVersion> {
    let written = written?;
    Some(if latest.differs_from(written) {
        written.observed
    } else {
        latest.observed
    })
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{Arc, Mutex},
    };

    use http::{Method, Request, Response};
    use kube::client::Body;
    use serde_json::Value;

    use super::*;
    use crate::config::Cli;

    const FIRST: u64 = 4;

    /// An API server with one LoadBalancerNode. It accepts a write that names its version,
    /// and without a version only the first one. Each write makes a newer version.
    fn client(version: Arc<Mutex<u64>>) -> Client {
        let answer = move |request: Request<Body>| {
            let version = version.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let mut current = version.lock().unwrap();
                let mut code = 200;
                if parts.method == Method::PATCH {
                    let patch: Value = serde_json::from_slice(&body).unwrap();
                    let named = &patch["metadata"]["resourceVersion"];
                    let is_first = named.is_null() && *current == FIRST;
                    if is_first || *named == current.to_string() {
                        *current += 1;
                    } else {
                        code = 409;
                    }
                }
                let metadata = json!({"name": "n1", "resourceVersion": current.to_string()});
                let answer = match code {
                    200 => json!({"metadata": metadata, "spec": {}, "status": {}}),
                    _ => json!({"kind": "Status", "status": "Failure", "code": code,
                                "reason": "Conflict", "message": "the version is another"}),
                };
                let answer = Body::from(answer.to_string().into_bytes());
                let answer = Response::builder().status(code).body(answer).unwrap();
                Ok::<_, Infallible>(answer)
            }
        };
        Client::new(tower::service_fn(answer), "default")
    }

    #[tokio::test]
    async fn a_status_replaces_the_version_that_it_names() {
        let version = Arc::new(Mutex::new(FIRST));
        let (_sender, node) = watch::channel(None);
        let metrics = Metrics::new().unwrap();
        let Cli::Run(config) = Cli::parse_from(["highwire-agent", "--node-name=n1"]).unwrap()
        else {
            panic!("it runs");
        };
        let mut writer = Writer::new(&client(version.clone()), &config, node, metrics);
        writer.write_status(report(1, 5)).await.unwrap();
        assert_eq!(writer.version.as_deref(), Some("5"));
        writer.write_status(report(2, 6)).await.unwrap();
        assert_eq!(writer.version.as_deref(), Some("6"));
        // A write of ours that got no answer was carried out at last.
        *version.lock().unwrap() = 9;
        writer.write_status(report(3, 7)).await.unwrap();
        assert_eq!(writer.version.as_deref(), Some("10"));
        assert_eq!(writer.written, Some(report(3, 7)));
    }

    fn report(revision: u64, observed: u64) -> Report {
        Report {
            revision,
            observed: ResourceVersion(observed),
            ..Report::default()
        }
    }

    /// An API server that takes so long for each write of the report and answers with this
    /// code; when it was asked.
    fn slow(took: Duration, code: u16) -> (Client, Arc<Mutex<Vec<Instant>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let asks = asked.clone();
        let answer = move |request: Request<Body>| {
            let asks = asks.clone();
            async move {
                if request.uri().path().contains("loadbalancernodes") {
                    asks.lock().unwrap().push(Instant::now());
                    tokio::time::sleep(took).await;
                }
                let answer = match code {
                    200 => json!({"metadata": {"name": "n1", "resourceVersion": "1"}, "spec": {}}),
                    _ => json!({"kind": "Status", "status": "Failure", "code": code}),
                };
                let answer = Body::from(answer.to_string().into_bytes());
                let answer = Response::builder().status(code).body(answer).unwrap();
                Ok::<_, Infallible>(answer)
            }
        };
        (Client::new(tower::service_fn(answer), "default"), asked)
    }

    /// The seconds between the writes of an agent that has something new to say in each
    /// millisecond.
    async fn pauses((client, asked): (Client, Arc<Mutex<Vec<Instant>>>)) -> Vec<f64> {
        let (_node, node) = watch::channel(Some("u".to_owned()));
        let Cli::Run(config) = Cli::parse_from(["highwire-agent", "--node-name=n1"]).unwrap()
        else {
            panic!("it runs");
        };
        let writer = Writer::new(&client, &config, node, Metrics::new().unwrap());
        let (reports, reported) = watch::channel(None);
        let (_exists, exists) = mpsc::channel(1);
        let running = tokio::spawn(writer.run(reported, exists));
        for version in 1..60_000 {
            let node_uid = "u".to_owned();
            reports.send_replace(Some(Report {
                node_uid,
                ..report(version, version)
            }));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        running.abort();
        let asked = asked.lock().unwrap();
        let pairs = asked.windows(2);
        pairs
            .map(|pair| (pair[1] - pair[0]).as_secs_f64())
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_tried_again_after_a_second_and_more() {
        let pauses = pauses(slow(Duration::ZERO, 429)).await;
        assert!((1.0..2.1).contains(&pauses[0]), "{pauses:?}");
        assert!((2.0..4.1).contains(&pauses[1]), "{pauses:?}");
        let later = &pauses[2..];
        assert!(later.len() > 5, "{pauses:?}");
        let in_bounds = |pause: &f64| (4.0..8.1).contains(pause);
        assert!(later.iter().all(in_bounds), "{pauses:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_pause_after_a_report_grows_with_what_it_took() {
        for (took, pause) in [(2, 0.052), (100, 0.6), (1000, 6.0), (4000, 14.0)] {
            let pauses = pauses(slow(Duration::from_millis(took), 200)).await;
            assert!(pauses.len() > 2, "{took} {pauses:?}");
            let is_near = |it: &f64| (pause - 0.001..pause + 0.01).contains(it);
            assert!(pauses.iter().all(is_near), "{took} {pauses:?}");
        }
    }

    #[test]
    fn the_lease_never_runs_ahead_of_the_written_status() {
        assert_eq!(confirmed(None, &report(1, 5)), None);
        let written = report(1, 5);
        let confirmed = |latest: Report| confirmed(Some(&written), &latest);
        assert_eq!(confirmed(report(1, 9)), Some(ResourceVersion(9)));
        // A change that is not written yet.
        assert_eq!(confirmed(report(2, 9)), Some(ResourceVersion(5)));
    }
}
