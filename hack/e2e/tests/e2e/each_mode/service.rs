//! One LoadBalancer Service, as its users see it.
//!
//! Addresses: nodes 192.0.2.11 (n1), .12 (n2) and .13 (n3, not opted in), Pods
//! 10.244.0.0/16, ClusterIPs 10.96.0.0/16, the outside client 198.51.100.10.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{
    ALL, AMPLE, BOTH, LONG, SHORT, all_answer, answers, at_both_addresses, dual_service,
    ingress_is, refuses, refuses_new_udp, web, web_service,
};
use highwire_e2e::{ConnectError, Netns, Pod, wait_for};
use macro_rules_attribute::apply;
use serde_json::json;

#[apply(cluster_test)]
async fn every_opted_in_node_answers_by_tcp_and_udp_for_pods_on_every_node() -> Result<()> {
    let (cluster, scope) = web("reach").await?;
    // On a node that has not opted in there may be Pods too.
    let third = scope.pod("web-3").on("n3").label("app", "web");
    third.tcp(8080).udp(5353).start().await?;
    let pods = ["web-1", "web-2", "web-3"];
    let (tcp, udp) = (scope.free_port()?, scope.free_port()?);
    let service = scope
        .service("web")
        .load_balancer()
        .tcp(tcp, 8080)
        .udp(udp, 5353);
    let service = service.create().await?;
    ingress_is(&service, &BOTH).await;
    let client = cluster.outside();
    for node in ["n1", "n2"] {
        let node = cluster.node(node)?;
        all_answer(&pods, || client.http_get(node.v4(tcp), SHORT)).await;
        all_answer(&pods, || client.udp_ask(node.v4(udp), SHORT)).await;
    }
    let other = cluster.node("n3")?.v4(tcp);
    ensure!(
        client.http_get(other, SHORT) == Err(ConnectError::Refused),
        "n3 has not opted in"
    );
    Ok(())
}

#[apply(cluster_test)]
async fn the_status_lists_proxy_addresses_with_their_ports() -> Result<()> {
    let (_cluster, scope) = web("status").await?;
    let (tcp, udp) = (scope.free_port()?, scope.free_port()?);
    let service = scope
        .service("web")
        .load_balancer()
        .udp(udp, 5353)
        .tcp(tcp, 8080);
    let service = service.create().await?;
    ingress_is(&service, &BOTH).await;
    for entry in service.ingress().await? {
        ensure!(entry.ip_mode.as_deref() == Some("Proxy"), "{entry:?}");
        let ports = entry.ports.unwrap_or_default();
        let mut ports: Vec<_> = ports
            .iter()
            .map(|port| (port.protocol.as_str(), port.port, port.error.clone()))
            .collect();
        ports.sort();
        ensure!(
            ports == [("TCP", tcp.into(), None), ("UDP", udp.into(), None)],
            "{ports:?}"
        );
    }
    Ok(())
}

#[apply(cluster_test)]
async fn two_hundred_requests_reach_all_ready_pods_and_no_other() -> Result<()> {
    let (cluster, scope) = web("spread").await?;
    let unready = scope
        .pod("web-3")
        .on("n3")
        .label("app", "web")
        .tcp(8080)
        .start()
        .await?;
    unready.set_ready(&cluster, false).await?;
    let port = scope.free_port()?;
    ingress_is(&dual_service(&scope, "web", port).await?, &ALL).await;
    let client = cluster.outside();
    for to in at_both_addresses(&cluster, "n1", port)? {
        answers(&client, to).await;
        let mut seen: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..200 {
            let reply = client.http_get(to, AMPLE)?;
            *seen.entry(reply.pod).or_default() += 1;
        }
        ensure!(
            seen.keys().map(String::as_str).eq(["web-1", "web-2"]),
            "{seen:?}"
        );
        ensure!(
            seen.values().all(|count| *count > 50),
            "spread unevenly: {seen:?}"
        );
    }
    Ok(())
}

#[apply(cluster_test)]
async fn a_connection_has_one_conntrack_entry_from_the_nodes_address_to_the_pod() -> Result<()> {
    let (cluster, scope) = web("conntrack").await?;
    let port = scope.free_port()?;
    ingress_is(&dual_service(&scope, "web", port).await?, &ALL).await;
    for to in at_both_addresses(&cluster, "n1", port)? {
        answers(&cluster.outside(), to).await;
        let mut stream = cluster.outside().tcp_connect(to, AMPLE)?;
        let pod = stream.say("hello")?;
        let pod = Pod::find(&cluster, scope.namespace(), &pod)?;
        let (client, node) = (stream.local_addr()?, to.ip());
        let (source, family) = match node.is_ipv4() {
            true => (client.port(), "ipv4"),
            false => (client.port(), "ipv6"),
        };
        let listed = cluster.node("n1")?.netns().check(&[
            "conntrack",
            "-L",
            "-f",
            family,
            "-p",
            "tcp",
            "--orig-src",
            &client.ip().to_string(),
            "--sport",
            &source.to_string(),
            // Another test's connection may have the same source port.
            "--dport",
            &port.to_string(),
        ])?;
        let entries: Vec<&str> = listed
            .lines()
            .filter(|line| line.starts_with("tcp"))
            .collect();
        ensure!(entries.len() == 1, "{listed}");
        let original = format!("src={} dst={node} sport={source} dport={port}", client.ip());
        let answers = |address| entries[0].contains(&format!("src={address} "));
        ensure!(
            entries[0].contains(&original) && pod.addresses().iter().any(answers),
            "{listed}"
        );
    }
    Ok(())
}

