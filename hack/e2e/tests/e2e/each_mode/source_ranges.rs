//! `loadBalancerSourceRanges`: who is let in.
//!
//! Addresses: nodes 192.0.2.11 and 2001:db8:1::11 (n1), .12 and ::12 (n2) serve; the
//! client has 198.51.100.10 and .11, and 2001:db8:2::10; Pods 10.244.0.0/16.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{
    ALL, AMPLE, BOTH, LONG, SHORT, answers, at_both_addresses, ingress_is, web, web_service,
};
use highwire_e2e::reported::event;
use highwire_e2e::{ConnectError, Netns, Pod, Scope, Svc, wait_for};
use macro_rules_attribute::apply;
use serde_json::{Value, json};

#[apply(cluster_test)]
async fn source_ranges_let_only_their_clients_in() -> Result<()> {
    let (cluster, scope) = web("ranges").await?;
    let (client, n1) = (cluster.outside(), cluster.node("n1")?);
    let (inside, outside) = ("198.51.100.10:0".parse()?, "198.51.100.11:0".parse()?);
    let (tcp, udp) = (scope.free_port()?, scope.free_port()?);
    let service = scope
        .service("web")
        .load_balancer()
        .tcp(tcp, 8080)
        .udp(udp, 5353);
    let only = json!(["198.51.100.10/32", "203.0.113.0/24"]);
    let service = service
        .spec("loadBalancerSourceRanges", only)
        .create()
        .await?;
    ingress_is(&service, &BOTH).await;
    wait_for("the allowed client", LONG, || async {
        client.http_get_from(inside, n1.v4(tcp), SHORT)
    })
    .await;
    let denied = client.http_get_from(outside, n1.v4(tcp), SHORT);
    ensure!(denied == Err(ConnectError::Timeout), "{denied:?}");
    let udp_denied = Pod::find(&cluster, scope.namespace(), "web-2")?
        .netns()
        .udp_ask(n1.v4(udp), SHORT);
    ensure!(
        udp_denied == Err(ConnectError::Timeout),
        "a Pod is not in the ranges: {udp_denied:?}"
    );
    let mut open = client.tcp_connect_from(inside, n1.v4(tcp), AMPLE)?;
    let pod = open.say("before")?;
    // A change takes effect on new connections, and on those only.
    service
        .patch(json!({"spec": {"loadBalancerSourceRanges": ["198.51.100.11/32"]}}))
        .await?;
    wait_for("the other client", LONG, || async {
        client.http_get_from(outside, n1.v4(tcp), SHORT)
    })
    .await;
    let denied = client.http_get_from(inside, n1.v4(tcp), SHORT);
    ensure!(denied == Err(ConnectError::Timeout), "{denied:?}");
    ensure!(open.say("after")? == pod, "an open connection goes on");
    // And without ranges everybody is let in again.
    service
        .patch(json!({"spec": {"loadBalancerSourceRanges": null}}))
        .await?;
    wait_for("everybody", LONG, || async {
        client.http_get_from(inside, n1.v4(tcp), SHORT)
    })
    .await;
    Ok(())
}

/// A dual-stack Service on a TCP port with these ranges.
async fn ranged(scope: &Scope, port: u16, ranges: &[&str]) -> Result<Svc> {
    let service = scope.service("web").load_balancer().dual_stack();
    let service = service.tcp(port, 8080);
    let service = service
        .spec("loadBalancerSourceRanges", json!(ranges))
        .create()
        .await?;
    ingress_is(&service, &ALL).await;
    Ok(service)
}

