//! The harness itself, proven without Highwire: the cluster is a real one, and its
//! network loses what a real network would lose.
//!
//! Addresses: nodes 192.0.2.0/24 and 2001:db8:1::/64, Pods 10.244.0.0/16,
//! ClusterIPs 10.96.0.0/16, the client 198.51.100.10 (see `highwire_e2e::layout`).

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{AMPLE, LONG, SHORT};
use highwire_e2e::traffic::http_get;
use highwire_e2e::{Cluster, ConnectError, EchoReply, Netns, Scope, wait_for};
use macro_rules_attribute::apply;

/// A scope with Pods web-1 on n1 and web-2 on n2, TCP 8080 and UDP 5353.
async fn two_pods(prefix: &str) -> Result<(Cluster, Scope)> {
    let cluster = Cluster::attach().await?;
    let scope = Scope::new(&cluster, prefix).await?;
    for (pod, node) in [("web-1", "n1"), ("web-2", "n2")] {
        scope
            .pod(pod)
            .on(node)
            .label("app", "web")
            .tcp(8080)
            .udp(5353)
            .start()
            .await?;
    }
    Ok((cluster, scope))
}

async fn answers(from: &Netns, to: SocketAddr) -> EchoReply {
    wait_for("an HTTP answer", LONG, || async {
        from.http_get(to, SHORT)
    })
    .await
}

/// Asks until every one of `pods` has answered.
async fn all_answer(pods: &[&str], mut ask: impl FnMut() -> Result<EchoReply, ConnectError>) {
    let wanted: BTreeSet<&str> = pods.iter().copied().collect();
    let mut seen = BTreeSet::new();
    wait_for("all Pods to answer", LONG, || {
        let answer = ask().map(|reply| seen.insert(reply.pod));
        let (missing, so_far) = (
            wanted.iter().any(|pod| !seen.contains(*pod)),
            format!("{seen:?}"),
        );
        async move {
            if missing {
                Err((so_far, answer))
            } else {
                Ok(())
            }
        }
    })
    .await;
}

#[apply(cluster_test)]
async fn node_port_reaches_pods_on_every_node_by_tcp_and_udp() -> Result<()> {
    let (cluster, scope) = two_pods("nodeport").await?;
    let web = scope
        .service("web")
        .node_port()
        .tcp(80, 8080)
        .udp(53, 5353)
        .create()
        .await?;
    let client = cluster.outside();
    for node in cluster.nodes() {
        let (tcp, udp) = (node.at(web.node_port(80)?), node.at(web.node_port(53)?));
        all_answer(&["web-1", "web-2"], || client.http_get(tcp, SHORT)).await;
        all_answer(&["web-1", "web-2"], || client.udp_ask(udp, SHORT)).await;
    }
    Ok(())
}

#[apply(cluster_test)]
async fn node_port_works_in_every_family_of_the_cluster() -> Result<()> {
    let (cluster, scope) = two_pods("families").await?;
    let both = serde_json::json!("PreferDualStack");
    let web = scope
        .service("web")
        .node_port()
        .spec("ipFamilyPolicy", both)
        .tcp(80, 8080);
    let port = web.create().await?.node_port(80)?;
    for address in cluster.node("n1")?.addresses() {
        let reply = answers(&cluster.outside(), SocketAddr::new(*address, port)).await;
        ensure!(
            reply.client.is_ipv4() == address.is_ipv4(),
            "{address}: {reply:?}"
        );
    }
    Ok(())
}

#[apply(cluster_test)]
async fn the_outside_client_reaches_neither_cluster_ips_nor_pods() -> Result<()> {
    let (cluster, scope) = two_pods("outside").await?;
    let web = scope.service("web").tcp(80, 8080).create().await?;
    let cluster_ip = SocketAddr::new(web.cluster_ip()?, 80);
    let pods = highwire_e2e::Pod::find(&cluster, scope.namespace(), "web-1")?;
    answers(cluster.node("n3")?.netns(), cluster_ip).await;
    answers(cluster.node("n3")?.netns(), pods.at(8080)).await;
    for inside in [cluster_ip, pods.at(8080)] {
        let outcome = cluster.outside().http_get(inside, SHORT);
        ensure!(
            matches!(outcome, Err(ConnectError::Other(_) | ConnectError::Timeout)),
            "{inside}: {outcome:?}"
        );
    }
    Ok(())
}

#[apply(cluster_test)]
async fn pods_reach_pods_on_other_nodes_with_their_own_address() -> Result<()> {
    let (cluster, scope) = two_pods("pods").await?;
    let one = highwire_e2e::Pod::find(&cluster, scope.namespace(), "web-1")?;
    let two = highwire_e2e::Pod::find(&cluster, scope.namespace(), "web-2")?;
    let reply = answers(&one.netns(), two.at(8080)).await;
    ensure!(
        reply.pod == "web-2" && reply.client.ip() == one.addresses()[0],
        "{reply:?}"
    );
    Ok(())
}

