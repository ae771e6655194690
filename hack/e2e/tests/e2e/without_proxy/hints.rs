//! Endpoints' hints, which the API server's controllers set for `trafficDistribution`.
//!
//! Each test alone on the cluster: it changes labels of its nodes.

use std::net::SocketAddr;

use anyhow::Result;
use highwire_e2e::bed::hints::zone_hints_are;
use highwire_e2e::expect::{BOTH, ingress_is};
use highwire_e2e::{Cluster, Netns, Pod, Scope, Svc, cluster_test};
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
    service: Svc,
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
        let service = service.create().await?;
        ingress_is(&service, &BOTH).await;
        let pods = ["web-1", "web-2", "web-3"].into_iter().zip(in_zones);
        let pods: Vec<_> = pods.take(1 + nodes.len()).collect();
        zone_hints_are(&service, &pods).await;
        Ok(Self {
            client: cluster.outside(),
            service,
            near,
            n1: cluster.node("n1")?.v4(port),
            n2: cluster.node("n2")?.v4(port),
            cluster,
            _scope: scope,
        })
    }

    /// Moves the nodes to these zones, and waits until web-1, web-2 and web-3 on them have hints
    /// for those.
    async fn move_to(&self, in_zones: [&str; 3]) -> Result<()> {
        zones(&self.cluster, in_zones).await?;
        let pods = ["web-1", "web-2", "web-3"].into_iter().zip(in_zones);
        zone_hints_are(&self.service, &pods.collect::<Vec<_>>()).await;
        Ok(())
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
    // Without a zone of its own, the node has none to prefer.
    let all = ["web-1", "web-2", "web-3"];
    zones(&bed.cluster, ["", "west", "west"]).await?;
    bed.only(bed.n1, &all).await;
    bed.move_to(in_zones).await?;
    bed.only(bed.n1, &["web-1"]).await;
    bed.only(bed.n2, &["web-2", "web-3"]).await;
    // The node moves to the other zone, its Pod's hint with it.
    bed.move_to(["west", "west", "west"]).await?;
    bed.only(bed.n2, &all).await;
    bed.only(bed.n1, &all).await;
    zones(&bed.cluster, ["", "", ""]).await
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
