//! Where clients are, and what address the Pod sees, with the policy Cluster.

use anyhow::{Result, ensure};
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{ALL, AMPLE, LONG, SHORT, all_answer, at_both_addresses, ingress_is};
use highwire_e2e::wait_for;
use macro_rules_attribute::apply;
use serde_json::json;

use super::{bed, web_pod};

#[apply(cluster_test)]
async fn every_client_reaches_every_pod_which_sees_the_node() -> Result<()> {
    let (cluster, scope) = bed("clients").await?;
    let pods = ["web-1", "web-2", "web-3"];
    let mut clients = vec![cluster.outside()];
    for (pod, node) in pods.iter().zip(["n1", "n2", "n3"]) {
        clients.push(web_pod(&scope, pod, node).await?.netns());
        clients.push(cluster.node(node)?.netns().clone());
    }
    // One that is no endpoint, beside one that is.
    let other = scope.pod("other").on("n1").tcp(1).start().await?;
    clients.push(other.netns());
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer().dual_stack();
    let service = service.tcp(port, 8080).udp(port, 5353).create().await?;
    ingress_is(&service, &ALL).await;
    for to in at_both_addresses(&cluster, "n1", port)? {
        for from in &clients {
            all_answer(&pods, || from.http_get(to, SHORT)).await;
            all_answer(&pods, || from.udp_ask(to, SHORT)).await;
            for _ in 0..10 {
                for reply in [from.http_get(to, AMPLE)?, from.udp_ask(to, AMPLE)?] {
                    // Also Pods, which a kube-proxy would not masquerade.
                    let seen = reply.client.ip();
                    ensure!(seen == to.ip(), "{} to {to}: {reply:?}", from.name());
                }
            }
        }
    }
    Ok(())
}

/// What goes out to the node and comes back to where it came from.
#[apply(cluster_test)]
async fn a_pod_reaches_itself_by_its_service() -> Result<()> {
    let (cluster, scope) = bed("hairpin").await?;
    let pod = web_pod(&scope, "web-1", "n1").await?;
    for (name, policy, nodes) in [
        ("cluster", "Cluster", &["n1", "n2"][..]),
        ("local", "Local", &["n1"]),
    ] {
        let port = scope.free_port()?;
        let service = scope.service(name).load_balancer().dual_stack();
        let service = service.select("app", "web");
        let service = service.spec("externalTrafficPolicy", json!(policy));
        let service = service.tcp(port, 8080).udp(port, 5353).create().await?;
        let listed: Vec<&str> = match policy {
            "Local" => vec![ALL[0], ALL[2]],
            _ => ALL.to_vec(),
        };
        ingress_is(&service, &listed).await;
        for node in nodes {
            for to in at_both_addresses(&cluster, node, port)? {
                let what = format!("{policy}: the Pod to itself at {to}");
                let from = pod.netns();
                wait_for(&format!("{what}, TCP"), LONG, || async {
                    from.http_get(to, SHORT)
                })
                .await;
                wait_for(&format!("{what}, UDP"), LONG, || async {
                    from.udp_ask(to, SHORT)
                })
                .await;
            }
        }
    }
    Ok(())
}

/// Their address is the node's own, which is served too.
#[apply(cluster_test)]
async fn pods_in_the_hosts_network_are_endpoints_as_others() -> Result<()> {
    let (cluster, scope) = bed("hostnet").await?;
    let target = scope.free_port()?;
    let pods = ["host-1", "host-2", "web-3"];
    for (pod, node) in [("host-1", "n1"), ("host-2", "n2")] {
        let pod = scope.pod(pod).on(node).label("app", "web");
        pod.host_network().tcp(target).udp(target).start().await?;
    }
    let other = scope.pod("web-3").on("n1").label("app", "web");
    let other = other.tcp(target).udp(target).start().await?;
    let ports = [scope.free_port()?, scope.free_port()?];
    let mut clients = vec![cluster.outside(), other.netns()];
    for node in ["n1", "n2", "n3"] {
        clients.push(cluster.node(node)?.netns().clone());
    }
    for (policy, port, here) in [
        ("Cluster", ports[0], &pods[..]),
        ("Local", ports[1], &["host-1", "web-3"]),
    ] {
        let service = scope.service(&policy.to_lowercase()).load_balancer();
        let service = service.select("app", "web").dual_stack();
        let service = service.spec("externalTrafficPolicy", json!(policy));
        let service = service.tcp(port, target).udp(port, target);
        ingress_is(&service.create().await?, &ALL).await;
        for to in at_both_addresses(&cluster, "n1", port)? {
            for from in &clients {
                all_answer(here, || from.http_get(to, SHORT)).await;
                all_answer(here, || from.udp_ask(to, SHORT)).await;
            }
        }
    }
    Ok(())
}
