//! Which Pods get connections, and how many.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{
    ALL, AMPLE, BOTH, LONG, SHORT, all_answer, answers, at_both_addresses, ingress_is, refuses,
    refuses_new_udp,
};
use highwire_e2e::{Scope, wait_for};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::PostParams;
use macro_rules_attribute::apply;
use serde_json::json;

use super::{bed, client_pods, only, shares, web_pod};

#[apply(cluster_test)]
async fn ready_pods_get_about_equal_shares() -> Result<()> {
    let (cluster, scope) = bed("shares").await?;
    let pods = ["web-1", "web-2", "web-3", "web-4", "web-5"];
    for (pod, node) in pods.iter().zip(["n1", "n1", "n2", "n3", "n3"]) {
        web_pod(&scope, pod, node).await?;
    }
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer().dual_stack();
    let service = service.tcp(port, 8080).udp(port, 5353).create().await?;
    ingress_is(&service, &ALL).await;
    let client = cluster.outside();
    for to in at_both_addresses(&cluster, "n1", port)? {
        all_answer(&pods, || client.http_get(to, SHORT)).await;
        all_answer(&pods, || client.udp_ask(to, SHORT)).await;
        let seen = shares(&client, to, 600, AMPLE)?;
        // 120 are expected, and 10 more or less are usual.
        let about = 70..=170;
        ensure!(
            seen.len() == pods.len() && seen.values().all(|share| about.contains(share)),
            "{to}: {seen:?}"
        );
    }
    Ok(())
}

#[apply(cluster_test)]
async fn an_unready_pod_keeps_its_connections_and_gets_no_new_ones() -> Result<()> {
    let (cluster, scope) = bed("unready").await?;
    let leaving = web_pod(&scope, "web-1", "n1").await?;
    web_pod(&scope, "web-2", "n2").await?;
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer().dual_stack();
    let service = service.tcp(port, 8080).create().await?;
    ingress_is(&service, &ALL).await;
    let client = cluster.outside();
    let mut streams = Vec::new();
    for to in at_both_addresses(&cluster, "n2", port)? {
        all_answer(&["web-1", "web-2"], || client.http_get(to, SHORT)).await;
        for _ in 0..10 {
            let mut stream = client.tcp_connect(to, AMPLE)?;
            streams.push((stream.say("before")?, stream));
        }
    }
    let led_to_it = streams.iter().filter(|(pod, _)| pod == "web-1");
    ensure!(led_to_it.count() > 0, "none of 20 connections leads to it");
    leaving.set_ready(&cluster, false).await?;
    for to in at_both_addresses(&cluster, "n2", port)? {
        only(&client, to, &["web-2"]).await;
    }
    for (pod, stream) in &mut streams {
        ensure!(stream.say("after")? == *pod, "a connection left {pod}");
    }
    leaving.set_ready(&cluster, true).await?;
    for to in at_both_addresses(&cluster, "n2", port)? {
        all_answer(&["web-1", "web-2"], || client.http_get(to, SHORT)).await;
    }
    Ok(())
}

/// KEP-1669.
#[apply(cluster_test)]
async fn a_terminating_pod_gets_connections_while_none_is_ready() -> Result<()> {
    let (cluster, scope) = bed("ending").await?;
    let ending = web_pod(&scope, "web-1", "n1").await?;
    let other = web_pod(&scope, "web-2", "n2").await?;
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer();
    let service = service.tcp(port, 8080).udp(port, 5353).create().await?;
    ingress_is(&service, &BOTH).await;
    let (client, to) = (cluster.outside(), cluster.node("n2")?.v4(port));
    all_answer(&["web-1", "web-2"], || client.http_get(to, SHORT)).await;
    ending.terminate(&cluster).await?;
    only(&client, to, &["web-2"]).await;
    other.set_ready(&cluster, false).await?;
    // web-2 is not ready and stays, web-1 still serves though it ends.
    only(&client, to, &["web-1"]).await;
    all_answer(&["web-1"], || client.udp_ask(to, SHORT)).await;
    // It does not serve any more.
    ending.set_ready(&cluster, false).await?;
    refuses(&client, to).await;
    refuses_new_udp(&client, to).await;
    other.set_ready(&cluster, true).await?;
    only(&client, to, &["web-2"]).await;
    Ok(())
}

#[apply(cluster_test)]
async fn a_port_name_leads_to_each_pods_own_number() -> Result<()> {
    let (cluster, scope) = bed("named").await?;
    let start = async |name: &str, node: &str, port: u16| {
        let pod = scope.pod(name).on(node).label("app", "web");
        pod.tcp(port).named(port, "http").start().await
    };
    start("web-1", "n1", 8081).await?;
    let second = start("web-2", "n2", 9090).await?;
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer();
    let service = service
        .spec("ports", json!([{ "port": port, "targetPort": "http" }]))
        .create()
        .await?;
    ingress_is(&service, &BOTH).await;
    let (client, to) = (cluster.outside(), cluster.node("n1")?.v4(port));
    all_answer(&["web-1", "web-2"], || client.http_get(to, SHORT)).await;
    // A third number, and the second is nobody's any more.
    start("web-3", "n3", 7070).await?;
    all_answer(&["web-1", "web-2", "web-3"], || client.http_get(to, SHORT)).await;
    second.delete_object(&cluster).await?;
    only(&client, to, &["web-1", "web-3"]).await;
    second.stop()
}

