//! A box that runs `highwire-agent edge`: real packets through the rules of its kernel.

use anyhow::{Context, Result, ensure};
use highwire_e2e::bed::edge::EdgeAgent;
use highwire_e2e::bed::external::{ExternalLoadBalancer, load_balancer};
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{
    AMPLE, LONG, SHORT, all_answer, answers, ingress_is, refuses, refuses_new_udp, web_pods,
};
use highwire_e2e::reported::{bind_tcp, event, greeted};
use highwire_e2e::{Cluster, OutsideBox, Scope, Svc, highwire, wait_for};
use macro_rules_attribute::apply;
use serde_json::{Value, json};

use super::front::{ANNOTATION, CLASS, not_serving};

const NFT: &str = "nft";

/// A scope with the Pods web-1 on n1 and web-2 on n2, a box, its object and its agent.
struct Edge {
    scope: Scope,
    balancer: ExternalLoadBalancer,
    agent: EdgeAgent,
    outside: OutsideBox,
    cluster: Cluster,
}

impl Edge {
    async fn new(prefix: &str, flags: &[&str]) -> Result<Self> {
        let cluster = Cluster::attach().await?;
        let scope = Scope::new(&cluster, prefix).await?;
        highwire::require(&cluster)?;
        web_pods(&scope).await?;
        let outside = OutsideBox::start(&cluster).await?;
        let spec = json!({ "addresses": [outside.v4(), outside.v6()], "edge": {} });
        let balancer = ExternalLoadBalancer::create(&cluster, scope.namespace(), spec).await?;
        let agent = EdgeAgent::start(&cluster, &outside, balancer.name(), flags).await?;
        Ok(Self {
            scope,
            balancer,
            agent,
            outside,
            cluster,
        })
    }

