//! Fields of a LoadBalancer Service, and of Nodes: each means what Kubernetes
//! says it means.
//!
//! Addresses: nodes 192.0.2.11 and 2001:db8:1::11 (n1), .12 and ::12 (n2) serve;
//! the client has 198.51.100.10 and .11.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use highwire_e2e::bed::hints::zone_hints_are;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{
    AMPLE, BOTH, LONG, SHORT, Undo, all_answer, answers, ingress_is, refuses, web,
};
use highwire_e2e::reported::event;
use highwire_e2e::{ConnectError, Pod, wait_for};
use macro_rules_attribute::apply;
use serde_json::json;

const BOTH_V6: [&str; 2] = ["2001:db8:1::11", "2001:db8:1::12"];
/// The last numbers of more addresses for the client: that by chance all of them get the
/// same of two Pods happens once in 500 million times.
const OTHER_CLIENTS: RangeInclusive<u8> = 120..=149;
/// The first ICMPv6 error to a connecting client can get lost; TCP asks again
/// after a second.
const SECOND_TRY: Duration = Duration::from_millis(2500);

#[apply(cluster_test)]
async fn an_ipv6_service_is_served_at_ipv6_addresses_only() -> Result<()> {
    let (cluster, scope) = web("six").await?;
    let (tcp, udp) = (scope.free_port()?, scope.free_port()?);
    let service = scope
        .service("web")
        .load_balancer()
        .tcp(tcp, 8080)
        .udp(udp, 5353);
    let service = service.spec("ipFamilies", json!(["IPv6"])).create().await?;
    ingress_is(&service, &BOTH_V6).await;
    let client = cluster.outside();
    for node in ["n1", "n2"] {
        let node = cluster.node(node)?;
        all_answer(&["web-1", "web-2"], || client.http_get(node.v6(tcp), SHORT)).await;
        all_answer(&["web-1", "web-2"], || client.udp_ask(node.v6(udp), SHORT)).await;
        for pod in ["web-1", "web-2"] {
            let from = Pod::find(&cluster, scope.namespace(), pod)?.netns();
            all_answer(&["web-1", "web-2"], || from.http_get(node.v6(tcp), SHORT)).await;
        }
        all_answer(&["web-1", "web-2"], || {
            node.netns().http_get(node.v6(tcp), SHORT)
        })
        .await;
        let four = client.http_get(node.v4(tcp), SHORT);
        ensure!(four == Err(ConnectError::Refused), "not by IPv4: {four:?}");
    }
    Ok(())
}

#[apply(cluster_test)]
async fn a_dual_stack_service_is_served_in_both_families_in_either_order() -> Result<()> {
    let (cluster, scope) = web("dual").await?;
    // The primary family comes first in the ingress.
    for (name, families, listed) in [
        ("four", json!(["IPv4", "IPv6"]), [BOTH, BOTH_V6]),
        ("six", json!(["IPv6", "IPv4"]), [BOTH_V6, BOTH]),
    ] {
        let port = scope.free_port()?;
        let service = scope
            .service(name)
            .load_balancer()
            .select("app", "web")
            .tcp(port, 8080);
        let service = service
            .dual_stack()
            .spec("ipFamilies", families)
            .create()
            .await?;
        ingress_is(&service, &listed.concat()).await;
        for address in cluster.node("n1")?.addresses() {
            let reply = answers(&cluster.outside(), SocketAddr::new(*address, port)).await;
            ensure!(reply.client.is_ipv4() == address.is_ipv4(), "{reply:?}");
        }
    }
    Ok(())
}

