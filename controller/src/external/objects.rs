//! Writes LoadBalancers, and the statuses of ExternalLoadBalancers.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use highwire_api::{
    ServiceKey,
    external::{
        EDGE_READY, ExternalLoadBalancer, ExternalLoadBalancerStatus, LoadBalancer,
        LoadBalancerStatus,
    },
    names::FIELD_MANAGER,
};
use highwire_runtime::errors::explain;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api, Client, Resource as _,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, Preconditions},
};
use serde_json::json;
use tokio::task::JoinSet;
use tracing::warn;

use super::plan::Wanted;

/// How many objects are written at once.
const WRITES: usize = 8;

/// A write, and what it is for.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// The Service's LoadBalancer asks for what is wanted.
    Apply(ServiceKey, Wanted),
    /// There is no LoadBalancer of this UID any more.
    Delete(ServiceKey, Option<String>),
    /// The status of a LoadBalancer.
    Status(ServiceKey, Box<LoadBalancerStatus>),
    /// The status of an ExternalLoadBalancer.
    External(String, Box<ExternalLoadBalancerStatus>),
}

/// Whether a write was carried out; a failure was logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It was, or the object is gone.
    Done,
    /// Try again later.
    Failed,
}

/// The writer. The client's requests have a deadline.
#[derive(Clone)]
pub struct Objects {
    client: Client,
}

impl Objects {
    /// A writer that uses this client.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Carries out all of them, some at once.
    pub async fn carry_out(&self, writes: Vec<Write>) -> Vec<(Write, Written)> {
        let (mut tasks, mut results) = (JoinSet::new(), Vec::new());
        for write in writes {
            if tasks.len() == WRITES {
                results.extend(tasks.join_next().await.and_then(Result::ok));
            }
            let objects = self.clone();
            tasks.spawn(async move {
                let written = objects.write(&write).await;
                (write, written)
            });
        }
        results.extend(tasks.join_all().await);
        results
    }

    async fn write(&self, write: &Write) -> Written {
        match write {
            Write::Apply(key, wanted) => self.apply(key, wanted).await,
            Write::Delete(key, uid) => self.delete(key, uid.clone()).await,
            Write::Status(key, status) => {
                let api = self.load_balancers(key);
                // What the agent on a box says there is its own.
                let mut status = status.clone();
                status.conditions.retain(|it| it.type_ != EDGE_READY);
                let patch = Patch::Apply(json!({
                    "apiVersion": LoadBalancer::api_version(&()),
                    "kind": LoadBalancer::kind(&()),
                    "metadata": { "name": key.name.as_ref() },
                    "status": status,
                }));
                let params = PatchParams::apply(FIELD_MANAGER).force();
                let write = || api.patch_status(&key.name, &params, &patch);
                let result = retried(write).await.map(drop);
                done(key, "the LoadBalancer's status", result)
            }
            Write::External(name, status) => {
                let api = Api::<ExternalLoadBalancer>::all(self.client.clone());
                let patch = Patch::Merge(json!({ "status": status }));
                let params = params();
                let write = || api.patch_status(name, &params, &patch);
                let result = retried(write).await.map(drop);
                done(name, "the ExternalLoadBalancer's status", result)
            }
        }
    }

    async fn apply(&self, key: &ServiceKey, wanted: &Wanted) -> Written {
        let object = LoadBalancer {
            metadata: ObjectMeta {
                name: Some(key.name.to_string()),
                // It goes with the Service, and the Service does not wait for it.
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Service".to_owned(),
                    name: key.name.to_string(),
                    uid: wanted.service_uid.clone(),
                    controller: Some(true),
                    block_owner_deletion: Some(false),
                }]),
                ..ObjectMeta::default()
            },
            spec: wanted.spec.clone(),
            status: None,
        };
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let api = self.load_balancers(key);
        let patch = Patch::Apply(&object);
        let write = || api.patch(&key.name, &params, &patch);
        done(key, "the LoadBalancer", retried(write).await.map(drop))
    }

    async fn delete(&self, key: &ServiceKey, uid: Option<String>) -> Written {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid,
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let api = self.load_balancers(key);
        let write = || api.delete(&key.name, &params);
        done(key, "the LoadBalancer", retried(write).await.map(drop))
    }

    fn load_balancers(&self, key: &ServiceKey) -> Api<LoadBalancer> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }
}

fn params() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

/// Writes again, soon and twice at most, if there was no answer.
async fn retried<T, F, W>(write: W) -> Result<T, kube::Error>
where
    W: FnMut() -> F,
    F: Future<Output = Result<T, kube::Error>>,
{
    let pauses = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_times(2);
    let is_silent = |error: &kube::Error| !matches!(error, kube::Error::Api(_));
    write.retry(pauses).when(is_silent).await
}

fn done(what: impl std::fmt::Display, kind: &str, result: Result<(), kube::Error>) -> Written {
    match result {
        Ok(()) => Written::Done,
        // Another version of it, or nothing, is there: the watch brings that.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Written::Done,
        Err(error) => {
            warn!(object = %what, "cannot write {kind}, will retry: {}", explain(&error));
            Written::Failed
        }
    }
}