#[apply(cluster_test)]
async fn a_closed_port_is_refused_and_a_client_address_can_be_chosen() -> Result<()> {
    let (cluster, scope) = two_pods("refused").await?;
    let node = cluster.node("n1")?;
    let closed = node.at(scope.free_port()?);
    ensure!(cluster.outside().http_get(closed, SHORT) == Err(ConnectError::Refused));
    let udp = cluster.outside().udp_ask(closed, SHORT);
    ensure!(udp == Err(ConnectError::Refused), "{udp:?}");

    let host = scope
        .pod("host")
        .on("n1")
        .tcp(scope.free_port()?)
        .host_network();
    let port = scope.free_port()?;
    let pod = host.tcp(port).start().await?;
    let second = SocketAddr::from((highwire_e2e::layout::CLIENT_V4_SECOND, 0));
    if node.addresses()[0].is_ipv4() {
        let reply = cluster
            .outside()
            .http_get_from(second, pod.at(port), AMPLE)?;
        ensure!(
            reply.pod == "host" && reply.client.ip() == second.ip(),
            "{reply:?}"
        );
    }
    Ok(())
}

#[apply(cluster_test)]
async fn a_long_connection_answers_until_its_pod_ends() -> Result<()> {
    let (cluster, scope) = two_pods("long").await?;
    let pod = highwire_e2e::Pod::find(&cluster, scope.namespace(), "web-1")?;
    let mut stream = cluster
        .node("n2")?
        .netns()
        .tcp_connect(pod.at(8080), AMPLE)?;
    ensure!(stream.say("one")? == "web-1");
    ensure!(stream.say("two")? == "web-1");
    pod.unit().kill()?;
    ensure!(stream.say("three").is_err());
    Ok(())
}

#[apply(cluster_test)]
async fn a_pod_that_is_not_ready_gets_no_traffic() -> Result<()> {
    let (cluster, scope) = two_pods("ready").await?;
    let web = scope
        .service("web")
        .node_port()
        .tcp(80, 8080)
        .create()
        .await?;
    let to = cluster.node("n3")?.at(web.node_port(80)?);
    let client = cluster.outside();
    all_answer(&["web-1", "web-2"], || client.http_get(to, SHORT)).await;
    let one = highwire_e2e::Pod::find(&cluster, scope.namespace(), "web-1")?;
    one.set_ready(&cluster, false).await?;
    wait_for("web-2 alone to answer 30 times in a row", LONG, || async {
        client.run(|| (0..30).all(|_| http_get(to, SHORT).is_ok_and(|reply| reply.pod == "web-2")))
    })
    .await;
    Ok(())
}

#[apply(cluster_test)]
async fn a_removed_scope_leaves_nothing() -> Result<()> {
    let (cluster, scope) = two_pods("drop").await?;
    let namespace = scope.namespace().to_owned();
    let pod = highwire_e2e::Pod::find(&cluster, &namespace, "web-1")?;
    let (netns, unit) = (pod.netns(), pod.unit());
    ensure!(netns.exists() && unit.is_running());
    scope.remove();
    ensure!(!netns.exists() && !unit.is_running());
    wait_for("the namespace to be gone", LONG, || async {
        cluster
            .kubectl(&[
                "get",
                "namespace",
                &namespace,
                "--ignore-not-found",
                "-oname",
            ])
            .map(|answer| answer.is_empty())
            .unwrap_or(false)
    })
    .await;
    Ok(())
}

#[apply(cluster_test)]
async fn offloads_are_off_on_every_cable() -> Result<()> {
    let (cluster, scope) = two_pods("offload").await?;
    let pod = highwire_e2e::Pod::find(&cluster, scope.namespace(), "web-1")?;
    for netns in [
        cluster.outside(),
        cluster.node("n1")?.netns().clone(),
        pod.netns(),
    ] {
        let features = netns.check(&["ethtool", "-k", "eth0"])?;
        ensure!(
            features.contains("tx-checksumming: off"),
            "{}: {features}",
            netns.name()
        );
    }
    Ok(())
}

#[apply(cluster_test)]
async fn rbac_is_on() -> Result<()> {
    let cluster = Cluster::attach().await?;
    let asked = cluster.kubectl(&["auth", "can-i", "list", "secrets", "--as=nobody"]);
    ensure!(asked.is_err_and(|error| format!("{error:#}").trim_end().ends_with(": no")));
    cluster.kubectl(&["auth", "can-i", "list", "secrets"])?;
    Ok(())
}
