//! What is so only on nodes without a kube-proxy, where our own rules choose the Pod:
//! `hack/test cluster none`.
//!
//! Addresses: nodes 192.0.2.11 and 2001:db8:1::11 (n1), .12 and ::12 (n2) serve, n3 does not;
//! Pods 10.244.0.0/16 and fd00:244::/32; the client has 198.51.100.10 and 2001:db8:2::10.

mod affinity;
mod clients;
mod endpoints;
mod first_endpoints;
mod hints;
mod local;
mod restart;
mod switch;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use highwire_e2e::expect::{LONG, SHORT};
use highwire_e2e::{Cluster, Netns, Pod, Program, Scope, highwire, wait_for};

/// The shared cluster, which has no kube-proxies, with Highwire on n1 and n2.
async fn cluster() -> Result<Cluster> {
    let cluster = Cluster::attach().await?;
    ensure!(
        !cluster.config().proxy_modes.has_any(),
        "this cluster has kube-proxies: hack/test cluster none runs these tests"
    );
    highwire::require(&cluster)?;
    Ok(cluster)
}

/// That cluster, and a scope on it.
async fn bed(prefix: &str) -> Result<(Cluster, Scope)> {
    let cluster = cluster().await?;
    let scope = Scope::new(&cluster, prefix).await?;
    Ok((cluster, scope))
}

/// A Pod on each node that is no endpoint, for clients in the cluster.
async fn client_pods(scope: &Scope) -> Result<Vec<Pod>> {
    let mut pods = Vec::new();
    for node in ["n1", "n2", "n3"] {
        let pod = scope.pod(&format!("client-{node}")).on(node);
        pods.push(pod.tcp(1).start().await?);
    }
    Ok(pods)
}

/// A Pod `app=web` with TCP 8080 and UDP 5353.
async fn web_pod(scope: &Scope, name: &str, node: &str) -> Result<Pod> {
    let pod = scope.pod(name).on(node).label("app", "web");
    pod.tcp(8080).udp(5353).start().await
}

/// How many of so many connections each Pod gets; each has this long.
fn shares(
    from: &Netns,
    to: SocketAddr,
    connections: usize,
    limit: Duration,
) -> Result<BTreeMap<String, usize>> {
    let mut shares = BTreeMap::new();
    for number in 0..connections {
        let reply = from
            .http_get(to, limit)
            .with_context(|| format!("connection {number} to {to}"))?;
        *shares.entry(reply.pod).or_default() += 1;
    }
    Ok(shares)
}

/// Waits until these Pods, and no others, get what is asked 30 times in a row.
async fn only(from: &Netns, to: SocketAddr, pods: &[&str]) {
    wait_for(&format!("{pods:?} alone at {to}"), LONG, || async {
        let seen = shares(from, to, 30, SHORT)?;
        ensure!(seen.keys().eq(pods), "{seen:?}");
        Ok(())
    })
    .await;
}

/// The agent with this `--service-proxy`.
fn with_service_proxy(agent: Program, value: &str) -> Program {
    let flag = format!("--service-proxy={value}");
    agent.with_arguments(&["--listener-hold-down=2s", &flag])
}

/// Waits until the node is ready and reports this mode of kube-proxy.
async fn reports(cluster: &Cluster, node: &str, mode: &str) {
    wait_for(&format!("{node} to report {mode}"), LONG, || async {
        let path =
            "-o=jsonpath={.status.proxyMode} {.status.conditions[?(@.type=='Ready')].status}";
        let report = cluster.kubectl(&["get", "lbn", node, path])?;
        ensure!(report == format!("{mode} True"), "{report}");
        Ok(())
    })
    .await;
}