#[apply(cluster_test)]
async fn pods_and_nodes_reach_it_by_tcp_and_udp_and_loopback_is_untouched() -> Result<()> {
    let (cluster, scope) = web("inside").await?;
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer().dual_stack();
    let service = service.tcp(port, 8080).udp(port, 5353).create().await?;
    ingress_is(&service, &ALL).await;
    // From each Pod, so that some connections come back to the very same Pod.
    let mut clients: Vec<Netns> = Vec::new();
    for pod in ["web-1", "web-2"] {
        clients.push(Pod::find(&cluster, scope.namespace(), pod)?.netns());
    }
    clients.extend(cluster.nodes().iter().map(|node| node.netns().clone()));
    for name in ["n1", "n2"] {
        let node = cluster.node(name)?;
        for from in &clients {
            for to in at_both_addresses(&cluster, name, port)? {
                all_answer(&["web-1", "web-2"], || from.http_get(to, SHORT)).await;
                all_answer(&["web-1", "web-2"], || from.udp_ask(to, SHORT)).await;
            }
        }
        for loopback in [IpAddr::V4(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let outcome = node
                .netns()
                .http_get(SocketAddr::new(loopback, port), SHORT);
            ensure!(
                outcome == Err(ConnectError::Refused),
                "{loopback}: {outcome:?}"
            );
        }
    }
    Ok(())
}

#[apply(cluster_test)]
async fn without_endpoints_clients_are_refused_at_once() -> Result<()> {
    let (cluster, scope) = web("empty").await?;
    let (tcp, udp) = (scope.free_port()?, scope.free_port()?);
    let service = scope
        .service("nobody")
        .load_balancer()
        .tcp(tcp, 8080)
        .udp(udp, 5353);
    let service = service.create().await?;
    ingress_is(&service, &BOTH).await;
    let node = cluster.node("n1")?;
    refuses(&cluster.outside(), node.v4(tcp)).await;
    refuses(node.netns(), node.v4(tcp)).await;
    refuses_new_udp(&cluster.outside(), node.v4(udp)).await;
    Ok(())
}

#[apply(cluster_test)]
async fn the_service_gets_one_event_with_its_addresses() -> Result<()> {
    let (cluster, scope) = web("event").await?;
    let service = web_service(&scope, "web", scope.free_port()?).await?;
    ingress_is(&service, &BOTH).await;
    let events = wait_for("the event LoadBalancerUpdated", LONG, || async {
        let events = cluster.kubectl(&[
            "get",
            "events",
            "-n",
            scope.namespace(),
            "--field-selector=involvedObject.name=web",
            "-o=jsonpath={range .items[*]}{.reason}: {.message}{\"\\n\"}{end}",
        ])?;
        anyhow::ensure!(
            BOTH.iter().any(|address| events.contains(address)),
            "{events}"
        );
        Ok(events)
    })
    .await;
    let updates = events
        .lines()
        .filter(|line| line.starts_with("LoadBalancerUpdated"))
        .count();
    ensure!(updates == 1, "none for a node that joins later: {events}");
    ensure!(!events.contains("NoReadyNodes"), "{events}");
    Ok(())
}

#[apply(cluster_test)]
async fn a_selector_that_matches_no_node_gets_an_event_and_a_fix_serves() -> Result<()> {
    let (cluster, scope) = web("noready").await?;
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer().tcp(port, 8080);
    let service = service
        .annotation("highwire.dev/node-selector", "pool=nowhere")
        .create()
        .await?;
    wait_for("the event NoReadyNodes", LONG, || async {
        let events = cluster.kubectl(&["get", "events", "-n", scope.namespace(), "-o=wide"])?;
        anyhow::ensure!(
            events.contains("NoReadyNodes") && events.contains("pool=nowhere"),
            "{events}"
        );
        Ok(())
    })
    .await;
    ensure!(service.ingress().await?.is_empty());
    let node = cluster.node("n1")?.v4(port);
    ensure!(cluster.outside().http_get(node, SHORT) == Err(ConnectError::Refused));
    let n1_only = json!({"highwire.dev/node-selector": "kubernetes.io/hostname=n1"});
    service
        .patch(json!({"metadata": {"annotations": n1_only}}))
        .await?;
    ingress_is(&service, &["192.0.2.11"]).await;
    answers(&cluster.outside(), node).await;
    let other = cluster.node("n2")?.v4(port);
    ensure!(cluster.outside().http_get(other, SHORT) == Err(ConnectError::Refused));
    Ok(())
}

#[apply(cluster_test)]
async fn an_invalid_annotation_gets_an_event_and_others_are_served() -> Result<()> {
    let (cluster, scope) = web("invalid").await?;
    let (bad, good) = (scope.free_port()?, scope.free_port()?);
    let broken = scope
        .service("broken")
        .load_balancer()
        .select("app", "web")
        .tcp(bad, 8080);
    broken
        .annotation("highwire.dev/node-selector", "pool in edge")
        .create()
        .await?;
    ingress_is(&web_service(&scope, "good", good).await?, &BOTH).await;
    answers(&cluster.outside(), cluster.node("n1")?.v4(good)).await;
    let events = wait_for("the event InvalidAnnotation", LONG, || async {
        let events = cluster.kubectl(&["get", "events", "-n", scope.namespace(), "-o=wide"])?;
        Some(events)
            .filter(|events| events.contains("InvalidAnnotation"))
            .context("none yet")
    })
    .await;
    ensure!(
        events.contains("highwire.dev/node-selector"),
        "names the field: {events}"
    );
    ensure!(events.contains("pool in edge"), "names the value: {events}");
    Ok(())
}

#[apply(cluster_test)]
async fn a_service_of_another_class_is_not_touched() -> Result<()> {
    let (cluster, scope) = web("class").await?;
    let (theirs, ours) = (scope.free_port()?, scope.free_port()?);
    let other = scope
        .service("theirs")
        .load_balancer()
        .select("app", "web")
        .tcp(theirs, 8080);
    let other = other.class("example.com/other").create().await?;
    let named = scope
        .service("ours")
        .load_balancer()
        .select("app", "web")
        .tcp(ours, 8080);
    ingress_is(&named.class("highwire.dev/node").create().await?, &BOTH).await;
    ensure!(other.ingress().await?.is_empty());
    // What another controller writes there stays, and so does the class.
    let theirs_now = json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}});
    cluster.kubectl(&[
        "patch",
        "service",
        "theirs",
        "-n",
        scope.namespace(),
        "--subresource=status",
        "--type=merge",
        &format!("--patch={theirs_now}"),
    ])?;
    let last = web_service(&scope, "last", scope.free_port()?).await?;
    ingress_is(&last, &BOTH).await; // so our controller has seen all of it
    ensure!(other.ingress_ips().await? == ["203.0.113.9"]);
    let taken = other
        .patch(json!({"spec": {"loadBalancerClass": "highwire.dev/node"}}))
        .await;
    ensure!(taken.is_err(), "the class of a Service cannot be changed");
    let outcome = cluster
        .outside()
        .http_get(cluster.node("n1")?.v4(theirs), SHORT);
    ensure!(outcome == Err(ConnectError::Refused), "{outcome:?}");
    Ok(())
}

