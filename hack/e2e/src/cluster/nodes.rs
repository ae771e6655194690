//! Node objects: registered as a kubelet would, or by one.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::cluster::layout::{IpFamily, node_v4, node_v6, pod_cidrs};

/// Creates the Node object of node `index` and reports it ready.
pub async fn register(client: &Client, index: u8, family: IpFamily) -> Result<()> {
    let name = format!("n{index}");
    let nodes: Api<Node> = Api::all(client.clone());
    let cidrs = pod_cidrs(index, family);
    let node: Node = serde_json::from_value(json!({
        "metadata": { "name": name, "labels": {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
        }},
        "spec": { "podCIDR": cidrs[0], "podCIDRs": cidrs },
    }))?;
    nodes
        .create(&PostParams::default(), &node)
        .await
        .with_context(|| format!("create Node {name}"))?;
    let addresses: Vec<Value> = family
        .pick(node_v4(index).to_string(), node_v6(index).to_string())
        .into_iter()
        .map(|address| json!({ "type": "InternalIP", "address": address }))
        .chain([json!({ "type": "Hostname", "address": name })])
        .collect();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let version = client.apiserver_version().await?.git_version;
    let status = json!({ "status": {
        "nodeInfo": {
            "kubeletVersion": version,
            "kernelVersion": kernel.trim(),
            "osImage": "network namespace",
            "containerRuntimeVersion": "none://",
            "operatingSystem": "linux",
            "architecture": "", "bootID": "", "machineID": "", "systemUUID": "",
            "kubeProxyVersion": "",
        },
        "addresses": addresses,
        "capacity": { "pods": "250", "cpu": "2", "memory": "4Gi" },
        "allocatable": { "pods": "250", "cpu": "2", "memory": "4Gi" },
        "conditions": [{
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "message": "a network namespace",
        }],
    }});
    nodes
        .patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
        .await
        .with_context(|| format!("report Node {name} ready"))?;
    Ok(())
}

/// Fails unless the kubelet of node `index` has registered it and reports it ready.
pub async fn ready(client: &Client, index: u8) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = nodes.get(&format!("n{index}")).await?;
    let conditions = node.status.and_then(|status| status.conditions);
    let conditions = conditions.unwrap_or_default();
    let condition = conditions.iter().find(|it| it.type_ == "Ready");
    ensure!(
        condition.is_some_and(|it| it.status == "True"),
        "{condition:?}"
    );
    Ok(())
}