#[apply(cluster_test)]
async fn without_endpoints_ipv6_clients_are_refused() -> Result<()> {
    let (cluster, scope) = web("sixempty").await?;
    let port = scope.free_port()?;
    let service = scope.service("nobody").load_balancer().tcp(port, 8080);
    let service = service.spec("ipFamilies", json!(["IPv6"])).create().await?;
    ingress_is(&service, &BOTH_V6).await;
    let to = cluster.node("n1")?.v6(port);
    wait_for("a refusal", LONG, || async {
        match cluster.outside().http_get(to, SECOND_TRY) {
            Err(ConnectError::Refused) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    Ok(())
}

#[apply(cluster_test)]
async fn session_affinity_is_per_client_address() -> Result<()> {
    let (cluster, scope) = web("sticky").await?;
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer().tcp(port, 8080);
    let service = service
        .spec("sessionAffinity", json!("ClientIP"))
        .create()
        .await?;
    ingress_is(&service, &BOTH).await;
    let client = cluster.outside();
    let addresses = |verb: &str| -> String {
        let line = |last| format!("addr {verb} 198.51.100.{last}/24 dev eth0\n");
        OTHER_CLIENTS.map(line).collect()
    };
    let _addresses = Undo::after(&client, &addresses("add"), addresses("del"))?;
    for node in ["n1", "n2"] {
        let to = cluster.node(node)?.v4(port);
        answers(&client, to).await;
        for source in ["198.51.100.10:0", "198.51.100.11:0"] {
            let source = source.parse()?;
            let ask = || {
                client
                    .http_get_from(source, to, SHORT)
                    .map(|reply| reply.pod)
            };
            let first = ask();
            ensure!(first.is_ok(), "{first:?}");
            for _ in 0..30 {
                let next = ask();
                ensure!(next == first, "{source} moved from {first:?} to {next:?}");
            }
        }
        // The node's address, which Pods on other nodes see, would lead all to one Pod.
        let others: Result<BTreeSet<String>, ConnectError> = OTHER_CLIENTS
            .map(|last| SocketAddr::from(([198, 51, 100, last], 0)))
            .map(|source| Ok(client.http_get_from(source, to, AMPLE)?.pod))
            .collect();
        let others = others?;
        ensure!(others.len() == 2, "all clients get one Pod: {others:?}");
    }
    Ok(())
}

#[apply(cluster_test)]
async fn internal_traffic_policy_local_does_not_restrict_clients_from_outside() -> Result<()> {
    let (cluster, scope) = web("internal").await?;
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer().tcp(port, 8080);
    let service = service
        .spec("internalTrafficPolicy", json!("Local"))
        .create()
        .await?;
    ingress_is(&service, &BOTH).await;
    for node in ["n1", "n2"] {
        let to = cluster.node(node)?.v4(port);
        all_answer(&["web-1", "web-2"], || {
            cluster.outside().http_get(to, SHORT)
        })
        .await;
    }
    Ok(())
}

/// Of clients on a node only its own Pods answer, and on n3, which has none, kube-proxy drops
/// what comes.
#[apply(cluster_test)]
async fn internal_traffic_policy_local_holds_at_the_cluster_ip() -> Result<()> {
    let (cluster, scope) = web("innermost").await?;
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer().tcp(port, 8080);
    let service = service
        .spec("internalTrafficPolicy", json!("Local"))
        .create()
        .await?;
    ingress_is(&service, &BOTH).await;
    let cluster_ip = SocketAddr::new(service.cluster_ip()?, port);
    for (node, own) in [("n1", "web-1"), ("n2", "web-2")] {
        let from = cluster.node(node)?.netns().clone();
        answers(&from, cluster_ip).await;
        for _ in 0..20 {
            let reply = from.http_get(cluster_ip, AMPLE)?;
            ensure!(reply.pod == own, "{node}: {reply:?}");
        }
    }
    let n3 = cluster.node("n3")?;
    // Its kube-proxy knows the Service.
    answers(&cluster.outside(), n3.v4(service.node_port(port)?)).await;
    let dropped = n3.netns().http_get(cluster_ip, SHORT);
    ensure!(dropped == Err(ConnectError::Timeout), "{dropped:?}");
    Ok(())
}

#[apply(cluster_test)]
async fn named_targets_several_ports_and_app_protocols_work() -> Result<()> {
    let (cluster, scope) = web("ports").await?;
    // One name, another number in each Pod.
    for (pod, node, http, dns) in [("a", "n1", 8081, 5354), ("b", "n2", 9090, 6363)] {
        let pod = scope.pod(pod).on(node).label("app", "named");
        let pod = pod.tcp(http).named(http, "http").udp(dns).named(dns, "dns");
        pod.start().await?;
    }
    let ports = [scope.free_port()?, scope.free_port()?, scope.free_port()?];
    let service = scope.service("web").load_balancer().select("app", "named");
    let service = service
        .spec("ports", json!([
            {"name": "a", "port": ports[0], "targetPort": "http", "appProtocol": "kubernetes.io/h2c"},
            {"name": "b", "port": ports[1], "targetPort": "http"},
            {"name": "c", "port": ports[0], "protocol": "UDP", "targetPort": "dns"},
            {"name": "d", "port": ports[2], "protocol": "SCTP", "targetPort": 9},
        ]))
        .create()
        .await?;
    ingress_is(&service, &BOTH).await;
    let (client, n2) = (cluster.outside(), cluster.node("n2")?);
    for port in [ports[0], ports[1]] {
        all_answer(&["a", "b"], || client.http_get(n2.v4(port), SHORT)).await;
    }
    all_answer(&["a", "b"], || client.udp_ask(n2.v4(ports[0]), SHORT)).await;
    let map = match cluster.config().proxy_modes.has_any() {
        true => "clusterip4",
        false => "target4",
    };
    let table = n2
        .netns()
        .check(&["nft", "list", "map", "inet", "highwire", map])?;
    ensure!(
        table.contains(&format!("sctp . {} ", ports[2])),
        "SCTP is programmed too: {table}"
    );
    refuses(&client, n2.v4(ports[2])).await; // by TCP nobody is there
    Ok(())
}

#[apply(cluster_test)]
async fn many_ports_are_served_also_in_the_range_of_node_ports() -> Result<()> {
    let (cluster, scope) = web("many").await?;
    let mut service = scope.service("web").load_balancer();
    // One of the range's first 86, which the API server keeps for Services that name their
    // NodePort while others are left (KEP-3668): no other test's Service has it.
    let mut ports = vec![30_001];
    for _ in 0..40 {
        ports.push(scope.free_port()?);
    }
    for port in &ports {
        service = service.tcp(*port, 8080).udp(*port, 5353);
    }
    let service = service
        .select("app", "web")
        .spec("allocateLoadBalancerNodePorts", json!(false));
    ingress_is(&service.create().await?, &BOTH).await;
    let (client, n1) = (cluster.outside(), cluster.node("n1")?);
    for port in ports {
        answers(&client, n1.v4(port)).await;
        wait_for("UDP", LONG, || async { client.udp_ask(n1.v4(port), SHORT) }).await;
    }
    Ok(())
}

#[apply(cluster_test)]
async fn a_load_balancer_without_a_cluster_ip_cannot_exist() -> Result<()> {
    let (_cluster, scope) = web("headless").await?;
    let service = scope.service("web").load_balancer();
    let service = service.tcp(scope.free_port()?, 8080);
    let refused = service.spec("clusterIP", json!("None")).create().await;
    let words = format!("{:#}", refused.err().context("it was accepted")?);
    ensure!(words.contains("spec.clusterIPs"), "{words}");
    Ok(())
}

#[apply(cluster_test)]
async fn session_affinity_ends_with_its_timeout() -> Result<()> {
    let (cluster, scope) = web("forget").await?;
    let port = scope.free_port()?;
    let timeout = json!({"clientIP": {"timeoutSeconds": 1}});
    let service = scope.service("web").load_balancer().tcp(port, 8080);
    let service = service
        .spec("sessionAffinity", json!("ClientIP"))
        .spec("sessionAffinityConfig", timeout)
        .create()
        .await?;
    ingress_is(&service, &BOTH).await;
    let (client, to) = (cluster.outside(), cluster.node("n1")?.v4(port));
    let first = answers(&client, to).await.pod;
    wait_for("another Pod to answer", LONG, || async {
        // Time has to pass: each connection begins the timeout anew.
        tokio::time::sleep(Duration::from_millis(1300)).await;
        match client.http_get(to, SHORT) {
            Ok(reply) if reply.pod != first => Ok(()),
            other => Err(other),
        }
    })
    .await;
    Ok(())
}

#[apply(cluster_test)]
async fn labels_of_nodes_are_followed() -> Result<()> {
    let (cluster, scope) = web("labels").await?;
    let port = scope.free_port()?;
    let label = scope.namespace().to_owned();
    let service = scope.service("web").load_balancer().tcp(port, 8080);
    let service = service
        .annotation("highwire.dev/node-selector", &format!("{label} in (a,b)"))
        .create()
        .await?;
    let (client, n1) = (cluster.outside(), cluster.node("n1")?);
    for (n1_label, n2_label, served) in [
        (Some("a"), None, &BOTH[..1]),
        (Some("a"), Some("b"), &BOTH),
        (Some("c"), Some("b"), &BOTH[1..]),
        (None, None, &[]),
    ] {
        cluster.label_node("n1", &label, n1_label).await?;
        cluster.label_node("n2", &label, n2_label).await?;
        ingress_is(&service, served).await;
        if served.contains(&BOTH[0]) {
            answers(&client, n1.v4(port)).await;
        } else {
            refuses(&client, n1.v4(port)).await;
        }
    }
    Ok(())
}

#[apply(cluster_test)]
async fn traffic_distribution_is_followed_as_kube_proxy_does() -> Result<()> {
    let (cluster, scope) = web("zones").await?;
    let port = scope.free_port()?;
    for node in cluster.nodes() {
        let zone = format!("zone-{}", node.name);
        cluster
            .label_node(&node.name, "topology.kubernetes.io/zone", Some(&zone))
            .await?;
    }
    let service = scope.service("web").load_balancer().tcp(port, 8080);
    let service = service
        .spec("trafficDistribution", json!("PreferSameZone"))
        .create()
        .await?;
    ingress_is(&service, &BOTH).await;
    zone_hints_are(&service, &[("web-1", "zone-n1"), ("web-2", "zone-n2")]).await;
    for (node, near) in [("n1", "web-1"), ("n2", "web-2")] {
        let to = cluster.node(node)?.v4(port);
        wait_for(&format!("{node} to stay in its zone"), LONG, || async {
            let seen: Result<BTreeSet<String>, _> = (0..40)
                .map(|_| cluster.outside().http_get(to, SHORT).map(|reply| reply.pod))
                .collect();
            match &seen {
                Ok(pods) if pods.iter().eq([near]) => Ok(()),
                _ => Err(seen),
            }
        })
        .await;
    }
    for node in cluster.nodes() {
        cluster
            .label_node(&node.name, "topology.kubernetes.io/zone", None)
            .await?;
    }
    Ok(())
}

#[apply(cluster_test)]
async fn a_service_that_kube_proxy_leaves_alone_is_not_advertised() -> Result<()> {
    let (cluster, scope) = web("foreignproxy").await?;
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer();
    let service = service.tcp(port, 8080).create().await?;
    ingress_is(&service, &BOTH).await;
    let label = "service.kubernetes.io/service-proxy-name";
    let labelled = |value| json!({"metadata": {"labels": {label: value}}});
    service.patch(labelled(json!("other"))).await?;
    ingress_is(&service, &[]).await;
    let said = event(&scope, &service, "Unsupported").await;
    ensure!(said.contains(label) && said.contains("remove"), "{said}");
    refuses(&cluster.outside(), cluster.node("n1")?.v4(port)).await;
    service.patch(labelled(serde_json::Value::Null)).await?;
    ingress_is(&service, &BOTH).await;
    answers(&cluster.outside(), cluster.node("n1")?.v4(port)).await;
    Ok(())
}
