//! Writes what the agent reports: the LoadBalancerNode's status when it has
//! something new to say, and the Lease at every renewal.

use std::time::{Duration, Instant};

use highwire_api::{
    LoadBalancerNode, LoadBalancerNodeSpec, ResourceVersion,
    names::{AGENT_ABSENCE, OBSERVED_VERSION_ANNOTATION, agent_lease},
};
use highwire_runtime::errors::explain;
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, OwnerReference},
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant as Deadline, MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{info, warn};

use crate::{config::Config, deletions::Deleted, metrics::Metrics, report::Report};

/// Bursts of Service changes are told together, at most this often …
const STATUS_PAUSE: Duration = Duration::from_millis(50);
/// … and with pauses of so many times what the last write took, so that a status
/// with a thousand conflicts does not keep the API server busy …
const PAUSE_FACTOR: u32 = 5;
/// … but never less often than this.
const LONGEST_STATUS_PAUSE: Duration = Duration::from_secs(2);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Longer than this no API call may hold up the next Lease renewal.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// A Lease is renewed so many times while it is good.
const RENEWALS: u32 = 3;
/// How long the API server is waited for by an agent that takes its report away.
const WITHDRAWAL: Duration = Duration::from_secs(20);

/// The writer of one node's report.
#[derive(Debug)]
pub struct Reporter {
    node_name: String,
    nodes: Api<LoadBalancerNode>,
    leases: Api<Lease>,
    lease_duration: Duration,
    /// The Lease as the API server last answered it, to be replaced by one request.
    lease: Option<Lease>,
    /// The UID of the Node, while it exists.
    node: watch::Receiver<Option<String>>,
    metrics: Metrics,
    written: Option<Report>,
    ready: Option<Condition>,
    /// The last failure of each object, told once.
    failures: [Option<String>; 2],
}

/// What is written, as an index and a metric label.
#[derive(Clone, Copy)]
enum Object {
    Status,
    Lease,
}

impl Object {
    fn label(self) -> &'static str {
        match self {
            Self::Status => "LoadBalancerNode",
            Self::Lease => "Lease",
        }
    }
}

impl Reporter {
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
            leases: Api::namespaced(client.clone(), &config.place.namespace),
            lease_duration: config.lease_duration,
            lease: None,
            node,
            node_name: config.node_name.clone(),
            metrics,
            written: None,
            ready: None,
            failures: [None, None],
        }
    }

    /// Writes every report until the sender is gone, and the last one again when
    /// somebody has deleted it, as `deletions` tells. Failures are retried.
    pub async fn run(
        mut self,
        mut reports: watch::Receiver<Option<Report>>,
        mut deletions: mpsc::Receiver<Deleted>,
    ) {
        let mut renewal = interval(self.lease_duration / RENEWALS);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pause = STATUS_PAUSE;
        loop {
            let report = reports.borrow_and_update().clone();
            let pending = report
                .filter(|report| self.has_owner(report))
                .filter(|report| self.written.as_ref().is_none_or(|w| report.differs_from(w)));
            if let Some(report) = &pending {
                let first = self.written.is_none();
                let start = Instant::now();
                let result = self.write_status(report).await;
                let took = start.elapsed() * PAUSE_FACTOR;
                pause = took.clamp(STATUS_PAUSE, LONGEST_STATUS_PAUSE);
                if first && result.is_ok() {
                    // Without a Lease the node is not live: do not wait for the next renewal.
                    renewal.reset_immediately();
                }
                self.note(Object::Status, result);
            }
            let retry = self.failures[Object::Status as usize].is_some();
            tokio::select! {
                _ = renewal.tick() => {
                    let latest = reports.borrow().clone();
                    if let Some(report) = latest.filter(|report| self.has_owner(report)) {
                        let observed = confirmed(self.written.as_ref(), &report);
                        let result = self.renew_lease(&report.node_uid, observed).await;
                        self.note(Object::Lease, result);
                    }
                }
                () = sleep(RETRY_PAUSE), if retry => {}
                Some(Deleted) = deletions.recv() => {
                    warn!(
                        object = Object::Status.label(),
                        "it was deleted; it is written again while the Node exists"
                    );
                    self.written = None;
                    self.ready = None;
                }
                changed = wait_changed(&mut reports, pause) => if !changed { return },
            }
        }
    }

    /// Whether the Node that the report is about exists. Without it there is nothing to
    /// report, and the garbage collector would delete at once what has a dead owner.
    fn has_owner(&self, report: &Report) -> bool {
        self.node.borrow().as_ref() == Some(&report.node_uid)
    }

    fn note(&mut self, object: Object, result: Result<(), String>) {
        let failure = &mut self.failures[object as usize];
        match result {
            Ok(()) => {
                if failure.take().is_some() {
                    info!(object = object.label(), "written again");
                }
            }
            Err(message) => {
                self.metrics
                    .report_errors
                    .with_label_values(&[object.label()])
                    .inc();
                if failure.as_ref() != Some(&message) {
                    warn!(
                        object = object.label(),
                        "cannot write, will retry: {message}"
                    );
                }
                *failure = Some(message);
            }
        }
    }

    async fn write_status(&mut self, report: &Report) -> Result<(), String> {
        let status = report.status(self.ready.as_ref(), Timestamp::now());
        let patch = json!({ "status": status });
        let name = self.node_name.clone();
        let create = || LoadBalancerNode {
            metadata: owned_by_node(&name, &name, &report.node_uid),
            spec: LoadBalancerNodeSpec::default(),
            status: None,
        };
        let written = patch_or_create(&self.nodes, &name, &patch, Some("status"), create).await?;
        self.ready = written
            .status
            .as_ref()
            .and_then(|status| status.ready().cloned());
        self.written = Some(report.clone());
        Ok(())
    }

    /// One request, as long as nobody else writes the Lease.
    async fn renew_lease(
        &mut self,
        node_uid: &str,
        observed: Option<ResourceVersion>,
    ) -> Result<(), String> {
        let name = agent_lease(&self.node_name);
        if let Some(mut lease) = self.lease.take() {
            renew(&mut lease, &self.node_name, self.lease_duration, observed);
            let params = PostParams::default();
            let replaced = self.leases.replace(&name, &params, &lease);
            match timeout(CALL_TIMEOUT, replaced).await {
                Ok(Ok(lease)) => {
                    self.lease = Some(lease);
                    return Ok(());
                }
                // Written or deleted by somebody else: below, as at the start.
                Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {}
                Ok(Err(error)) => return Err(explain(&error)),
                Err(_) => return Err(no_answer()),
            }
        }
        let mut lease = Lease {
            metadata: owned_by_node(&name, &self.node_name, node_uid),
            ..Lease::default()
        };
        renew(&mut lease, &self.node_name, self.lease_duration, observed);
        let patch = json!({
            "metadata": {
                "annotations": lease.metadata.annotations,
                "ownerReferences": lease.metadata.owner_references,
            },
            "spec": lease.spec,
        });
        let create = || lease.clone();
        self.lease = Some(patch_or_create(&self.leases, &name, &patch, None, create).await?);
        Ok(())
    }

    /// Takes the node's report away, so that it leaves every ingress at once.
    pub async fn withdraw(client: &Client, namespace: &str, node_name: &str) {
        let nodes: Api<LoadBalancerNode> = Api::all(client.clone());
        let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
        let lease = agent_lease(node_name);
        tokio::join!(
            delete(&nodes, node_name, Object::Status),
            delete(&leases, &lease, Object::Lease),
        );
    }

    /// Leaves a Lease that is good until another agent is there, however long the pull
    /// of its image takes.
    pub async fn bridge(client: &Client, namespace: &str, node_name: &str) {
        let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
        let patch = Patch::Merge(json!({ "spec": {
            "leaseDurationSeconds": AGENT_ABSENCE.as_secs(),
            "renewTime": MicroTime(Timestamp::now()),
        }}));
        let (name, params) = (agent_lease(node_name), PatchParams::default());
        let written = leases.patch(&name, &params, &patch);
        match timeout(CALL_TIMEOUT, written).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => warn!("cannot leave a longer Lease: {}", explain(&error)),
            Err(_) => warn!("cannot leave a longer Lease: {}", no_answer()),
        }
    }
}