#[apply(cluster_test)]
async fn kubectl_get_lbn_shows_what_the_node_does() -> Result<()> {
    let (cluster, scope) = web("report").await?;
    ingress_is(
        &web_service(&scope, "web", scope.free_port()?).await?,
        &BOTH,
    )
    .await;
    let columns = cluster.kubectl(&["get", "lbn", "n1"])?;
    let header = columns.lines().next().unwrap_or_default();
    let header: Vec<&str> = header.split_whitespace().collect();
    ensure!(
        header
            == [
                "NAME",
                "READY",
                "SERVICES",
                "CONFLICTS",
                "PROXY",
                "ADDRESSES",
                "AGE"
            ],
        "{columns}"
    );
    let mode = cluster.config().proxy_modes.reported_by(1);
    let row: Vec<&str> = columns
        .lines()
        .nth(1)
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    ensure!(row.contains(&"True") && row[4] == mode, "{columns}");
    ensure!(
        columns.contains("192.0.2.11") && columns.contains("2001:db8:1::11"),
        "{columns}"
    );
    Ok(())
}

#[apply(cluster_test)]
async fn the_api_server_accepts_deploy_as_it_is() -> Result<()> {
    let (cluster, _scope) = web("deploy").await?;
    let accepted = cluster.kubectl(&["apply", "--dry-run=server", "-f", "deploy"])?;
    for object in [
        "daemonset.apps/highwire-agent",
        "deployment.apps/highwire-controller",
    ] {
        ensure!(accepted.contains(object), "{accepted}");
    }
    ensure!(!accepted.contains("Warning"), "{accepted}");
    Ok(())
}
