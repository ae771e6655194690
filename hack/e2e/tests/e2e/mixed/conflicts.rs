//! Port collisions of Services: who gets a port, and the Event on the other Service.
//!
//! Addresses: nodes 192.0.2.11 (n1) and .12 (n2) serve, the client is outside.

use anyhow::{Context, Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{BOTH, LONG, SHORT, answers, ingress_is, web, web_service};
use highwire_e2e::reported::{bind_tcp, described, event, events, ports_error, ports_error_names};
use highwire_e2e::{ConnectError, wait_for};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams,
};
use macro_rules_attribute::apply;
use serde_json::{Value, json};

const N1: [&str; 1] = ["192.0.2.11"];
const N2: [&str; 1] = ["192.0.2.12"];

#[apply(cluster_test)]
async fn of_two_services_the_older_serves_and_the_younger_inherits() -> Result<()> {
    let (cluster, scope) = web("twins").await?;
    let port = scope.free_port()?;
    let older = web_service(&scope, "older", port).await?;
    ingress_is(&older, &BOTH).await;
    let younger = web_service(&scope, "younger", port).await?;
    let note = event(&scope, &younger, "PortConflict").await;
    let holder = format!("Service {}/older", scope.namespace());
    ensure!(
        note.contains(&holder) && note.contains(&port.to_string()),
        "{note}"
    );
    ports_error_names(&younger, &[&holder, "n1", "n2"]).await;
    ensure!(younger.ingress().await?.is_empty());
    ensure!(described(&cluster, "n1")?.contains(&holder));
    let log = cluster.agent("n1")?.unit().log();
    let loser = format!("service={}/younger ", scope.namespace());
    let lines = log
        .lines()
        .filter(|line| line.contains("port refused") && line.contains(&loser));
    ensure!(lines.count() == 1, "the agent says it once: {log}");
    for reason in ["PortConflict", "PortConflictResolved"] {
        ensure!(
            events(&scope, &older, reason)?.is_empty(),
            "no Event on the winner"
        );
    }
    older.delete().await?;
    ingress_is(&younger, &BOTH).await;
    answers(&cluster.outside(), cluster.node("n1")?.v4(port)).await;
    event(&scope, &younger, "PortConflictResolved").await;
    ports_error(&younger, "False").await;
    ensure!(
        events(&scope, &younger, "PortConflict")?.len() == 1,
        "one event, however many nodes"
    );
    // Who gives up is not left with a condition that is no longer true.
    let youngest = web_service(&scope, "youngest", port).await?;
    ports_error(&youngest, "True").await;
    youngest
        .patch(json!({"spec": {"type": "ClusterIP"}}))
        .await?;
    ports_error(&youngest, "False").await;
    Ok(())
}

#[apply(cluster_test)]
async fn a_live_port_is_not_stolen_by_an_older_service() -> Result<()> {
    let (cluster, scope) = web("steal").await?;
    let (port, elsewhere) = (scope.free_port()?, scope.free_port()?);
    let older = web_service(&scope, "older", elsewhere).await?;
    ingress_is(&older, &BOTH).await;
    let younger = web_service(&scope, "younger", port).await?;
    ingress_is(&younger, &BOTH).await;
    let version = younger.get().await?.metadata.resource_version;
    older
        .patch(json!({"spec": {"ports": [{"port": port, "targetPort": 8080}]}}))
        .await?;
    let condition = ports_error(&older, "True").await;
    ensure!(condition.contains("/younger"), "{condition}");
    ingress_is(&older, &[]).await;
    answers(&cluster.outside(), cluster.node("n1")?.v4(port)).await;
    ensure!(
        younger.get().await?.metadata.resource_version == version,
        "nothing moves"
    );
    Ok(())
}