    /// A dual-stack Service on `port` of the box by TCP and UDP, with these fields of its spec.
    async fn service(
        &self,
        name: &str,
        port: u16,
        fields: &[(&'static str, Value)],
    ) -> Result<Svc> {
        let service = self.scope.service(name).load_balancer().class(CLASS);
        let service = service.annotation(ANNOTATION, self.balancer.name());
        let service = service.select("app", "web").dual_stack();
        let service = service.tcp(port, 8080).udp(port, 5353);
        let service = fields
            .iter()
            .cloned()
            .fold(service, |service, (field, value)| {
                service.spec(field, value)
            });
        service.create().await
    }

    async fn has_address(&self, service: &Svc) {
        let addresses = [self.outside.v4(), self.outside.v6()].map(|it| it.to_string());
        ingress_is(service, &[&addresses[0], &addresses[1]]).await;
    }

    /// The condition `Ready` of its ExternalLoadBalancer has this reason.
    async fn says(&self, reason: &str) {
        wait_for(&format!("Ready to say {reason}"), LONG, || async {
            let object = self.balancer.get().await?;
            let conditions = object["status"]["conditions"].as_array().cloned();
            let mut conditions = conditions.unwrap_or_default().into_iter();
            let ready = conditions
                .find(|it| it["type"] == "Ready")
                .context("none yet")?;
            ensure!(ready["reason"] == reason, "{ready}");
            Ok(())
        })
        .await;
    }
}

#[apply(cluster_test)]
async fn the_box_serves_both_protocols_and_families_without_a_proxy() -> Result<()> {
    let edge = Edge::new("edge", &[]).await?;
    let port = edge.scope.free_port()?;
    let service = edge.service("web", port, &[]).await?;
    edge.has_address(&service).await;
    let client = edge.cluster.outside();
    let pods = ["web-1", "web-2"];
    for to in [edge.outside.at(port), (edge.outside.v6(), port).into()] {
        all_answer(&pods, || client.http_get(to, SHORT)).await;
        all_answer(&pods, || client.udp_ask(to, SHORT)).await;
    }
    edge.says("Connected").await;
    let shown = load_balancer(&edge.cluster, &service).await?;
    ensure!(shown["status"]["targets"].as_u64() > Some(2), "{shown}");
    let explained = edge.agent.explain(&[])?;
    let place = format!("ExternalLoadBalancer {}: ready", edge.balancer.name());
    ensure!(explained.starts_with(&place), "{explained}");
    let key = format!(
        "{port}/UDP  {}/web  served  as wanted  ",
        edge.scope.namespace()
    );
    ensure!(
        explained.lines().any(|line| line.starts_with(&key)),
        "{explained}"
    );

    service.delete().await?;
    refuses(&client, edge.outside.at(port)).await;
    refuses_new_udp(&client, edge.outside.at(port)).await;
    Ok(())
}

#[apply(cluster_test)]
async fn source_ranges_and_affinity_are_kept_and_a_connection_outlives_its_target() -> Result<()> {
    let edge = Edge::new("ranges", &[]).await?;
    let (port, other) = (edge.scope.free_port()?, edge.scope.free_port()?);
    let affinity = ("sessionAffinity", json!("ClientIP"));
    let sticky = edge.service("sticky", port, &[affinity]).await?;
    let nobody = ("loadBalancerSourceRanges", json!(["192.0.2.77/32"]));
    let closed = edge.service("closed", other, &[nobody]).await?;
    edge.has_address(&sticky).await;
    edge.has_address(&closed).await;
    let (client, to) = (edge.cluster.outside(), edge.outside.at(port));
    let pod = answers(&client, to).await.pod;
    for _ in 0..20 {
        // The same node, by the client's address, so the same Pod by kube-proxy's affinity.
        let again = client.http_get(to, AMPLE)?;
        ensure!(again.pod == pod, "{pod}, then {again:?}");
    }
    let denied = client.http_get(edge.outside.at(other), SHORT);
    ensure!(denied.is_err(), "{denied:?}");
    closed
        .patch(json!({ "spec": { "loadBalancerSourceRanges": null } }))
        .await?;
    answers(&client, edge.outside.at(other)).await;
    Ok(())
}

#[apply(cluster_test)]
async fn connections_outlive_a_change_of_targets_and_udp_flows_follow_it() -> Result<()> {
    let edge = Edge::new("flows", &[]).await?;
    let port = edge.scope.free_port()?;
    let service = edge.service("web", port, &[]).await?;
    edge.has_address(&service).await;
    let (client, to) = (edge.cluster.outside(), edge.outside.at(port));
    answers(&client, to).await;
    // One node's kube-proxy may be later than another's.
    let mut stream = wait_for("a connection", LONG, || async {
        client.tcp_connect(to, SHORT)
    })
    .await;
    stream.say("before")?;
    let mut flow = client.udp_flow(to)?;
    wait_for("an answer to the flow", LONG, || {
        let answer = flow.ask(SHORT);
        async move { answer }
    })
    .await;
    // Each node in turn is the only target: one of the two was another's.
    for node in ["n1", "n2"] {
        let selector = format!("kubernetes.io/hostname in ({node})");
        let annotation = json!({ "highwire.dev/node-selector": selector });
        service
            .patch(json!({ "metadata": { "annotations": annotation } }))
            .await?;
        let target = edge.cluster.node(node)?.v4(service.node_port(port)?);
        let sends_to = format!(
            "conntrack -L -p udp --dport {port} --reply-src {}",
            target.ip()
        );
        wait_for(&format!("the flow to go to {node}"), LONG, || {
            flow.ask(SHORT).ok();
            let found = edge.outside.netns().check(&["sh", "-c", &sends_to]);
            async move {
                let found = found?;
                ensure!(found.contains(&format!("dport={port}")), "{found}");
                Ok(())
            }
        })
        .await;
        stream.say("still")?;
    }
    Ok(())
}

#[apply(cluster_test)]
async fn what_listens_on_the_box_keeps_its_port_there() -> Result<()> {
    let edge = Edge::new("taken", &[]).await?;
    let port = edge.scope.free_port()?;
    let listener = bind_tcp(edge.outside.netns(), "0.0.0.0", port)?;
    let service = edge.service("web", port, &[]).await?;
    let reason = not_serving(&service, &["on the box", "is held by socket 0.0.0.0"]).await;
    ensure!(reason == "PortConflict", "{reason}");
    let said = event(&edge.scope, &service, "PortConflict").await;
    ensure!(said.contains(&format!("{port}/TCP")), "{said}");
    let (client, to) = (edge.cluster.outside(), edge.outside.at(port));
    greeted(&listener, &client, to)?;
    drop(listener);
    edge.has_address(&service).await;
    answers(&client, to).await;

    // One that comes later gets the next connection, and the Service goes.
    let listener = bind_tcp(edge.outside.netns(), "0.0.0.0", port)?;
    greeted(&listener, &client, to)?;
    ingress_is(&service, &[]).await;
    Ok(())
}

#[apply(cluster_test)]
async fn rules_outlive_their_agent_and_are_put_back() -> Result<()> {
    let edge = Edge::new("silent", &[]).await?;
    let port = edge.scope.free_port()?;
    let service = edge.service("web", port, &[]).await?;
    edge.has_address(&service).await;
    let (client, to) = (edge.cluster.outside(), edge.outside.at(port));
    answers(&client, to).await;

    edge.agent.unit().kill()?;
    edge.says("EdgeSilent").await;
    answers(&client, to).await;
    edge.has_address(&service).await;
    // What changes meanwhile is done once it is back, and not before.
    let later = edge.scope.free_port()?;
    let second = edge.service("second", later, &[]).await?;
    let reason = not_serving(&second, &["does it run?"]).await;
    ensure!(reason == "Waiting", "{reason}");
    edge.agent.start_again().await?;
    edge.says("Connected").await;
    edge.has_address(&second).await;
    answers(&client, edge.outside.at(later)).await;

    edge.outside.netns().check(&[NFT, "flush", "ruleset"])?;
    answers(&client, to).await;
    Ok(())
}
