//! Writes what the agent reports: the LoadBalancerNode's status when it has
//! something new to say, and the Lease at every renewal.

use std::time::{Duration, Instant};

use highwire_api::{
    LoadBalancerNode, LoadBalancerNodeSpec, ResourceVersion,
    names::{
        AGENT_LEASE_DURATION, AGENT_LEASE_RENEWAL, OBSERVED_VERSION_ANNOTATION, SYSTEM_NAMESPACE,
        agent_lease,
    },
    runtime::errors::explain,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::Lease,
    apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference},
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{info, warn};

use crate::{deletions::Deleted, metrics::Metrics, report::Report};

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

/// The writer of one node's report.
#[derive(Debug)]
pub struct Reporter {
    node_name: String,
    nodes: Api<LoadBalancerNode>,
    leases: Api<Lease>,
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
    /// A writer for the node of this name.
    #[must_use]
    pub fn new(client: &Client, node_name: String, metrics: Metrics) -> Self {
        Self {
            nodes: Api::all(client.clone()),
            leases: Api::namespaced(client.clone(), SYSTEM_NAMESPACE),
            node_name,
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
        let mut renewal = interval(AGENT_LEASE_RENEWAL);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pause = STATUS_PAUSE;
        loop {
            let report = reports.borrow_and_update().clone();
            let pending = report
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
                    if let Some(report) = latest {
                        let observed = confirmed(self.written.as_ref(), &report);
                        let result = self.renew_lease(&report.node_uid, observed).await;
                        self.note(Object::Lease, result);
                    }
                }
                () = sleep(RETRY_PAUSE), if retry => {}
                Some(Deleted) = deletions.recv() => {
                    warn!(object = Object::Status.label(), "somebody deleted it; it is written again");
                    self.written = None;
                    self.ready = None;
                }
                changed = wait_changed(&mut reports, pause) => if !changed { return },
            }
        }
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

    async fn renew_lease(
        &self,
        node_uid: &str,
        observed: Option<ResourceVersion>,
    ) -> Result<(), String> {
        let name = agent_lease(&self.node_name);
        // RFC 3339 with microseconds, which MicroTime asks for.
        let now = format!("{:.6}", Timestamp::now());
        let patch = lease_patch(&self.node_name, &now, observed);
        let create = || Lease {
            metadata: owned_by_node(&name, &self.node_name, node_uid),
            ..Lease::default()
        };
        patch_or_create(&self.leases, &name, &patch, None, create)
            .await
            .map(drop)
    }

    /// Takes the node's report away, so that it leaves every ingress at once.
    pub async fn withdraw(client: &Client, node_name: &str) {
        let nodes: Api<LoadBalancerNode> = Api::all(client.clone());
        let leases: Api<Lease> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
        let params = DeleteParams::default();
        let node = timeout(CALL_TIMEOUT, nodes.delete(node_name, &params)).await;
        let lease_name = agent_lease(node_name);
        let lease = timeout(CALL_TIMEOUT, leases.delete(&lease_name, &params)).await;
        for (object, failed) in [
            ("LoadBalancerNode", !matches!(node, Ok(Ok(_)))),
            ("Lease", !matches!(lease, Ok(Ok(_)))),
        ] {
            if failed {
                warn!(
                    object,
                    "could not be deleted; it goes with the Node, or stays stale"
                );
            }
        }
    }
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

/// Without `observed`, the Lease keeps the version that it carries.
fn lease_patch(node: &str, now: &str, observed: Option<ResourceVersion>) -> Value {
    let annotations =
        observed.map(|version| json!({OBSERVED_VERSION_ANNOTATION: version.to_string()}));
    json!({
        "metadata": annotations.map_or(json!({}), |all| json!({ "annotations": all })),
        "spec": {
            "holderIdentity": node,
            "leaseDurationSeconds": AGENT_LEASE_DURATION.as_secs(),
            "renewTime": now,
        },
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
        Err(_) => Err(format!(
            "no answer from the API server within {} s",
            CALL_TIMEOUT.as_secs()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{decide::Decision, report::Readiness};

    fn report(revision: u64, observed: u64) -> Report {
        Report {
            node_uid: "u".into(),
            readiness: Readiness::Programmed,
            decision: Decision::default(),
            revision,
            observed: ResourceVersion(observed),
            proxy_mode: None,
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

    #[test]
    fn a_renewal_without_a_version_leaves_the_annotation_alone() {
        let patch = lease_patch("n1", "2026-01-02T03:04:05.000000Z", None);
        assert_eq!(patch["metadata"], json!({}));
        let patch = lease_patch(
            "n1",
            "2026-01-02T03:04:05.000000Z",
            Some(ResourceVersion(7)),
        );
        assert_eq!(
            patch["metadata"]["annotations"][OBSERVED_VERSION_ANNOTATION],
            "7"
        );
    }
}
