//! The Services that are made, and the Pods behind them.

use std::time::Instant;

use anyhow::{Context, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use super::nodes::LABEL;

/// The namespace of all Services.
pub(super) const NAMESPACE: &str = "bench-scale";
/// The first port. Below it are reserved ones, such as the kubelet's; NodePorts begin at
/// 30,000.
const FIRST_PORT: usize = 11_000;
/// Requests under way at once.
const AT_ONCE: usize = 16;
/// Endpoints of each Service.
const PODS: usize = 3;

/// The ports of Services.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ports {
    /// Each has one of its own.
    Own,
    /// All want this one.
    One(u16),
}

/// Makes the namespace, and the Pods that all Services select.
pub(super) async fn prepare(client: &Client) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = serde_json::from_value(json!({ "metadata": { "name": NAMESPACE } }))?;
    let created = namespaces.create(&PostParams::default(), &namespace).await;
    created.with_context(|| format!("create Namespace {NAMESPACE}"))?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    for number in 0..PODS {
        let name = format!("web-{number}");
        let pod = serde_json::from_value(json!({
            "metadata": { "name": name, "labels": { "app": "web" } },
            "spec": {
                "nodeName": super::nodes::name(0),
                "serviceAccountName": "default", "automountServiceAccountToken": false,
                "containers": [{ "name": "web", "image": "web" }],
            },
        }))?;
        let params = PostParams::default();
        create_pod(&pods, &params, &pod).await?;
        let status = json!({ "status": {
            "phase": "Running",
            "podIP": format!("10.244.0.{}", number + 1),
            "podIPs": [{ "ip": format!("10.244.0.{}", number + 1) }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        }});
        let patch = Patch::Merge(status);
        pods.patch_status(&name, &PatchParams::default(), &patch)
            .await?;
    }
    Ok(())
}

/// The namespace's ServiceAccount may be a moment late.
async fn create_pod(pods: &Api<Pod>, params: &PostParams, pod: &Pod) -> Result<()> {
    let limit = std::time::Duration::from_secs(10);
    let create = || async { pods.create(params, pod).await };
    let created = highwire_e2e::lab::wait::try_wait_for("a Pod to be created", limit, create);
    created.await.map(drop)
}

/// Creates Services `<prefix>-0` and so on, as many at once as a program would. Returns
/// when each was accepted.
pub(super) async fn create(
    client: &Client,
    prefix: &str,
    count: usize,
    ports: Ports,
) -> Result<Vec<(String, Instant)>> {
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let creating = (0..count).map(|index| {
        let (services, name) = (services.clone(), format!("{prefix}-{index:05}"));
        async move {
            let port = match ports {
                Ports::Own => FIRST_PORT + index,
                Ports::One(port) => port.into(),
            };
            let service = serde_json::from_value(json!({
                "metadata": { "name": name, "annotations": {
                    // On a cluster with other nodes, those are left out.
                    "highwire.dev/node-selector": format!("{LABEL}=true"),
                }},
                "spec": {
                    "type": "LoadBalancer",
                    "loadBalancerClass": "highwire.dev/node",
                    // There are 2,768 in a cluster.
                    "allocateLoadBalancerNodePorts": false,
                    "selector": { "app": "web" },
                    "ports": [{ "name": "http", "port": port, "targetPort": 8080 }],
                },
            }))?;
            let created = services.create(&PostParams::default(), &service).await;
            created.with_context(|| format!("create Service {name}"))?;
            anyhow::Ok((name, Instant::now()))
        }
    });
    stream::iter(creating)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}