/// Deletes an object of ours. Waits for an API server that is away, and not for rights
/// that are gone: with those goes the object.
async fn delete<K>(api: &Api<K>, name: &str, object: Object)
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned,
{
    let (end, params) = (Deadline::now() + WITHDRAWAL, DeleteParams::default());
    loop {
        let deleted = api.delete(name, &params);
        let problem = match timeout(CALL_TIMEOUT, deleted).await {
            Ok(Ok(_)) => return,
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => return,
            Ok(Err(error @ kube::Error::Api(_))) => {
                let object = object.label();
                info!(
                    object,
                    "goes with Highwire or its Node: {}",
                    explain(&error)
                );
                return;
            }
            Ok(Err(error)) => explain(&error),
            Err(_) => no_answer(),
        };
        if Deadline::now() >= end {
            let object = object.label();
            warn!(
                object,
                "could not be deleted; it goes with the Node: {problem}"
            );
            return;
        }
        sleep(RETRY_PAUSE).await;
    }
}

/// Makes the Lease say that the agent of this node is alive. Without `observed`, it
/// keeps the version that it carries.
fn renew(lease: &mut Lease, node: &str, duration: Duration, observed: Option<ResourceVersion>) {
    if let Some(observed) = observed {
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.insert(OBSERVED_VERSION_ANNOTATION.to_owned(), observed.to_string());
    }
    // Written by us only, and needless to send.
    lease.metadata.managed_fields = None;
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(node.to_owned()),
        lease_duration_seconds: i32::try_from(duration.as_secs()).ok(),
        renew_time: Some(MicroTime(Timestamp::now())),
        ..LeaseSpec::default()
    });
}

fn no_answer() -> String {
    let seconds = CALL_TIMEOUT.as_secs();
    format!("no answer from the API server within {seconds} s")
}

/// Waits for a new report, then a little for those right behind it.
async fn wait_changed(reports: &mut watch::Receiver<Option<Report>>, pause: Duration) -> bool {
    sleep(pause).await;
    reports.changed().await.is_ok()
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

fn owned_by_node(name: &str, node: &str, uid: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        owner_references: Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node.to_owned(),
            uid: uid.to_owned(),
            ..OwnerReference::default()
        }]),
        ..ObjectMeta::default()
    }
}

async fn patch_or_create<K>(
    api: &Api<K>,
    name: &str,
    patch: &Value,
    subresource: Option<&str>,
    create: impl Fn() -> K,
) -> Result<K, String>
where
    K: Resource + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    let params = PatchParams::default();
    let write = async || {
        let patch = Patch::Merge(patch);
        match subresource {
            Some(subresource) => {
                api.patch_subresource(subresource, name, &params, &patch)
                    .await
            }
            None => api.patch(name, &params, &patch).await,
        }
    };
    let attempt = async {
        match write().await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                api.create(&PostParams::default(), &create()).await?;
                write().await
            }
            other => other,
        }
    };
    match timeout(CALL_TIMEOUT, attempt).await {
        Ok(Ok(written)) => Ok(written),
        Ok(Err(error)) => Err(explain(&error)),
        Err(_) => Err(no_answer()),
    }
}

#[cfg(test)]
#[path = "reporter_tests.rs"]
mod tests;