#[apply(cluster_test)]
async fn each_of_a_hundred_pods_gets_connections() -> Result<()> {
    const PODS: usize = 100;
    let (cluster, scope) = bed("hundred").await?;
    for batch in (0..PODS).collect::<Vec<_>>().chunks(10) {
        let starting = batch.iter().map(|number| {
            let pod = scope.pod(&format!("web-{number}"));
            let pod = pod.on(["n1", "n2", "n3"][number % 3]).label("app", "web");
            tokio::spawn(pod.tcp(8080).start())
        });
        for started in starting.collect::<Vec<_>>() {
            started.await??;
        }
    }
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer().tcp(port, 8080);
    ingress_is(&service.create().await?, &BOTH).await;
    let (client, to) = (cluster.outside(), cluster.node("n2")?.v4(port));
    answers(&client, to).await;
    // Endpoints may come in several steps.
    wait_for("every Pod to answer", LONG * 2, || async {
        let seen = shares(&client, to, 600, SHORT)?;
        // Of 600 for 100 Pods, one in four hundred Pods gets none by chance.
        ensure!(seen.len() > PODS - 6, "only {} answer", seen.len());
        Ok(())
    })
    .await;
    let seen = shares(&client, to, 3000, AMPLE)?;
    let (least, most) = (seen.values().min(), seen.values().max());
    println!("of 3,000 connections {least:?} to {most:?} for one of {PODS} Pods");
    // 30 are expected, and 5 more or less are usual.
    ensure!(
        seen.len() == PODS && least >= Some(&3) && most <= Some(&90),
        "{seen:?}"
    );
    Ok(())
}

/// An EndpointSlice of the Service `web`, written by hand.
async fn slice(scope: &Scope, name: &str, port: u16, addresses: &[String]) -> Result<()> {
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|address| json!({ "addresses": [address] }))
        .collect();
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": port, "protocol": "TCP" }],
        "endpoints": endpoints,
    }))?;
    let api: Api<EndpointSlice> = Api::namespaced(scope.cluster().client(), scope.namespace());
    let created = api.create(&PostParams::default(), &slice).await;
    created
        .map(drop)
        .with_context(|| format!("create EndpointSlice {name}"))
}

#[apply(cluster_test)]
async fn endpoints_written_by_hand_are_served() -> Result<()> {
    let (cluster, scope) = bed("byhand").await?;
    // Without conditions they are ready, and they are on no node.
    let mut addresses = Vec::new();
    for (pod, node) in [("hand-1", "n1"), ("hand-2", "n2")] {
        let pod = scope.pod(pod).on(node).tcp(8080).start().await?;
        addresses.push(pod.addresses()[0].to_string());
    }
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer();
    let service = service
        .spec("selector", json!(null))
        .spec("ports", json!([{ "name": "http", "port": port }]))
        .create()
        .await?;
    slice(&scope, "first", 8080, &addresses[..1]).await?;
    ingress_is(&service, &BOTH).await;
    let (client, to) = (cluster.outside(), cluster.node("n2")?.v4(port));
    answers(&client, to).await;
    only(&client, to, &["hand-1"]).await;
    // Another slice, which repeats an endpoint as slices do while they are rearranged.
    slice(&scope, "second", 8080, &addresses).await?;
    all_answer(&["hand-1", "hand-2"], || client.http_get(to, SHORT)).await;
    let api: Api<EndpointSlice> = Api::namespaced(cluster.client(), scope.namespace());
    api.delete("first", &Default::default()).await?;
    let seen = shares(&client, to, 100, AMPLE)?;
    ensure!(seen.len() == 2, "{seen:?}");
    api.delete("second", &Default::default()).await?;
    refuses(&client, to).await;
    Ok(())
}

/// By TCP and UDP, in both families, for clients of all kinds.
#[apply(cluster_test)]
async fn without_endpoints_everybody_is_refused_at_once() -> Result<()> {
    let (cluster, scope) = bed("nobody").await?;
    let mut clients = vec![cluster.outside()];
    for pod in client_pods(&scope).await? {
        clients.push(pod.netns());
        clients.push(cluster.node(pod.node())?.netns().clone());
    }
    for (name, policy) in [("cluster", "Cluster"), ("local", "Local")] {
        let port = scope.free_port()?;
        let service = scope.service(name).load_balancer().dual_stack();
        let service = service.spec("externalTrafficPolicy", json!(policy));
        let service = service.tcp(port, 8080).udp(port, 5353).create().await?;
        // With the policy Local no node is listed.
        if policy == "Cluster" {
            ingress_is(&service, &ALL).await;
        }
        let served: Vec<SocketAddr> = at_both_addresses(&cluster, "n1", port)?.to_vec();
        for to in served {
            for from in &clients {
                refuses(from, to).await;
                refuses_new_udp(from, to).await;
            }
        }
    }
    Ok(())
}
