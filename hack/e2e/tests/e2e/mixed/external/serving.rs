//! What a Service gets on the box, and where the box sends its traffic.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use highwire_e2e::bed::external::load_balancer;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{
    LONG, SHORT, all_answer, answers, ingress_is, refuses, refuses_new_udp,
};
use highwire_e2e::reported::{bind_tcp, event};
use highwire_e2e::{Pod, Programs as _, Svc, wait_for};
use macro_rules_attribute::apply;
use serde_json::json;

use super::front::{Front, RETRIED};

const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

#[apply(cluster_test)]
async fn a_service_gets_the_boxs_address_and_its_ports_there() -> Result<()> {
    let front = Front::new("front").await?;
    let port = front.scope.free_port()?;
    let service = front.service("web").tcp(port, 8080).udp(port, 5353);
    let service = service.create().await?;
    front.has_address(&service).await;
    let ingress = serde_json::to_value(service.ingress().await?)?;
    let address = front.outside.v4().to_string();
    ensure!(
        ingress[0]["ip"] == address && ingress[0]["ipMode"] == "Proxy",
        "{ingress}"
    );
    let mut ports = ingress[0]["ports"].as_array().cloned().unwrap_or_default();
    ports.sort_by_key(|it| it["protocol"].to_string());
    let of = |protocol| json!({ "port": port, "protocol": protocol });
    ensure!(ports == [of("TCP"), of("UDP")], "{ingress}");

    // Where a kube-proxy was late, nginx sends nothing to its node for 10 s.
    let (client, to) = (front.cluster.outside(), front.outside.at(port));
    let pods = ["web-1", "web-2"];
    all_answer(&pods, || client.http_get(to, SHORT)).await;
    all_answer(&pods, || client.udp_ask(to, SHORT)).await;

    wait_for("its LoadBalancer", LONG, || async {
        let shown = load_balancer(&front.cluster, &service).await?;
        ensure!(
            shown["spec"]["externalLoadBalancer"] == front.balancer.name()
                && shown["status"]["addresses"] == json!([address]),
            "{shown}"
        );
        Ok(())
    })
    .await;
    let namespace = front.scope.namespace();
    let table = front.cluster.kubectl(&["get", "lb", "-n", namespace])?;
    let row = table.lines().find(|line| line.starts_with("web "));
    let row = row.with_context(|| table.clone())?;
    let (tcp, udp) = (format!("{port}/TCP"), format!("{port}/UDP"));
    for words in [&address, &tcp, &udp] {
        ensure!(row.contains(words.as_str()), "{table}");
    }

    service.delete().await?;
    refuses(&client, to).await;
    refuses_new_udp(&client, to).await;
    front.has_backends(&[]).await;
    // The garbage collector discovers new kinds of objects every 30 s.
    wait_for("the LoadBalancer to be gone", LONG * 3, || async {
        load_balancer(&front.cluster, &service).await.is_err()
    })
    .await;
    front.was_asked_well()
}

#[apply(cluster_test)]
async fn a_node_that_is_not_ready_or_excluded_gets_no_traffic() -> Result<()> {
    let front = Front::alone("xnod").await?;
    let port = front.scope.free_port()?;
    let service = front.served("web", port).await?;
    front.sends_to(&service, port, &["n1", "n2"]).await?;

    set_ready(&front, "n1", "False")?;
    front.sends_to(&service, port, &["n2"]).await?;
    set_ready(&front, "n1", "True")?;
    front.sends_to(&service, port, &["n1", "n2"]).await?;

    front.cluster.label_node("n2", EXCLUDE, Some("")).await?;
    front.sends_to(&service, port, &["n1"]).await?;
    // What was taken away from it, nginx has let go.
    let (client, to) = (front.cluster.outside(), front.outside.at(port));
    answers(&client, to).await;
    front.cluster.label_node("n2", EXCLUDE, None).await?;
    front.sends_to(&service, port, &["n1", "n2"]).await?;
    front.has_address(&service).await;
    Ok(())
}

/// As the kubelet would report it.
fn set_ready(front: &Front, node: &str, status: &str) -> Result<()> {
    let conditions = json!([{ "type": "Ready", "status": status, "reason": "Test" }]);
    let patch = json!({ "status": { "conditions": conditions } });
    let patch = format!("--patch={patch}");
    let arguments = [
        "patch",
        "node",
        node,
        "--subresource=status",
        "--type=merge",
        &patch,
    ];
    front.cluster.kubectl(&arguments).map(drop)
}

