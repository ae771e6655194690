//! The Pod objects of our own programs, made as the controllers of the DaemonSet and
//! the Deployment would make them. Those do not run here; the garbage collector and the
//! namespace controller do, so that what is deleted cascades as it does anywhere.

use anyhow::{Context, Result};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Resource, ResourceExt};
use serde_json::json;

use crate::cluster::handle::Cluster;

/// Namespace of our ServiceAccounts, Leases and Pods, as `deploy/` has it.
pub const NAMESPACE: &str = "highwire-system";

/// Where Highwire is installed, and what its objects' names begin with.
#[derive(Clone, Debug)]
pub struct Install {
    /// Its namespace.
    pub namespace: String,
    /// kustomize's `namePrefix`.
    pub prefix: String,
}

impl Default for Install {
    /// As `deploy/` has it.
    fn default() -> Self {
        Self {
            namespace: NAMESPACE.to_owned(),
            prefix: String::new(),
        }
    }
}

/// Which of our programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of the DaemonSet.
    Agent,
    /// Of the Deployment.
    Controller,
}

/// One of our programs as Kubernetes sees it.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Where it is installed.
    pub install: Install,
    kind: Kind,
    instance: String,
    node: String,
}

impl Workload {
    /// The `instance` of that program on that node.
    pub(crate) fn new(kind: Kind, instance: &str, node: &str) -> Self {
        Self {
            install: Install::default(),
            kind,
            instance: instance.to_owned(),
            node: node.to_owned(),
        }
    }

    /// The name of its ServiceAccount, and of its DaemonSet or Deployment.
    pub fn account(&self) -> String {
        let name = match self.kind {
            Kind::Agent => "highwire-agent",
            Kind::Controller => "highwire-controller",
        };
        format!("{}{name}", self.install.prefix)
    }

    /// The name of its Pod.
    pub fn pod_name(&self) -> String {
        format!("{}-{}", self.account(), self.instance)
    }

    /// Its Pod, created if it is not there; one that is being deleted is removed first.
    pub async fn ensure_pod(&self, cluster: &Cluster) -> Result<Pod> {
        let (name, namespace) = (self.pod_name(), &self.install.namespace);
        let pods: Api<Pod> = Api::namespaced(cluster.client(), namespace);
        if let Some(pod) = pods.get_opt(&name).await? {
            if pod.metadata.deletion_timestamp.is_none() {
                return Ok(pod);
            }
            let now = DeleteParams::default().grace_period(0);
            pods.delete(&name, &now).await?;
        }
        let (template, owner) = self.template(cluster).await?;
        let mut spec = template.spec.context("the template has no spec")?;
        spec.node_name = Some(self.node.clone());
        let pod = Pod {
            metadata: kube::api::ObjectMeta {
                name: Some(name.clone()),
                owner_references: owner.map(|owner| vec![owner]),
                ..template.metadata.unwrap_or_default()
            },
            spec: Some(spec),
            status: None,
        };
        let created = pods.create(&PostParams::default(), &pod).await;
        let pod = created.with_context(|| {
            format!("create Pod {namespace}/{name}; was kubectl apply -f deploy done?")
        })?;
        let running = json!({ "status": { "phase": "Running" } });
        pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(running))
            .await?;
        Ok(pod)
    }

    /// What its Pod is made from, and who owns it. While the DaemonSet or Deployment is
    /// not there, a Pod that nobody owns.
    async fn template(
        &self,
        cluster: &Cluster,
    ) -> Result<(PodTemplateSpec, Option<OwnerReference>)> {
        let (client, namespace, name) = (cluster.client(), &self.install.namespace, self.account());
        let found = match self.kind {
            Kind::Agent => {
                let sets: Api<DaemonSet> = Api::namespaced(client, namespace);
                let set = sets.get_opt(&name).await?;
                set.map(|set| (owned_by(&set), set.spec.map(|spec| spec.template)))
            }
            Kind::Controller => {
                let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
                match deployments.get_opt(&name).await? {
                    Some(deployment) => {
                        let owner = replica_set(cluster, namespace, &deployment).await?;
                        Some((owner, deployment.spec.map(|spec| spec.template)))
                    }
                    None => None,
                }
            }
        };
        if let Some((owner, template)) = found {
            return Ok((template.context("no template")?, owner));
        }
        let alone = serde_json::from_value(json!({ "spec": {
            "serviceAccountName": name,
            "containers": [{ "name": "program", "image": "highwire" }],
        }}))?;
        Ok((alone, None))
    }
}

/// The Deployment's ReplicaSet as the owner of Pods; created if it is not there.
async fn replica_set(
    cluster: &Cluster,
    namespace: &str,
    deployment: &Deployment,
) -> Result<Option<OwnerReference>> {
    let name = format!("{}-1", deployment.name_any());
    let sets: Api<ReplicaSet> = Api::namespaced(cluster.client(), namespace);
    if let Some(set) = sets.get_opt(&name).await? {
        return Ok(owned_by(&set));
    }
    let spec = deployment
        .spec
        .as_ref()
        .context("a Deployment has a spec")?;
    let labels = spec
        .template
        .metadata
        .as_ref()
        .and_then(|it| it.labels.clone());
    let set: ReplicaSet = serde_json::from_value(json!({
        "metadata": {
            "name": name,
            "labels": labels,
            "ownerReferences": owned_by(deployment).map(|owner| vec![owner]),
        },
        "spec": {
            "replicas": spec.replicas, "selector": spec.selector, "template": spec.template,
        },
    }))?;
    match sets.create(&PostParams::default(), &set).await {
        // Another program of the same Deployment was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => {
            Ok(owned_by(&sets.get(&name).await?))
        }
        created => Ok(owned_by(&created.context("create the ReplicaSet")?)),
    }
}

fn owned_by<K: Resource<DynamicType = ()>>(owner: &K) -> Option<OwnerReference> {
    owner
        .controller_owner_ref(&())
        .map(|reference| OwnerReference {
            block_owner_deletion: Some(true),
            ..reference
        })
}
