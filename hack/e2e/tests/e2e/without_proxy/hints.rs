//! Endpoints' hints, which the API server's controllers set for `trafficDistribution`.
//!
//! Each test alone on the cluster: it changes labels of its nodes.

use std::net::SocketAddr;

use anyhow::Result;
use highwire_e2e::expect::{BOTH, SHORT, all_answer, ingress_is};
use highwire_e2e::{Cluster, Netns, Pod, Scope, cluster_test};
use macro_rules_attribute::apply;
use serde_json::json;

use super::{cluster, only, web_pod};

const ZONE: &str = "topology.kubernetes.io/zone";

/// Puts each node into the zone of that name; an empty one is none.
async fn zones(cluster: &Cluster, zones: [&str; 3]) -> Result<()> {
    for (node, zone) in cluster.nodes().iter().zip(zones) {
        let zone = Some(zone).filter(|zone| !zone.is_empty());
        cluster.label_node(&node.name, ZONE, zone).await?;
    }
    Ok(())
}

/// Pods web-1 on n1, web-2 on n2 and so on, in these zones, and a Service of them with that
/// `trafficDistribution`, at n1 and n2.
struct Near {
    cluster: Cluster,
    client: Netns,
    near: Pod,
    n1: SocketAddr,
    n2: SocketAddr,
    /// It holds the cluster and what is on it.
    _scope: Scope,
}

impl Near {
    async fn new(
        prefix: &str,
        in_zones: [&str; 3],
        nodes: &[&str],
        distribution: &str,
    ) -> Result<Self> {
        let cluster = cluster().await?;
        let scope = Scope::alone(&cluster, prefix).await?;
        zones(&cluster, in_zones).await?;
        let near = web_pod(&scope, "web-1", "n1").await?;
        for (number, node) in (2..).zip(nodes) {
            web_pod(&scope, &format!("web-{number}"), node).await?;
        }
        let port = scope.free_port()?;
        let service = scope.service("web").load_balancer().tcp(port, 8080);
        let service = service.spec("trafficDistribution", json!(distribution));
        ingress_is(&service.create().await?, &BOTH).await;
        Ok(Self {
            client: cluster.outside(),
            near,
            n1: cluster.node("n1")?.v4(port),
            n2: cluster.node("n2")?.v4(port),
            cluster,
            _scope: scope,
        })
    }

    /// Waits until these Pods, and no others, answer there.
    async fn only(&self, to: SocketAddr, pods: &[&str]) {
        only(&self.client, to, pods).await;
    }
}

#[apply(cluster_test)]
async fn a_zones_own_pods_are_preferred_and_without_one_all_serve() -> Result<()> {
    let in_zones = ["east", "west", "west"];
    let bed = Near::new("zone", in_zones, &["n2", "n3"], "PreferClose").await?;
    bed.only(bed.n1, &["web-1"]).await;
    bed.only(bed.n2, &["web-2", "web-3"]).await;
    // The only one in the zone.
    bed.near.set_ready(&bed.cluster, false).await?;
    bed.only(bed.n1, &["web-2", "web-3"]).await;
    bed.near.set_ready(&bed.cluster, true).await?;
    bed.only(bed.n1, &["web-1"]).await;
    // The node moves to the other zone, its Pod's hint with it.
    let all = ["web-1", "web-2", "web-3"];
    zones(&bed.cluster, ["west", "west", "west"]).await?;
    bed.only(bed.n1, &all).await;
    zones(&bed.cluster, ["", "", ""]).await?;
    all_answer(&all, || bed.client.http_get(bed.n1, SHORT)).await;
    Ok(())
}

#[apply(cluster_test)]
async fn a_nodes_own_pods_are_preferred() -> Result<()> {
    let in_zones = ["east", "east", "east"];
    let bed = Near::new("samenode", in_zones, &["n2"], "PreferSameNode").await?;
    bed.only(bed.n1, &["web-1"]).await;
    bed.only(bed.n2, &["web-2"]).await;
    bed.near.set_ready(&bed.cluster, false).await?;
    bed.only(bed.n1, &["web-2"]).await;
    zones(&bed.cluster, ["", "", ""]).await
}
