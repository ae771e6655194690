//! Services and their Pods change while clients use them.
//!
//! Addresses: nodes 192.0.2.11 and 2001:db8:1::11 (n1), .12 and ::12 (n2) serve.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{
    ALL, AMPLE, BOTH, LONG, SHORT, Served, all_answer, answers, at_both_addresses, dual_service,
    ingress_is, refuses, refuses_new_udp, served, web, web_service,
};
use highwire_e2e::reported::{event, events};
use highwire_e2e::{EchoStream, Netns, Pod, Svc, wait_for};
use macro_rules_attribute::apply;
use serde_json::{Value, json};

async fn set_spec(service: &Svc, spec: Value) -> Result<()> {
    service.patch(json!({ "spec": spec })).await.map(drop)
}

async fn answers_by_udp(from: &Netns, to: SocketAddr) {
    wait_for(&format!("a UDP answer from {to}"), LONG, || async {
        from.udp_ask(to, SHORT)
    })
    .await;
}

/// Each connection still leads to the Pod that it led to.
fn go_on(streams: &mut [(String, EchoStream)]) -> Result<()> {
    for (pod, stream) in streams {
        let now = stream.say("after")?;
        ensure!(now == *pod, "a connection moved from {pod} to {now}");
    }
    Ok(())
}

#[apply(cluster_test)]
async fn a_changed_port_moves_and_established_connections_go_on() -> Result<()> {
    let (cluster, scope) = web("move").await?;
    let (old, new) = (scope.free_port()?, scope.free_port()?);
    let service = dual_service(&scope, "web", old).await?;
    ingress_is(&service, &ALL).await;
    let client = cluster.outside();
    let mut streams = Vec::new();
    for to in at_both_addresses(&cluster, "n1", old)? {
        answers(&client, to).await;
        let mut stream = client.tcp_connect(to, AMPLE)?;
        streams.push((stream.say("before")?, stream));
    }
    service
        .patch(json!({"spec": {"ports": [{"name": "http", "port": new, "targetPort": 8080}]}}))
        .await?;
    for to in at_both_addresses(&cluster, "n1", new)? {
        answers(&client, to).await;
    }
    for to in at_both_addresses(&cluster, "n1", old)? {
        refuses(&client, to).await;
    }
    wait_for("the status to list the new port only", LONG, || async {
        let ingress = service.ingress().await.unwrap_or_default();
        let listed: Vec<i32> = ingress
            .iter()
            .flat_map(|entry| entry.ports.iter().flatten())
            .map(|p| p.port)
            .collect();
        if listed == [i32::from(new); 4] {
            Ok(())
        } else {
            Err(listed)
        }
    })
    .await;
    go_on(&mut streams)
}

#[apply(cluster_test)]
async fn a_service_that_is_no_load_balancer_any_more_is_closed_and_cleared() -> Result<()> {
    let Served {
        cluster,
        scope: _scope,
        service,
        port,
    } = served("retype").await?;
    let (client, node) = (cluster.outside(), cluster.node("n1")?);
    answers(&client, node.v4(port)).await;
    service
        .patch(json!({"spec": {"type": "ClusterIP"}}))
        .await?;
    refuses(&client, node.v4(port)).await;
    ingress_is(&service, &[]).await;
    Ok(())
}

#[apply(cluster_test)]
async fn a_deleted_service_is_closed_and_its_connections_go_on() -> Result<()> {
    let (cluster, scope) = web("delete").await?;
    let port = scope.free_port()?;
    let service = dual_service(&scope, "web", port).await?;
    ingress_is(&service, &ALL).await;
    let client = cluster.outside();
    let mut streams = Vec::new();
    for to in at_both_addresses(&cluster, "n2", port)? {
        answers(&client, to).await;
        let mut stream = client.tcp_connect(to, AMPLE)?;
        streams.push((stream.say("before")?, stream));
    }
    service.delete().await?;
    for to in at_both_addresses(&cluster, "n2", port)? {
        refuses(&client, to).await;
    }
    go_on(&mut streams)
}

#[apply(cluster_test)]
async fn replacing_a_pod_fails_no_connection() -> Result<()> {
    let Served {
        cluster,
        scope,
        service: _,
        port,
    } = served("replace").await?;
    let (client, to) = (cluster.outside(), cluster.node("n1")?.v4(port));
    all_answer(&["web-1", "web-2"], || client.http_get(to, SHORT)).await;
    let old = Pod::find(&cluster, scope.namespace(), "web-2")?;
    scope
        .pod("web-3")
        .on("n2")
        .label("app", "web")
        .tcp(8080)
        .start()
        .await?;
    // As a rollout does: the old Pod leaves the endpoints before it stops.
    old.delete_object(&cluster).await?;
    let mut clean = 0;
    wait_for("200 answers in a row from the new Pods", LONG, || {
        for _ in 0..200 {
            match client.http_get(to, AMPLE) {
                Ok(reply) if reply.pod == "web-2" => clean = 0,
                Ok(_) => clean += 1,
                Err(error) => panic!("a connection failed: {error:?}"),
            }
        }
        let done = clean >= 200;
        async move { done }
    })
    .await;
    old.stop()?;
    for _ in 0..100 {
        let reply = client.http_get(to, AMPLE)?;
        ensure!(reply.pod != "web-2", "{reply:?}");
    }
    Ok(())
}