#[apply(cluster_test)]
async fn with_local_only_nodes_with_a_ready_pod_get_traffic() -> Result<()> {
    let front = Front::new("xlocal").await?;
    let port = front.scope.free_port()?;
    let service = front.service("web").external_local().tcp(port, 8080);
    let service = service.create().await?;
    front.has_address(&service).await;
    front.sends_to(&service, port, &["n1", "n2"]).await?;
    let (client, to) = (front.cluster.outside(), front.outside.at(port));
    let reply = answers(&client, to).await;
    ensure!(reply.client.ip() == front.outside.v4(), "{reply:?}");

    let pod = |name| Pod::find(&front.cluster, front.scope.namespace(), name);
    let (one, two) = (pod("web-1")?, pod("web-2")?);
    two.set_ready(&front.cluster, false).await?;
    front.sends_to(&service, port, &["n1"]).await?;
    front.has_address(&service).await;

    one.set_ready(&front.cluster, false).await?;
    ingress_is(&service, &[]).await;
    front.has_backends(&[]).await;
    refuses(&client, to).await;

    two.set_ready(&front.cluster, true).await?;
    front.has_address(&service).await;
    front.sends_to(&service, port, &["n2"]).await?;
    ensure!(answers(&client, to).await.pod == "web-2");
    Ok(())
}

#[apply(cluster_test)]
async fn ports_of_a_range_are_given_and_named() -> Result<()> {
    let range = json!({ "type": "Range", "range": { "low": 40_000, "high": 40_001 } });
    let front = Front::with("range", json!({ "ports": range })).await?;
    let service = front.service("web").tcp(80, 8080).tcp(443, 8080);
    let service = service.create().await?;
    front.has_address(&service).await;
    let ports = box_ports(&front, &service, 2).await;
    ensure!(ports == BTreeSet::from([40_000, 40_001]), "{ports:?}");
    let said = event(&front.scope, &service, "LoadBalancerUpdated").await;
    let client = front.cluster.outside();
    for port in ports {
        ensure!(said.contains(&port.to_string()), "{said}");
        answers(&client, front.outside.at(port)).await;
    }

    let second = front.service("second").tcp(80, 8080).create().await?;
    event(&front.scope, &second, "RangeExhausted").await;
    ingress_is(&second, &[]).await;
    // It inherits when there is room.
    service.delete().await?;
    front.has_address(&second).await;
    let ports = box_ports(&front, &second, 1).await;
    ensure!(ports == BTreeSet::from([40_000]), "{ports:?}");
    answers(&client, front.outside.at(40_000)).await;
    front.was_asked_well()
}

/// Waits until the Service has so many ports on the box; their numbers there.
async fn box_ports(front: &Front, service: &Svc, count: usize) -> BTreeSet<u16> {
    wait_for(&format!("{count} ports on the box"), LONG, || async {
        let shown = load_balancer(&front.cluster, service).await?;
        let ports = shown["spec"]["ports"].as_array().into_iter().flatten();
        let numbers = ports.map(|it| it["boxPort"].as_u64().context("no boxPort"));
        let numbers = numbers.map(|it| Ok(u16::try_from(it?)?));
        let numbers: BTreeSet<u16> = numbers.collect::<Result<_>>()?;
        ensure!(numbers.len() == count, "{shown}");
        Ok(numbers)
    })
    .await
}

#[apply(cluster_test)]
async fn a_node_whose_agent_falls_silent_gets_no_traffic_until_it_speaks() -> Result<()> {
    let front = Front::alone("silence").await?;
    let port = front.scope.free_port()?;
    let service = front.served("web", port).await?;
    front.sends_to(&service, port, &["n1", "n2"]).await?;
    let agent = front.cluster.agent("n2")?;
    // The Lease of 12 s may get as long again, if no other renewal is seen meanwhile.
    agent.kill()?;
    front.sends_within(RETRIED, &service, port, &["n1"]).await?;
    front.has_address(&service).await;
    agent.unit().start_again()?;
    front.sends_to(&service, port, &["n1", "n2"]).await
}

#[apply(cluster_test)]
async fn without_node_ports_traffic_goes_to_the_nodes_own_ports() -> Result<()> {
    let front = Front::new("own").await?;
    let port = front.scope.free_port()?;
    let service = front.service("web").tcp(port, 8080);
    let service = service.spec("allocateLoadBalancerNodePorts", json!(false));
    let service = service.create().await?;
    front.has_address(&service).await;
    // n3 has not opted in, so nothing answers there.
    let nodes = ["n1", "n2"].map(|node| Ok(front.cluster.node(node)?.v4(port)));
    let nodes: BTreeSet<_> = nodes.into_iter().collect::<Result<_>>()?;
    let backend = front.backend(&service, port, "tcp");
    wait_for(&format!("{backend} to go to {nodes:?}"), LONG, || async {
        match front.outside.upstreams(&backend) {
            Some(found) if found == nodes => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let client = front.cluster.outside();
    let to = front.outside.at(port);
    all_answer(&["web-1", "web-2"], || client.http_get(to, SHORT)).await;

    // What listens on a node keeps its port there, and the other node goes on.
    let listener = bind_tcp(front.cluster.node("n1")?.netns(), "0.0.0.0", port)?;
    let rest = BTreeSet::from([front.cluster.node("n2")?.v4(port)]);
    wait_for("the node to leave", RETRIED, || async {
        match front.outside.upstreams(&backend) {
            Some(found) if found == rest => Ok(()),
            other => Err(other),
        }
    })
    .await;
    answers(&client, to).await;
    drop(listener);
    service.delete().await?;
    front.has_backends(&[]).await;
    Ok(())
}