#[apply(cluster_test)]
async fn one_number_serves_tcp_and_udp_and_disjoint_nodes() -> Result<()> {
    let (cluster, scope) = web("share").await?;
    let (number, pooled) = (scope.free_port()?, scope.free_port()?);
    let tcp = web_service(&scope, "tcp", number).await?;
    let udp = scope
        .service("udp")
        .load_balancer()
        .select("app", "web")
        .udp(number, 5353);
    let udp = udp.create().await?;
    let on = |node: &str| {
        let service = scope
            .service(node)
            .load_balancer()
            .select("app", "web")
            .tcp(pooled, 8080);
        let selector = format!("kubernetes.io/hostname={node}");
        service
            .annotation("highwire.dev/node-selector", &selector)
            .create()
    };
    let (on_n1, on_n2) = (on("n1").await?, on("n2").await?);
    for (service, addresses) in [
        (&tcp, &BOTH[..]),
        (&udp, &BOTH),
        (&on_n1, &N1),
        (&on_n2, &N2),
    ] {
        ingress_is(service, addresses).await;
    }
    let client = cluster.outside();
    for node in ["n1", "n2"] {
        let node = cluster.node(node)?;
        answers(&client, node.v4(number)).await;
        answers(&client, node.v4(pooled)).await;
        wait_for("UDP", LONG, || async {
            client.udp_ask(node.v4(number), SHORT)
        })
        .await;
    }
    Ok(())
}

#[apply(cluster_test)]
async fn node_ports_and_external_ips_are_refused_with_the_right_words() -> Result<()> {
    let (cluster, scope) = web("nodeport").await?;
    let plain = scope
        .service("plain")
        .node_port()
        .select("app", "web")
        .tcp(80, 8080);
    let plain = plain.create().await?;
    let node_port = plain.node_port(80)?;
    let loser = web_service(&scope, "loser", node_port).await?;
    let condition = ports_error(&loser, "True").await;
    let holder = format!("Service {}/plain nodePort", scope.namespace());
    ensure!(condition.contains(&holder), "{condition}");
    ensure!(loser.ingress().await?.is_empty());

    let port = scope.free_port()?;
    let external = scope
        .service("external")
        .select("app", "web")
        .tcp(port, 8080);
    external
        .spec("externalIPs", json!(["192.0.2.11"]))
        .create()
        .await?;
    let other = web_service(&scope, "other", port).await?;
    ingress_is(&other, &N2).await;
    let condition = ports_error(&other, "True").await;
    let holder = format!(
        "Service {}/external externalIP 192.0.2.11",
        scope.namespace()
    );
    ensure!(condition.contains(&holder), "{condition}");
    // It is kube-proxy that answers there.
    if cluster.config().proxy_modes.has_any() {
        answers(&cluster.outside(), cluster.node("n1")?.v4(port)).await;
    }
    Ok(())
}

#[apply(cluster_test)]
async fn explain_shows_every_claimed_port() -> Result<()> {
    let (cluster, scope) = web("explain").await?;
    let (free, taken) = (scope.free_port()?, scope.free_port()?);
    let n1 = cluster.node("n1")?;
    let _listener = bind_tcp(n1.netns(), "0.0.0.0", taken)?;
    ingress_is(&web_service(&scope, "served", free).await?, &BOTH).await;
    ingress_is(&web_service(&scope, "refused", taken).await?, &N2).await;
    let agent = cluster.agent("n1")?;
    let table = agent.explain(&[])?;
    let row = |name: &str| {
        let key = format!("{}/{name} ", scope.namespace());
        table
            .lines()
            .find(|line| line.contains(&key))
            .map(str::to_owned)
            .context(table.clone())
    };
    let served = row("served")?;
    ensure!(
        served.starts_with(&format!("{free}/TCP")) && served.contains(" served "),
        "{table}"
    );
    ensure!(served.contains(" as wanted "), "the kernel has it: {table}");
    // To the ClusterIP, or, without a kube-proxy, to the Pods.
    let leads_to = match cluster.config().proxy_modes.has_any() {
        true => free,
        false => 8080,
    };
    ensure!(
        served.contains(&format!(":{leads_to}")),
        "where it goes: {table}"
    );
    let refused = row("refused")?;
    ensure!(
        refused.contains(" refused ") && refused.contains("HostListener"),
        "{table}"
    );
    ensure!(
        refused.contains(&format!("socket 0.0.0.0:{taken} uid 0")),
        "{table}"
    );
    let json: Value = serde_json::from_str(&agent.explain(&["-o", "json"])?)?;
    ensure!(json["node"] == "n1" && json["ready"] == true, "{json}");
    ensure!(json["table"]["state"] == "asWanted", "{json}");
    let rows = json["ports"].as_array().context("no ports")?;
    let key = format!("{}/refused", scope.namespace());
    let refused = rows.iter().find(|row| row["service"] == key.as_str());
    ensure!(
        refused.is_some_and(|row| row["reason"] == "HostListener"),
        "{json}"
    );
    Ok(())
}

