//! `externalTrafficPolicy: Local`: the Pod sees the client's own address, and only
//! nodes with a ready endpoint are advertised.
//!
//! Addresses: nodes 192.0.2.11 and 2001:db8:1::11 (n1), .12 and ::12 (n2) serve;
//! the client has 198.51.100.10 and .11, and 2001:db8:2::10.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{
    ALL, AMPLE, LONG, SHORT, answers, ingress_is, refuses, refuses_without_local_endpoints, web,
    web_service,
};
use highwire_e2e::reported::{event, serving};
use highwire_e2e::{Cluster, ConnectError, Pod, Scope, Svc, highwire, wait_for};
use macro_rules_attribute::apply;
use serde_json::json;

/// Between two connections of a client: more would only use up its ports.
const PACE: Duration = Duration::from_millis(5);
const N1: [&str; 2] = ["192.0.2.11", "2001:db8:1::11"];

/// The shared cluster and a scope with a Pod web-1 on n1 only.
async fn one_pod(prefix: &str) -> Result<(Cluster, Scope, Pod)> {
    let cluster = Cluster::attach().await?;
    highwire::require(&cluster)?;
    let scope = Scope::new(&cluster, prefix).await?;
    let pod = start(&scope, "web-1", "n1").await?;
    Ok((cluster, scope, pod))
}

async fn start(scope: &Scope, name: &str, node: &str) -> Result<Pod> {
    let pod = scope.pod(name).on(node).label("app", "web");
    pod.tcp(8080).udp(5353).start().await
}

/// A dual-stack Service for these Pods.
async fn local_service(scope: &Scope, tcp: u16, udp: u16) -> Result<Svc> {
    let service = scope.service("web").load_balancer().external_local();
    let service = service.dual_stack().tcp(tcp, 8080).udp(udp, 5353);
    service.create().await
}

/// Waits until kube-proxy's health check of the Service says whether the node has a
/// ready endpoint. Where there is no kube-proxy, nobody answers at healthCheckNodePorts.
async fn health_check_says(
    cluster: &Cluster,
    service: &Svc,
    node: &str,
    ready: bool,
) -> Result<()> {
    let to = cluster.node(node)?.v4(service.health_check_node_port()?);
    if !cluster.config().proxy_modes.has_any() {
        let answer = cluster.outside().http_text(to, "/", SHORT);
        ensure!(answer == Err(ConnectError::Refused), "{answer:?}");
        return Ok(());
    }
    wait_for(
        &format!("health check of {node}: {ready}"),
        LONG,
        || async {
            match cluster.outside().http_text(to, "/", SHORT) {
                Ok(_) if ready => Ok(()),
                Err(ConnectError::Other(answer)) if !ready && answer.contains(" 503 ") => Ok(()),
                other => Err(other),
            }
        },
    )
    .await;
    Ok(())
}

#[apply(cluster_test)]
async fn the_pod_sees_the_client_and_a_node_without_endpoints_forwards_nothing() -> Result<()> {
    let (cluster, scope, _pod) = one_pod("local").await?;
    let (tcp, udp) = (scope.free_port()?, scope.free_port()?);
    let service = local_service(&scope, tcp, udp).await?;
    ingress_is(&service, &N1).await;
    let (client, n1, n2) = (cluster.outside(), cluster.node("n1")?, cluster.node("n2")?);
    for address in n1.addresses() {
        let own = cluster.outside_address(*address);
        let reply = answers(&client, SocketAddr::new(*address, tcp)).await;
        ensure!(reply.client.ip() == own, "TCP from {own}: {reply:?}");
        let reply = wait_for("UDP", LONG, || async {
            client.udp_ask(SocketAddr::new(*address, udp), SHORT)
        })
        .await;
        ensure!(reply.client.ip() == own, "UDP from {own}: {reply:?}");
    }
    health_check_says(&cluster, &service, "n1", true).await?;
    health_check_says(&cluster, &service, "n2", false).await?;
    for address in n2.addresses() {
        refuses_without_local_endpoints(&cluster, SocketAddr::new(*address, tcp)).await;
        let answer = client.udp_ask(SocketAddr::new(*address, udp), SHORT);
        ensure!(answer.is_err(), "{answer:?}");
    }
    Ok(())
}

#[apply(cluster_test)]
async fn the_ingress_and_the_health_check_follow_the_ready_endpoints() -> Result<()> {
    let (cluster, scope, first) = one_pod("follow").await?;
    let (tcp, udp) = (scope.free_port()?, scope.free_port()?);
    let service = local_service(&scope, tcp, udp).await?;
    ingress_is(&service, &N1).await;
    let second = start(&scope, "web-2", "n2").await?;
    ingress_is(&service, &ALL).await;
    health_check_says(&cluster, &service, "n2", true).await?;
    let (client, n1, n2) = (cluster.outside(), cluster.node("n1")?, cluster.node("n2")?);
    for (node, pod) in [(&n1, "web-1"), (&n2, "web-2")] {
        let reply = answers(&client, node.v4(tcp)).await;
        ensure!(
            reply.pod == pod,
            "{} forwards elsewhere: {reply:?}",
            node.name
        );
    }
    first.set_ready(&cluster, false).await?;
    ingress_is(&service, &[ALL[1], ALL[3]]).await;
    health_check_says(&cluster, &service, "n1", false).await?;
    refuses_without_local_endpoints(&cluster, n1.v4(tcp)).await;
    first.set_ready(&cluster, true).await?;
    ingress_is(&service, &ALL).await;
    second.delete(&cluster).await?;
    ingress_is(&service, &N1).await;
    health_check_says(&cluster, &service, "n2", false).await?;
    refuses_without_local_endpoints(&cluster, n2.v4(tcp)).await;
    Ok(())
}