#[apply(cluster_test)]
async fn the_type_may_change_and_established_connections_go_on() -> Result<()> {
    let (cluster, scope) = web("types").await?;
    let (tcp, udp) = (scope.free_port()?, scope.free_port()?);
    let service = scope.service("web").tcp(tcp, 8080).udp(udp, 5353);
    let service = service.create().await?;
    let (client, n1) = (cluster.outside(), cluster.node("n1")?);
    let mut streams: Vec<(String, EchoStream)> = Vec::new();
    for (kind, served) in [
        ("NodePort", false),
        ("LoadBalancer", true),
        ("NodePort", false),
        ("LoadBalancer", true),
        ("ClusterIP", false),
        ("LoadBalancer", true),
    ] {
        set_spec(&service, json!({ "type": kind })).await?;
        if served {
            ingress_is(&service, &BOTH).await;
            answers(&client, n1.v4(tcp)).await;
            answers_by_udp(&client, n1.v4(udp)).await;
            let mut stream = client.tcp_connect(n1.v4(tcp), AMPLE)?;
            streams.push((stream.say("before")?, stream));
        } else {
            refuses(&client, n1.v4(tcp)).await;
            refuses_new_udp(&client, n1.v4(udp)).await;
            ingress_is(&service, &[]).await;
        }
        go_on(&mut streams)?;
    }
    // Faster than anybody can follow.
    for kind in ["ClusterIP", "LoadBalancer", "ClusterIP", "LoadBalancer"] {
        set_spec(&service, json!({ "type": kind })).await?;
    }
    ingress_is(&service, &BOTH).await;
    answers(&client, n1.v4(tcp)).await;
    let external = json!({"type": "ExternalName", "externalName": "example.com",
                          "clusterIP": null, "clusterIPs": null, "ports": null});
    set_spec(&service, external).await?;
    refuses(&client, n1.v4(tcp)).await;
    ingress_is(&service, &[]).await;
    go_on(&mut streams)
}

#[apply(cluster_test)]
async fn a_second_family_may_come_and_go() -> Result<()> {
    let Served {
        cluster,
        scope: _scope,
        service,
        port,
    } = served("families").await?;
    let client = cluster.outside();
    let [four, six] = at_both_addresses(&cluster, "n1", port)?;
    answers(&client, four).await;
    for _ in 0..2 {
        set_spec(&service, json!({"ipFamilyPolicy": "PreferDualStack"})).await?;
        ingress_is(&service, &ALL).await;
        answers(&client, six).await;
        set_spec(&service, json!({"ipFamilyPolicy": "SingleStack"})).await?;
        ingress_is(&service, &BOTH).await;
        refuses(&client, six).await;
        answers(&client, four).await;
    }
    Ok(())
}

#[apply(cluster_test)]
async fn a_port_may_change_its_protocol() -> Result<()> {
    let Served {
        cluster,
        scope: _scope,
        service,
        port,
    } = served("protocol").await?;
    let (client, to) = (cluster.outside(), cluster.node("n1")?.v4(port));
    answers(&client, to).await;
    let udp = json!([{"port": port, "protocol": "UDP", "targetPort": 5353}]);
    set_spec(&service, json!({"ports": udp})).await?;
    answers_by_udp(&client, to).await;
    refuses(&client, to).await;
    let tcp = json!([{"port": port, "protocol": "TCP", "targetPort": 8080}]);
    set_spec(&service, json!({"ports": tcp})).await?;
    answers(&client, to).await;
    refuses_new_udp(&client, to).await;
    Ok(())
}

#[apply(cluster_test)]
async fn without_node_ports_it_is_served_and_may_get_some_later() -> Result<()> {
    let (cluster, scope) = web("portless").await?;
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer().tcp(port, 8080);
    let service = service
        .spec("allocateLoadBalancerNodePorts", json!(false))
        .create()
        .await?;
    ensure!(service.node_port(port).is_err(), "{:?}", service.object);
    ingress_is(&service, &BOTH).await;
    let (client, to) = (cluster.outside(), cluster.node("n1")?.v4(port));
    answers(&client, to).await;
    set_spec(&service, json!({"allocateLoadBalancerNodePorts": true})).await?;
    let spec = service.get().await?.spec.unwrap_or_default();
    ensure!(
        spec.ports
            .iter()
            .flatten()
            .all(|port| port.node_port.is_some())
    );
    ingress_is(&service, &BOTH).await;
    answers(&client, to).await;
    Ok(())
}

