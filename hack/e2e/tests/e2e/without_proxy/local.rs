//! `externalTrafficPolicy: Local`: who is answered where, and what address the Pod sees.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{
    ALL, LONG, SHORT, answers, at_both_addresses, ingress_is, refuses, refuses_new_udp,
};
use highwire_e2e::{Cluster, Netns, Scope, Svc, wait_for};
use macro_rules_attribute::apply;

use super::{bed, client_pods, web_pod};

/// Clients with their addresses, IPv4 and IPv6.
async fn clients(cluster: &Cluster, scope: &Scope) -> Result<Vec<(Netns, [IpAddr; 2])>> {
    let both = |addresses: &[IpAddr]| [addresses[0], addresses[1]];
    let nodes = both(cluster.node("n1")?.addresses());
    let outside = nodes.map(|address| cluster.outside_address(address));
    let mut clients = vec![(cluster.outside(), outside)];
    for pod in client_pods(scope).await? {
        clients.push((pod.netns(), both(pod.addresses())));
        let node = cluster.node(pod.node())?;
        clients.push((node.netns().clone(), both(node.addresses())));
    }
    Ok(clients)
}

async fn local_service(scope: &Scope, port: u16) -> Result<Svc> {
    let service = scope.service("web").load_balancer().external_local();
    let service = service.dual_stack().tcp(port, 8080).udp(port, 5353);
    service.create().await
}

#[apply(cluster_test)]
async fn the_pod_sees_every_client() -> Result<()> {
    let (cluster, scope) = bed("sees").await?;
    web_pod(&scope, "web-1", "n1").await?;
    web_pod(&scope, "web-2", "n2").await?;
    let port = scope.free_port()?;
    ingress_is(&local_service(&scope, port).await?, &ALL).await;
    for (from, own) in clients(&cluster, &scope).await? {
        for (node, pod) in [("n1", "web-1"), ("n2", "web-2")] {
            for (to, own) in at_both_addresses(&cluster, node, port)?
                .into_iter()
                .zip(own)
            {
                let tcp = answers(&from, to).await;
                let udp = wait_for("UDP", LONG, || async { from.udp_ask(to, SHORT) }).await;
                for reply in [tcp, udp] {
                    ensure!(
                        reply.pod == pod && reply.client.ip() == own,
                        "{} to {to}: {reply:?}",
                        from.name()
                    );
                }
            }
        }
    }
    Ok(())
}

/// kube-proxy leads clients in the cluster to Pods of other nodes.
#[apply(cluster_test)]
async fn a_node_without_a_pod_refuses_everybody_at_once() -> Result<()> {
    let (cluster, scope) = bed("elsewhere").await?;
    let pod = web_pod(&scope, "web-1", "n1").await?;
    let port = scope.free_port()?;
    let service = local_service(&scope, port).await?;
    ingress_is(&service, &[ALL[0], ALL[2]]).await;
    let clients = clients(&cluster, &scope).await?;
    for to in at_both_addresses(&cluster, "n2", port)? {
        for (from, _) in &clients {
            refuses(from, to).await;
            refuses_new_udp(from, to).await;
        }
    }
    // It stops being ready, and nobody is answered anywhere.
    pod.set_ready(&cluster, false).await?;
    for to in at_both_addresses(&cluster, "n1", port)? {
        for (from, _) in &clients {
            refuses(from, to).await;
            refuses_new_udp(from, to).await;
        }
    }
    Ok(())
}
