//! Highwire beside Cilium, which connects the Pods and does kube-proxy's work: `hack/test
//! cilium`. What a page of the docs says of it ([docs/without-kube-proxy.md]) is tested here,
//! what does not work too.
//!
//! Addresses: nodes 192.0.2.11 and 2001:db8:1::11 (n1), .12 and ::12 (n2) serve, n3 does not;
//! the client has 198.51.100.10 and 2001:db8:2::10. Cilium gives Pods and its own interface on
//! each node addresses of 10.244.0.0/16 and fd00:244::/32.

mod paths;
mod policy;
mod restart;

use anyhow::{Context as _, Result, ensure};
use highwire_e2e::cluster::cilium::Cilium;
use highwire_e2e::{Cluster, Netns, Pod, Scope, Svc, highwire};
use serde_json::json;

/// The shared cluster, whose nodes have Cilium and Highwire's agents on n1 and n2.
async fn cluster() -> Result<(Cluster, Cilium)> {
    let cluster = Cluster::attach().await?;
    let cilium = cluster.config().cilium.clone();
    let cilium = cilium.context("this cluster has no Cilium: hack/test cilium runs these tests")?;
    highwire::require(&cluster)?;
    Ok((cluster, cilium))
}

/// Pods `app=web` with TCP 8080 and UDP 5353 on n1 (web-1) and n2 (web-2).
async fn web_pods(scope: &Scope) -> Result<[Pod; 2]> {
    let start = async |name: &str, node: &str| {
        let pod = scope.pod(name).on(node).label("app", "web");
        pod.tcp(8080).udp(5353).start().await
    };
    Ok([start("web-1", "n1").await?, start("web-2", "n2").await?])
}

/// A Service for them, TCP and UDP at the same port, of both families.
async fn web_service(scope: &Scope, policy: &str, port: u16) -> Result<Svc> {
    let service = scope.service(&policy.to_lowercase()).load_balancer();
    let service = service.select("app", "web").dual_stack();
    let service = service.spec("externalTrafficPolicy", json!(policy));
    service.tcp(port, 8080).udp(port, 5353).create().await
}

/// The client outside, and every node.
fn outside_and_nodes(cluster: &Cluster) -> Vec<Netns> {
    let nodes = cluster.nodes();
    let nodes = nodes.iter().map(|node| node.netns().clone());
    [cluster.outside()].into_iter().chain(nodes).collect()
}

/// What `conntrack` has on a node for TCP connections to that port.
fn entries(node: &Netns, port: u16) -> Result<Vec<String>> {
    let port = port.to_string();
    let listed = node.check(&["conntrack", "-L", "-p", "tcp", "--orig-port-dst", &port])?;
    let lines: Vec<String> = listed.lines().map(str::to_owned).collect();
    ensure!(!lines.is_empty(), "no entry for port {port}");
    Ok(lines)
}
