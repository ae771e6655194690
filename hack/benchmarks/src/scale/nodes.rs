//! The objects of simulated nodes: a Node as a kubelet registers it, the agent's Pod on it,
//! and a token of that Pod.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use highwire_e2e::highwire::token;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

/// Where Highwire is installed.
pub(super) const NAMESPACE: &str = "highwire-system";
/// The ServiceAccount of the agents.
const ACCOUNT: &str = "highwire-agent";
/// The label of the simulated nodes, and what their Services select.
pub(super) const LABEL: &str = "highwire-bench/simulated";
/// Requests under way at once.
const AT_ONCE: usize = 16;

/// A node that was registered.
#[derive(Clone, Debug)]
pub(super) struct Registered {
    /// The Node as the API server has it.
    pub(super) node: Node,
    /// A token of the agent's Pod there.
    pub(super) token: String,
}

/// The name of a node; names sort as numbers do.
pub(super) fn name(index: usize) -> String {
    format!("sim-{index:05}")
}

/// The InternalIP of a node.
pub(super) fn address(index: usize) -> IpAddr {
    let [.., high, low] = (index + 1).to_be_bytes();
    Ipv4Addr::new(10, 1, high, low).into()
}

/// Registers `count` nodes.
pub(super) async fn register(client: &Client, count: usize) -> Result<Vec<Registered>> {
    let registering = (0..count).map(|index| register_one(client.clone(), index));
    stream::iter(registering)
        .buffered(AT_ONCE)
        .try_collect()
        .await
}

async fn register_one(client: Client, index: usize) -> Result<Registered> {
    let name = name(index);
    let nodes: Api<Node> = Api::all(client.clone());
    let object: Node = serde_json::from_value(node(index))?;
    let created = nodes.create(&PostParams::default(), &object).await;
    let node = created.with_context(|| format!("create Node {name}"))?;
    let token = token(client, &name).await;
    let token = token.with_context(|| format!("a token of the agent on {name}"))?;
    Ok(Registered { node, token })
}

/// Says of the Nodes of these indices whether they are ready, as the kubelet or, if that is
/// silent, the node lifecycle controller does.
pub(super) async fn set_ready(client: &Client, indices: &[usize], is_ready: bool) -> Result<()> {
    let (status, reason) = match is_ready {
        true => ("True", "KubeletReady"),
        false => ("Unknown", "NodeStatusUnknown"),
    };
    let condition = json!({ "type": "Ready", "status": status, "reason": reason });
    let patch = json!({ "status": { "conditions": [condition] } });
    patch_all(client, indices, &patch).await
}

/// The name of the agent's Pod on a node.
fn pod_name(node: &str) -> String {
    format!("{ACCOUNT}-{node}")
}

/// Writes the heartbeat of one Node, as its kubelet does every five minutes.
pub(super) async fn beat(client: &Client, index: usize) -> Result<()> {
    let now = jiff::Timestamp::now().to_string();
    let condition = json!({ "type": "Ready", "lastHeartbeatTime": now });
    let patch = json!({ "status": { "conditions": [condition] } });
    patch_all(client, &[index], &patch).await
}

async fn patch_all(client: &Client, indices: &[usize], patch: &Value) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let params = PatchParams::default();
    let indices = indices.iter().copied();
    let patching = indices.map(|index| {
        let (nodes, params) = (nodes.clone(), params.clone());
        let patch = Patch::Strategic(patch.clone());
        async move { nodes.patch_status(&name(index), &params, &patch).await }
    });
    let patched = stream::iter(patching).buffer_unordered(AT_ONCE);
    patched.try_collect::<Vec<_>>().await?;
    Ok(())
}

async fn token(client: Client, node: &str) -> Result<String> {
    let name = pod_name(node);
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": {
            "nodeName": node,
            "serviceAccountName": ACCOUNT,
            "containers": [{ "name": "agent", "image": "highwire-agent" }],
        },
    }))?;
    let pod = pods.create(&PostParams::default(), &pod).await?;
    token::of_pod(client, &pod).await
}

/// A Node as a kubelet registers it, with the images that it has.
fn node(index: usize) -> Value {
    let (name, address) = (name(index), address(index));
    let condition = |type_: &str, status: &str| json!({ "type": type_, "status": status, "reason": "Kubelet", "message": "as it should be" });
    let image = |number: usize| {
        let repository = format!("registry.example/team/image-{number}");
        json!({ "names": [format!("{repository}@sha256:{:064x}", number), format!("{repository}:1.0")],
                "sizeBytes": 50_000_000 })
    };
    json!({
        "metadata": { "name": name, "labels": {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            "topology.kubernetes.io/zone": format!("zone-{}", index % 3),
            "highwire.dev/enabled": "true",
            LABEL: "true",
        }},
        "spec": {},
        "status": {
            "nodeInfo": {
                "kubeletVersion": "v1.36.0", "kernelVersion": "6.1.0", "osImage": "simulated",
                "containerRuntimeVersion": "containerd://2.2.0", "operatingSystem": "linux",
                "architecture": "amd64", "bootID": "", "machineID": "", "systemUUID": "",
                "kubeProxyVersion": "",
            },
            "addresses": [
                { "type": "InternalIP", "address": address },
                { "type": "Hostname", "address": name },
            ],
            "capacity": { "pods": "110", "cpu": "16", "memory": "64Gi" },
            "allocatable": { "pods": "110", "cpu": "16", "memory": "64Gi" },
            "conditions": [
                condition("MemoryPressure", "False"),
                condition("DiskPressure", "False"),
                condition("PIDPressure", "False"),
                condition("Ready", "True"),
            ],
            "images": (0..25).map(image).collect::<Vec<_>>(),
        },
    })
}
