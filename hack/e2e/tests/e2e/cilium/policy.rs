//! Whom a NetworkPolicy takes a client of Highwire for.

use anyhow::{Result, ensure};
use highwire_e2e::cluster::cilium::HostRouting;
use highwire_e2e::expect::{ALL, LONG, SHORT, answers, ingress_is};
use highwire_e2e::{Scope, cluster_test, wait_for};
use macro_rules_attribute::apply;

use super::{cluster, web_pods, web_service};

/// A NetworkPolicy that lets these addresses reach the Pods, and nobody else.
fn allow(scope: &Scope, cidr: &str) -> Result<()> {
    let policy = serde_json::json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": "web", "namespace": scope.namespace() },
        "spec": {
            "podSelector": { "matchLabels": { "app": "web" } },
            "policyTypes": ["Ingress"],
            "ingress": [{ "from": [{ "ipBlock": { "cidr": cidr } }] }],
        },
    });
    let file = scope
        .cluster()
        .state()
        .path(format!("{}.json", scope.namespace()));
    std::fs::write(&file, policy.to_string())?;
    let file = file.display().to_string();
    scope.cluster().kubectl(&["apply", "-f", &file]).map(drop)
}

#[apply(cluster_test)]
async fn an_ip_block_matches_the_client_with_the_policy_local_alone() -> Result<()> {
    let (cluster, cilium) = cluster().await?;
    let scope = Scope::new(&cluster, "policy").await?;
    web_pods(&scope).await?;
    let (masqueraded, kept) = (scope.free_port()?, scope.free_port()?);
    ingress_is(&web_service(&scope, "Cluster", masqueraded).await?, &ALL).await;
    ingress_is(&web_service(&scope, "Local", kept).await?, &ALL).await;
    let (client, node) = (cluster.outside(), cluster.node("n1")?);
    let (masqueraded, kept) = (node.v4(masqueraded), node.v4(kept));
    answers(&client, masqueraded).await;
    // The client's, the nodes' and the Pods' addresses: none lets it in.
    for cidr in ["198.51.100.0/24", "192.0.2.0/24", "10.244.0.0/16"] {
        allow(&scope, cidr)?;
        wait_for(&format!("{cidr} to be enforced"), LONG, || async {
            let answered = (0..10).filter_map(|_| client.http_get(masqueraded, SHORT).ok());
            match answered.take(1).next() {
                None => Ok(()),
                Some(reply) => Err(reply),
            }
        })
        .await;
        if cidr == "198.51.100.0/24" && cilium.host_routing == HostRouting::Legacy {
            answers(&client, kept).await;
        }
    }
    // All the world: the Pod of the node, but not that of another node.
    allow(&scope, "0.0.0.0/0")?;
    let reply = answers(&client, masqueraded).await;
    ensure!(reply.pod == "web-1", "{reply:?}");
    let pods = (0..20).filter_map(|_| client.http_get(masqueraded, SHORT).ok());
    let pods: Vec<String> = pods.map(|reply| reply.pod).collect();
    ensure!(
        !pods.is_empty() && pods.iter().all(|pod| pod == "web-1"),
        "{pods:?}"
    );
    Ok(())
}