#[apply(cluster_test)]
async fn a_terminating_endpoint_answers_but_is_not_advertised() -> Result<()> {
    let (cluster, scope, pod) = one_pod("leaving").await?;
    let (tcp, udp) = (scope.free_port()?, scope.free_port()?);
    let service = local_service(&scope, tcp, udp).await?;
    ingress_is(&service, &N1).await;
    let (client, to) = (cluster.outside(), cluster.node("n1")?.v4(tcp));
    answers(&client, to).await;
    pod.terminate(&cluster).await?;
    ingress_is(&service, &[]).await;
    health_check_says(&cluster, &service, "n1", false).await?;
    // KEP-1669: while there is no ready endpoint, a serving one is used though it ends.
    let reply = answers(&client, to).await;
    ensure!(reply.pod == "web-1", "{reply:?}");
    Ok(())
}

#[apply(cluster_test)]
async fn clients_inside_the_cluster_are_answered_as_at_the_node_port() -> Result<()> {
    let (cluster, scope, pod) = one_pod("inside").await?;
    let elsewhere = start(&scope, "other", "n2").await?;
    elsewhere.set_ready(&cluster, false).await?;
    let (tcp, udp) = (scope.free_port()?, scope.free_port()?);
    let service = local_service(&scope, tcp, udp).await?;
    ingress_is(&service, &N1).await;
    let node_port = service.node_port(tcp)?;
    answers(&cluster.outside(), cluster.node("n1")?.v4(tcp)).await;
    let (n1, n2) = (cluster.node("n1")?, cluster.node("n2")?);
    // kube-proxy sends clients in the cluster to Pods of other nodes too, but from the node
    // of the only Pod to another node its modes differ: there it has to be as at the
    // NodePort, answered or not.
    for (from, at_n1, at_n2) in [
        (pod.netns(), Some("web-1"), None),
        (elsewhere.netns(), Some("web-1"), Some("web-1")),
        (n1.netns().clone(), Some("web-1"), None),
        (n2.netns().clone(), Some("web-1"), Some("web-1")),
    ] {
        for (node, wanted) in [(&n1, at_n1), (&n2, at_n2)] {
            let what = format!("{} to {}", from.name(), node.name);
            wait_for(&what, LONG, || async {
                let [ours, theirs] = [tcp, node_port].map(|port| {
                    let reply = from.http_get(node.v4(port), SHORT);
                    reply.map(|reply| reply.pod)
                });
                let same = ours.as_ref().ok() == theirs.as_ref().ok();
                let as_wanted = wanted.is_none_or(|pod| ours.as_deref() == Ok(pod));
                if same && as_wanted {
                    Ok(())
                } else {
                    Err((ours, theirs))
                }
            })
            .await;
        }
    }
    Ok(())
}