#[apply(cluster_test)]
async fn session_affinity_may_be_switched() -> Result<()> {
    let Served {
        cluster,
        scope: _scope,
        service,
        port,
    } = served("switch").await?;
    let (client, to) = (cluster.outside(), cluster.node("n1")?.v4(port));
    for (affinity, pods) in [("None", 2), ("ClientIP", 1), ("None", 2)] {
        set_spec(&service, json!({"sessionAffinity": affinity})).await?;
        wait_for(&format!("affinity {affinity}"), LONG, || async {
            let seen: Result<std::collections::BTreeSet<_>, _> = (0..30)
                .map(|_| client.http_get(to, SHORT).map(|reply| reply.pod))
                .collect();
            match &seen {
                Ok(names) if names.len() == pods => Ok(()),
                _ => Err(seen),
            }
        })
        .await;
    }
    Ok(())
}

#[apply(cluster_test)]
async fn all_endpoints_may_go_and_come_back() -> Result<()> {
    let Served {
        cluster,
        scope,
        service,
        port,
    } = served("ebb").await?;
    let (client, to) = (cluster.outside(), cluster.node("n1")?.v4(port));
    answers(&client, to).await;
    for ready in [false, true, false] {
        for pod in ["web-1", "web-2"] {
            let pod = Pod::find(&cluster, scope.namespace(), pod)?;
            pod.set_ready(&cluster, ready).await?;
        }
        if ready {
            all_answer(&["web-1", "web-2"], || client.http_get(to, SHORT)).await;
        } else {
            refuses(&client, to).await;
        }
    }
    // Who asks for it gets Pods that are not ready.
    set_spec(&service, json!({"publishNotReadyAddresses": true})).await?;
    all_answer(&["web-1", "web-2"], || client.http_get(to, SHORT)).await;
    Ok(())
}

#[apply(cluster_test)]
async fn two_services_may_share_their_pods_and_part() -> Result<()> {
    let (cluster, scope) = web("shared").await?;
    let (one, other) = (scope.free_port()?, scope.free_port()?);
    let first = web_service(&scope, "one", one).await?;
    let second = web_service(&scope, "other", other).await?;
    let (client, n1) = (cluster.outside(), cluster.node("n1")?);
    for (service, port) in [(&first, one), (&second, other)] {
        ingress_is(service, &BOTH).await;
        all_answer(&["web-1", "web-2"], || client.http_get(n1.v4(port), SHORT)).await;
    }
    first.delete().await?;
    refuses(&client, n1.v4(one)).await;
    for _ in 0..50 {
        let reply = client.http_get(n1.v4(other), AMPLE);
        ensure!(reply.is_ok(), "{reply:?}");
    }
    ingress_is(&second, &BOTH).await;
    Ok(())
}

#[apply(cluster_test)]
async fn what_others_write_into_the_status_is_put_right() -> Result<()> {
    let (cluster, scope) = web("meddle").await?;
    // A Service without a class would be the other's from then on: tests/ownership.rs.
    let class = || scope.service("web").class("highwire.dev/node");
    for wrong in [json!([{"ip": "203.0.113.200"}]), json!(null)] {
        let service = class().load_balancer().select("app", "web");
        let service = service.tcp(scope.free_port()?, 8080).create().await?;
        ingress_is(&service, &BOTH).await;
        let patch = json!({"status": {"loadBalancer": {"ingress": wrong}}}).to_string();
        cluster.kubectl(&[
            "patch",
            "service",
            "web",
            "-n",
            scope.namespace(),
            "--subresource=status",
            "--type=merge",
            &format!("--patch={patch}"),
        ])?;
        ingress_is(&service, &BOTH).await;
        service.delete().await?;
    }
    Ok(())
}

#[apply(cluster_test)]
async fn a_bad_edit_gets_one_event_and_the_last_good_state_stays() -> Result<()> {
    let (cluster, scope) = web("badedit").await?;
    let (client, n1) = (cluster.outside(), cluster.node("n1")?);
    for (annotation, value, remedy) in [
        ("highwire.dev/node-selector", "pool in edge", "cannot read"),
        ("highwire.dev/address-type", "Public", "ExternalIP"),
    ] {
        let port = scope.free_port()?;
        let service = web_service(&scope, annotation.rsplit('/').next().unwrap_or("web"), port);
        let service = service.await?;
        ingress_is(&service, &BOTH).await;
        answers(&client, n1.v4(port)).await;
        let edit = json!({"metadata": {"annotations": {annotation: value}}});
        service.patch(edit).await?;
        let said = event(&scope, &service, "InvalidAnnotation").await;
        for expected in [annotation, value, remedy] {
            ensure!(said.contains(expected), "{expected} is missing: {said}");
        }
        let reply = client.http_get(n1.v4(port), AMPLE);
        ensure!(reply.is_ok(), "{reply:?}");
        ensure!(service.ingress_ips().await? == BOTH);
        // An Event that is sent again while it is there would not show.
        let field = format!("--field-selector=involvedObject.name={}", service.name());
        cluster.kubectl(&["delete", "events", "-n", scope.namespace(), &field])?;
        let again = json!({"metadata": {"labels": {"edited": "again"}}});
        service.patch(again).await?;
        let later = web_service(&scope, &format!("later-{port}"), scope.free_port()?).await?;
        ingress_is(&later, &BOTH).await; // so the controller has seen that
        let again = events(&scope, &service, "InvalidAnnotation")?;
        ensure!(again.is_empty(), "sent again: {again:?}");
    }
    Ok(())
}
