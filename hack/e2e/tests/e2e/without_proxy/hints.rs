//! Endpoints' hints, which the API server's controllers set for `trafficDistribution`.
//!
//! Each test alone on the cluster: it changes labels of its nodes.

use anyhow::Result;
use highwire_e2e::expect::{BOTH, SHORT, all_answer, ingress_is};
use highwire_e2e::{Cluster, Scope, cluster_test};
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

#[apply(cluster_test)]
async fn a_zones_own_pods_are_preferred_and_without_one_all_serve() -> Result<()> {
    let cluster = cluster().await?;
    let scope = Scope::alone(&cluster, "zone").await?;
    zones(&cluster, ["east", "west", "west"]).await?;
    let near = web_pod(&scope, "web-1", "n1").await?;
    web_pod(&scope, "web-2", "n2").await?;
    web_pod(&scope, "web-3", "n3").await?;
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer().tcp(port, 8080);
    let service = service
        .spec("trafficDistribution", json!("PreferClose"))
        .create()
        .await?;
    ingress_is(&service, &BOTH).await;
    let client = cluster.outside();
    let (n1, n2) = (cluster.node("n1")?.v4(port), cluster.node("n2")?.v4(port));
    only(&client, n1, &["web-1"]).await;
    only(&client, n2, &["web-2", "web-3"]).await;
    // The only one in the zone.
    near.set_ready(&cluster, false).await?;
    only(&client, n1, &["web-2", "web-3"]).await;
    near.set_ready(&cluster, true).await?;
    only(&client, n1, &["web-1"]).await;
    // The node moves to the other zone, its Pod's hint with it.
    zones(&cluster, ["west", "west", "west"]).await?;
    only(&client, n1, &["web-1", "web-2", "web-3"]).await;
    zones(&cluster, ["", "", ""]).await?;
    all_answer(&["web-1", "web-2", "web-3"], || client.http_get(n1, SHORT)).await;
    Ok(())
}

#[apply(cluster_test)]
async fn a_nodes_own_pods_are_preferred() -> Result<()> {
    let cluster = cluster().await?;
    let scope = Scope::alone(&cluster, "samenode").await?;
    zones(&cluster, ["east", "east", "east"]).await?;
    let near = web_pod(&scope, "web-1", "n1").await?;
    web_pod(&scope, "web-2", "n2").await?;
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer().tcp(port, 8080);
    let service = service
        .spec("trafficDistribution", json!("PreferSameNode"))
        .create()
        .await?;
    ingress_is(&service, &BOTH).await;
    let client = cluster.outside();
    let (n1, n2) = (cluster.node("n1")?.v4(port), cluster.node("n2")?.v4(port));
    only(&client, n1, &["web-1"]).await;
    only(&client, n2, &["web-2"]).await;
    near.set_ready(&cluster, false).await?;
    only(&client, n1, &["web-2"]).await;
    zones(&cluster, ["", "", ""]).await
}
