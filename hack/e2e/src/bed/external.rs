//! ExternalLoadBalancers and what the API says of them.

use anyhow::{Context, Result};
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

use crate::bed::service::Svc;
use crate::cluster::handle::Cluster;
use crate::lab::test_run::{self, Leftover};

const GROUP: &str = "highwire.dev";
const VERSION: &str = "v1alpha1";
/// How long the end of one may take, as kubectl has it.
const END: &str = "--timeout=20s";

/// An ExternalLoadBalancer that was created. It goes at the end of the test; with a cluster
/// of the test's own it goes with that.
pub struct ExternalLoadBalancer {
    cluster: Cluster,
    api: Api<DynamicObject>,
    name: String,
}

impl ExternalLoadBalancer {
    /// Creates one with that spec. Names are the whole cluster's: a scope's namespace makes a
    /// good one.
    pub async fn create(cluster: &Cluster, name: &str, spec: Value) -> Result<Self> {
        let resource = resource("ExternalLoadBalancer", "externalloadbalancers");
        let api: Api<DynamicObject> = Api::all_with(cluster.client(), &resource);
        let object = DynamicObject::new(name, &resource).data(json!({ "spec": spec }));
        let created = api.create(&PostParams::default(), &object).await;
        created.with_context(|| format!("create ExternalLoadBalancer {name}"))?;
        Ok(Self {
            cluster: cluster.clone(),
            api,
            name: name.to_owned(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The object as it is now.
    pub async fn get(&self) -> Result<Value> {
        let object = self.api.get(&self.name).await;
        let object = object.with_context(|| format!("get ExternalLoadBalancer {}", self.name))?;
        Ok(serde_json::to_value(object)?)
    }

    /// Merges a patch into the object.
    pub async fn patch(&self, patch: Value) -> Result<()> {
        let patched = self
            .api
            .patch(&self.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .map(drop);
        patched.with_context(|| format!("patch ExternalLoadBalancer {}", self.name))
    }

    /// The names of the backends that have to be deleted on the box still.
    pub async fn pending_deletions(&self) -> Result<Vec<String>> {
        let object = self.get().await?;
        let pending = object["status"]["pendingDeletions"].as_array();
        let names = pending.into_iter().flatten();
        Ok(names
            .filter_map(|it| it["backendName"].as_str().map(str::to_owned))
            .collect())
    }
}

impl Drop for ExternalLoadBalancer {
    fn drop(&mut self) {
        if self.cluster.is_shared() {
            test_run::at_end(Removal {
                cluster: self.cluster.clone(),
                name: self.name.clone(),
            });
        }
    }
}

/// One on the shared cluster that was dropped.
struct Removal {
    cluster: Cluster,
    name: String,
}

impl Leftover for Removal {
    fn remove(self: Box<Self>) {
        let object = format!("externalloadbalancers.{GROUP}/{}", self.name);
        let deleted = self
            .cluster
            .kubectl(&["delete", &object, "--ignore-not-found", END]);
        if let Err(error) = deleted {
            eprintln!("ExternalLoadBalancer {}: {error:#}", self.name);
        }
    }

    fn keep(self: Box<Self>) {}
}

/// The LoadBalancer of a Service, which has its namespace and its name.
pub async fn load_balancer(cluster: &Cluster, service: &Svc) -> Result<Value> {
    let namespace = service.object.metadata.namespace.as_deref();
    let namespace = namespace.context("the Service has no namespace")?;
    let resource = resource("LoadBalancer", "loadbalancers");
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client(), namespace, &resource);
    let object = api.get(service.name()).await;
    let object =
        object.with_context(|| format!("get LoadBalancer {namespace}/{}", service.name()))?;
    Ok(serde_json::to_value(object)?)
}

fn resource(kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, VERSION, kind), plural)
}