#[apply(cluster_test)]
async fn bad_input_harms_no_other() -> Result<()> {
    let (cluster, scope) = web("bad").await?;
    let (bad, good) = (scope.free_port()?, scope.free_port()?);
    let broken = scope
        .service("broken")
        .load_balancer()
        .select("app", "web")
        .tcp(bad, 8080);
    let broken = broken
        .annotation("highwire.dev/address-type", "Public")
        .create()
        .await?;
    ingress_is(&web_service(&scope, "good", good).await?, &BOTH).await;
    let note = event(&scope, &broken, "InvalidAnnotation").await;
    ensure!(
        note.contains("Public") && note.contains("ExternalIP"),
        "{note}"
    );
    let outcome = cluster
        .outside()
        .http_get(cluster.node("n1")?.v4(bad), SHORT);
    ensure!(outcome == Err(ConnectError::Refused), "{outcome:?}");
    // A fix is all it takes.
    let fixed = json!({"metadata": {"annotations": {"highwire.dev/address-type": "InternalIP"}}});
    broken.patch(fixed).await?;
    ingress_is(&broken, &BOTH).await;
    Ok(())
}

#[apply(cluster_test)]
async fn the_largest_report_is_accepted_and_so_are_words_of_a_newer_agent() -> Result<()> {
    let (cluster, scope) = web("large").await?;
    let name = format!("{}-node", scope.namespace());
    let service = |number: usize| format!("{}/{number:0>253}", "n".repeat(63));
    let conflicts = (0..1000).map(|number| {
        json!({"service": service(number), "protocol": "TCP", "port": 65535,
               "reason": "R".repeat(64), "heldBy": "h".repeat(512)})
    });
    // 400,000 bytes of names, as many as the agent may write.
    let refused = (1000..1000 + 400_000 / 320).map(service);
    let status = json!({
        "proxyMode": "future",
        "conflictCount": 100_000,
        "conflicts": conflicts.collect::<Vec<_>>(),
        "refused": refused.collect::<Vec<_>>(),
    });
    let resource = ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("highwire.dev", "v1alpha1", "LoadBalancerNode"),
        "loadbalancernodes",
    );
    let nodes = Api::<DynamicObject>::all_with(cluster.client(), &resource);
    let node = DynamicObject::new(&name, &resource).data(json!({"spec": {}}));
    nodes.create(&PostParams::default(), &node).await?;
    let patch = Patch::Merge(json!({ "status": status }));
    let written = nodes
        .patch_status(&name, &PatchParams::default(), &patch)
        .await;
    nodes.delete(&name, &DeleteParams::default()).await?;
    let written = written?;
    for field in ["proxyMode", "conflictCount", "conflicts", "refused"] {
        let kept = written.data["status"][field] == status[field];
        ensure!(kept, "{field} was changed");
    }
    Ok(())
}

#[apply(cluster_test)]
async fn a_report_that_another_program_has_changed_is_written_too() -> Result<()> {
    let (cluster, scope) = web("touched").await?;
    for count in 1..=3 {
        let name = format!("web-{count}");
        let service = web_service(&scope, &name, scope.free_port()?).await?;
        ingress_is(&service, &BOTH).await;
        // The agent's next write names another version than this makes.
        let touched = format!("example.org/touched={count}");
        for node in ["n1", "n2"] {
            cluster.kubectl(&["annotate", "--overwrite", "lbn", node, &touched])?;
        }
    }
    Ok(())
}
