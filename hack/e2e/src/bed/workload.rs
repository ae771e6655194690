//! Echo servers that kubelets run: Pods of a Deployment or a DaemonSet.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use kube::api::{Api, PostParams};
use serde_json::{Value, json};

use crate::bed::scope::Scope;
use crate::lab::wait::try_wait_for;

/// How long Pods may take to be ready.
const LIMIT: Duration = Duration::from_secs(60);

/// How a Pod's port is reached on its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPort {
    /// Not at all.
    None,
    /// By portmap's rules.
    Portmap,
    /// The Pod is in the node's network.
    HostNetwork,
}

/// A Deployment of so many echo servers at TCP 8080 and UDP 5353, labelled `app=<name>`;
/// waits until all are ready.
pub async fn deployment(scope: &Scope, name: &str, replicas: i32) -> Result<()> {
    let template = template(name, 8080, HostPort::None);
    let object: Deployment = serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "template": template,
        },
    }))?;
    let api: Api<Deployment> = Api::namespaced(scope.cluster().client(), scope.namespace());
    let created = api.create(&PostParams::default(), &object).await;
    created.with_context(|| format!("create Deployment {name}"))?;
    try_wait_for(&format!("{name} to be ready"), LIMIT, || async {
        let status = api.get(name).await?.status.context("no status yet")?;
        ensure!(status.ready_replicas == Some(replicas), "{status:?}");
        Ok(())
    })
    .await
}

/// A DaemonSet of echo servers on every node, at this TCP port and UDP 5353, labelled
/// `app=<name>`; waits until all are ready.
pub async fn daemon_set(scope: &Scope, name: &str, port: u16, host: HostPort) -> Result<()> {
    let object: DaemonSet = serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": {
            "selector": { "matchLabels": { "app": name } },
            "template": template(name, port, host),
        },
    }))?;
    let api: Api<DaemonSet> = Api::namespaced(scope.cluster().client(), scope.namespace());
    let created = api.create(&PostParams::default(), &object).await;
    created.with_context(|| format!("create DaemonSet {name}"))?;
    let nodes = i32::from(scope.cluster().config().nodes);
    try_wait_for(&format!("{name} to be ready"), LIMIT, || async {
        let status = api.get(name).await?.status.context("no status yet")?;
        ensure!(status.number_ready == nodes, "{status:?}");
        Ok(())
    })
    .await
}

fn template(name: &str, port: u16, host: HostPort) -> Value {
    let mut ports = json!([{ "containerPort": port }]);
    if host == HostPort::Portmap {
        ports[0]["hostPort"] = json!(port);
    }
    // In the node's network another Pod may have the same UDP port.
    let udp = (host != HostPort::HostNetwork).then(|| "--udp=5353".to_owned());
    let arguments: Vec<String> = ["--name=$(POD_NAME)".to_owned(), format!("--tcp={port}")]
        .into_iter()
        .chain(udp)
        .collect();
    json!({
        "metadata": { "labels": { "app": name } },
        "spec": {
            "hostNetwork": host == HostPort::HostNetwork,
            // The server ends at once, but not by SIGTERM.
            "terminationGracePeriodSeconds": 4,
            "containers": [{
                "name": "echo",
                "image": "localhost/highwire-echo:1",
                "args": arguments,
                "env": [{
                    "name": "POD_NAME",
                    "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } },
                }],
                "ports": ports,
                // It serves until kube-proxies have noticed that it goes.
                "lifecycle": { "preStop": { "sleep": { "seconds": 3 } } },
                "readinessProbe": { "tcpSocket": { "port": port }, "periodSeconds": 1 },
            }],
        },
    })
}