#[apply(cluster_test)]
async fn session_affinity_and_source_ranges_go_by_the_clients_own_address() -> Result<()> {
    let (cluster, scope, _pod) = one_pod("sticky").await?;
    start(&scope, "web-1b", "n1").await?;
    start(&scope, "web-1c", "n1").await?;
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer().external_local();
    let service = service.tcp(port, 8080);
    let service = service
        .spec("sessionAffinity", json!("ClientIP"))
        .spec("loadBalancerSourceRanges", json!(["198.51.100.10/31"]))
        .create()
        .await?;
    ingress_is(&service, &[N1[0]]).await;
    let (client, to) = (cluster.outside(), cluster.node("n1")?.v4(port));
    answers(&client, to).await;
    for source in ["198.51.100.10:0", "198.51.100.11:0"] {
        let source: SocketAddr = source.parse()?;
        let first = client.http_get_from(source, to, AMPLE)?;
        ensure!(first.client.ip() == source.ip(), "{first:?}");
        for _ in 0..30 {
            let next = client.http_get_from(source, to, AMPLE)?;
            ensure!(
                next.pod == first.pod,
                "{source} moved from {first:?} to {next:?}"
            );
        }
    }
    service
        .patch(json!({"spec": {"loadBalancerSourceRanges": ["198.51.100.11/32"]}}))
        .await?;
    wait_for("the first client to be shut out", LONG, || async {
        match client.http_get_from("198.51.100.10:0".parse().unwrap_or(to), to, SHORT) {
            Err(ConnectError::Timeout) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let other = client.http_get_from("198.51.100.11:0".parse()?, to, AMPLE);
    ensure!(other.is_ok(), "{other:?}");
    Ok(())
}

#[apply(cluster_test)]
async fn the_policy_may_change_and_established_connections_go_on() -> Result<()> {
    let (cluster, scope) = web("policy").await?;
    let port = scope.free_port()?;
    let service = web_service(&scope, "web", port).await?;
    let (client, n1) = (cluster.outside(), cluster.node("n1")?.v4(port));
    let own = cluster.outside_address(n1.ip());
    ingress_is(&service, &[ALL[0], ALL[1]]).await;
    answers(&client, n1).await;
    let mut streams = Vec::new();
    for (policy, sees_client) in [("Local", true), ("Cluster", false)] {
        // Those of either policy outlive the change to the other.
        for _ in 0..4 {
            let mut stream = client.tcp_connect(n1, AMPLE)?;
            streams.push((stream.say("before")?, stream));
        }
        service
            .patch(json!({"spec": {"externalTrafficPolicy": policy}}))
            .await?;
        // Under Cluster, the Pod of the same node may see the client too.
        wait_for(policy, LONG, || async {
            let seen: Vec<_> = (0..20)
                .map(|_| {
                    client
                        .http_get(n1, SHORT)
                        .map(|reply| reply.client.ip() == own)
                })
                .collect::<Result<_, _>>()?;
            match seen.iter().all(|seen| *seen) == sees_client {
                true => Ok(()),
                false => Err(ConnectError::Other(format!("{seen:?}"))),
            }
        })
        .await;
        ingress_is(&service, &[ALL[0], ALL[1]]).await;
        for (pod, stream) in &mut streams {
            let now = stream.say(policy)?;
            ensure!(now == *pod, "a connection moved from {pod} to {now}");
        }
    }
    Ok(())
}

#[apply(cluster_test)]
async fn without_node_ports_it_is_explained_and_not_served() -> Result<()> {
    let (cluster, scope, _pod) = one_pod("portless").await?;
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer().external_local();
    let service = service
        .tcp(port, 8080)
        .spec("allocateLoadBalancerNodePorts", json!(false))
        .create()
        .await?;
    let condition = serving(&service, "False").await;
    ensure!(condition.reason == "Unsupported", "{}", condition.reason);
    let event = event(&scope, &service, "Unsupported").await;
    for text in [condition.message, event] {
        ensure!(
            text.contains("spec.externalTrafficPolicy")
                && text.contains("spec.allocateLoadBalancerNodePorts"),
            "names field and remedy: {text}"
        );
    }
    ensure!(service.ingress_ips().await?.is_empty());
    refuses(&cluster.outside(), cluster.node("n1")?.v4(port)).await;
    // The remedy helps.
    service
        .patch(json!({"spec": {"allocateLoadBalancerNodePorts": true}}))
        .await?;
    ingress_is(&service, &[N1[0]]).await;
    serving(&service, "True").await;
    answers(&cluster.outside(), cluster.node("n1")?.v4(port)).await;
    Ok(())
}

#[apply(cluster_test)]
async fn a_rollout_on_one_node_fails_no_connection() -> Result<()> {
    let (cluster, scope, old) = one_pod("rollout").await?;
    let (tcp, udp) = (scope.free_port()?, scope.free_port()?);
    let service = local_service(&scope, tcp, udp).await?;
    ingress_is(&service, &N1).await;
    let (client, to) = (cluster.outside(), cluster.node("n1")?.v4(tcp));
    answers(&client, to).await;
    // Connects all the time, so that no moment of the rollout is left out.
    let done = Arc::new(AtomicBool::new(false));
    let (from, stop) = (client.clone(), Arc::clone(&done));
    let connecting = tokio::task::spawn_blocking(move || -> Result<Vec<String>> {
        let mut answered = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let reply = from.http_get(to, AMPLE);
            let reply = reply.with_context(|| format!("after {} answers", answered.len()))?;
            answered.push(reply.pod);
            std::thread::sleep(PACE);
        }
        Ok(answered)
    });
    // The old Pod ends first: until the new one is ready, it is all there is.
    old.terminate(&cluster).await?;
    health_check_says(&cluster, &service, "n1", false).await?;
    start(&scope, "web-2", "n1").await?;
    let mut in_a_row = 0;
    wait_for("50 answers in a row from the new Pod", LONG, || {
        let pod = client.http_get(to, SHORT).map(|reply| reply.pod);
        in_a_row = if pod == Ok("web-2".into()) {
            in_a_row + 1
        } else {
            0
        };
        let seen = (pod, in_a_row);
        async move { if seen.1 >= 50 { Ok(()) } else { Err(seen) } }
    })
    .await;
    done.store(true, Ordering::Relaxed);
    let mut answered = connecting.await??;
    // First the old one, then the new one, and nothing failed in between.
    answered.dedup();
    ensure!(
        answered.first().is_some_and(|pod| pod == "web-1"),
        "{answered:?}"
    );
    ensure!(
        answered.last().is_some_and(|pod| pod == "web-2"),
        "{answered:?}"
    );
    ingress_is(&service, &N1).await;
    Ok(())
}