/// Waits until the client is let in, or shut out.
async fn is_let_in(from: &Netns, to: SocketAddr, wanted: bool) {
    let what = format!("{} to {to}: let in {wanted}", from.name());
    wait_for(&what, LONG, || async {
        match from.http_get(to, SHORT) {
            Ok(_) if wanted => Ok(()),
            Err(ConnectError::Timeout) if !wanted => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

#[apply(cluster_test)]
async fn ranges_of_each_family_are_about_that_family() -> Result<()> {
    let (cluster, scope) = web("families").await?;
    let port = scope.free_port()?;
    let service = ranged(&scope, port, &["198.51.100.0/24", "2001:db8:2::/64"]).await?;
    let client = cluster.outside();
    let [four, six] = at_both_addresses(&cluster, "n2", port)?;
    for (ranges, let_in) in [
        (json!(["198.51.100.0/24", "2001:db8:2::/64"]), [true, true]),
        (json!(["198.51.100.0/24"]), [true, false]),
        (
            json!(["203.0.113.0/24", "2001:db8:2::10/128"]),
            [false, true],
        ),
        (json!(["0.0.0.0/0"]), [true, false]),
        (json!([]), [true, true]),
    ] {
        let spec = json!({"spec": {"loadBalancerSourceRanges": ranges}});
        service.patch(spec).await?;
        is_let_in(&client, four, let_in[0]).await;
        is_let_in(&client, six, let_in[1]).await;
    }
    Ok(())
}

#[apply(cluster_test)]
async fn pods_and_nodes_are_clients_as_any_other() -> Result<()> {
    let (cluster, scope) = web("members").await?;
    let port = scope.free_port()?;
    let pod = Pod::find(&cluster, scope.namespace(), "web-1")?;
    let ranges = [
        format!("{}/32", pod.addresses()[0]),
        "192.0.2.12/32".to_owned(),
    ];
    ranged(&scope, port, &[&ranges[0], &ranges[1]]).await?;
    let other = Pod::find(&cluster, scope.namespace(), "web-2")?;
    let (n1, n2) = (cluster.node("n1")?, cluster.node("n2")?);
    for (from, let_in) in [
        (pod.netns(), true),
        (other.netns(), false),
        (n2.netns().clone(), true),
        (n1.netns().clone(), false),
    ] {
        is_let_in(&from, n1.v4(port), let_in).await;
    }
    Ok(())
}

#[apply(cluster_test)]
async fn a_bad_range_is_rejected_and_the_last_good_ones_stay() -> Result<()> {
    let (cluster, scope) = web("badrange").await?;
    let port = scope.free_port()?;
    let service = ranged(&scope, port, &["198.51.100.10/32"]).await?;
    let (client, to) = (cluster.outside(), cluster.node("n1")?.v4(port));
    answers(&client, to).await;
    // This API server (1.36) checks field and annotation itself. For older ones, which
    // let host bits through, the same words are ours; those are tested without one.
    let annotation = "service.beta.kubernetes.io/load-balancer-source-ranges";
    for patch in [
        json!({"spec": {"loadBalancerSourceRanges": ["198.51.100.11/24"]}}),
        json!({
            "metadata": {"annotations": {annotation: "198.51.100.11/24"}},
            "spec": {"loadBalancerSourceRanges": null},
        }),
    ] {
        let refused = service.patch(patch).await;
        let words = format!("{:#}", refused.err().context("it was accepted")?);
        ensure!(words.contains("198.51.100.11/24"), "{words}");
    }
    ensure!(
        client.http_get(to, AMPLE).is_ok(),
        "the last good range stays"
    );
    let second: SocketAddr = "198.51.100.11:0".parse()?;
    let denied = client.http_get_from(second, to, SHORT);
    ensure!(
        denied == Err(ConnectError::Timeout),
        "and lets nobody else in: {denied:?}"
    );
    // The annotation counts where the field is empty.
    service
        .patch(json!({
            "metadata": {"annotations": {annotation: "198.51.100.11/32, 203.0.113.0/24"}},
            "spec": {"loadBalancerSourceRanges": null},
        }))
        .await?;
    wait_for("the second address to be let in", LONG, || async {
        client.http_get_from(second, to, SHORT)
    })
    .await;
    is_let_in(&client, to, false).await;
    Ok(())
}

#[apply(cluster_test)]
async fn a_service_with_too_many_ranges_is_refused_and_others_are_served() -> Result<()> {
    let (cluster, scope) = web("manyranges").await?;
    let port = scope.free_port()?;
    let service = scope.service("many").load_balancer().select("app", "web");
    // 400 × 400 elements would keep nft busy for minutes.
    let ports: Vec<Value> = (0..400)
        .map(|i| json!({"name": format!("p{i}"), "port": 40_000 + i, "targetPort": 8080}))
        .collect();
    let networks: Vec<String> = (0..400)
        .map(|i| format!("10.{}.{}.0/24", i / 128, i % 128 * 2))
        .collect();
    let many = service
        .spec("ports", json!(ports))
        .spec("allocateLoadBalancerNodePorts", json!(false))
        .spec("loadBalancerSourceRanges", json!(networks))
        .create()
        .await?;
    let said = event(&scope, &many, "InvalidField").await;
    ensure!(said.contains("400 networks for 400 ports"), "{said}");
    let service = web_service(&scope, "web", port).await?;
    ingress_is(&service, &BOTH).await;
    answers(&cluster.outside(), cluster.node("n1")?.v4(port)).await;
    ensure!(many.ingress_ips().await?.is_empty());
    Ok(())
}

#[apply(cluster_test)]
async fn a_node_whose_socket_the_ranges_do_not_cover_is_not_advertised() -> Result<()> {
    let (cluster, scope) = web("hostranges").await?;
    let port = scope.free_port()?;
    let pod = scope.pod("own-1").on("n1").label("app", "own");
    pod.host_network().tcp(port).start().await?;
    let service = scope.service("own").load_balancer().tcp(port, port);
    let ranges = |networks: Value| json!({"spec": {"loadBalancerSourceRanges": networks}});
    let service = service
        .spec("loadBalancerSourceRanges", json!(["198.51.100.10/32"]))
        .create()
        .await?;
    ingress_is(&service, &["192.0.2.12"]).await;
    let said = event(&scope, &service, "PortConflict").await;
    ensure!(
        said.contains("its own hostNetwork Pod") && said.contains("source ranges do not hold"),
        "{said}"
    );
    // n2 enforces them, though the one Pod is on n1.
    let n2 = cluster.node("n2")?.v4(port);
    let client = cluster.outside();
    answers(&client, n2).await;
    let denied = client.http_get_from("198.51.100.11:0".parse()?, n2, SHORT);
    ensure!(denied == Err(ConnectError::Timeout), "{denied:?}");
    service.patch(ranges(Value::Null)).await?;
    ingress_is(&service, &BOTH).await;
    Ok(())
}
