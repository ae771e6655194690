//! From kube-proxy to none and back, and `--service-proxy=auto`. Each test on a cluster of
//! its own.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::expect::{
    AMPLE, BOTH, LONG, SHORT, Undo, all_answer, answers, ingress_is, refuses, web_pods, web_service,
};
use highwire_e2e::lifecycle::change_proxy_mode;
use highwire_e2e::{
    Clients, PrivateCluster, ProxyMode, ProxyModes, Scope, cluster_test, highwire, wait_for,
};
use macro_rules_attribute::apply;

use super::{reports, web_pod, with_service_proxy};

/// What Cilium makes on its nodes, and the agent recognises.
const CILIUM: &str = "link add cilium_host type veth peer name cilium_net\n\
                      link set cilium_host up\n\
                      link set cilium_net up";

#[apply(cluster_test)]
async fn kube_proxy_may_come_and_go_under_traffic() -> Result<()> {
    let up = |config: &mut highwire_e2e::Config| config.proxy_modes = ProxyModes::None;
    let cluster = PrivateCluster::up_with("swi", 2, up).await?;
    highwire::start(&cluster).await?;
    let scope = Scope::new(&cluster, "switch").await?;
    web_pods(&scope).await?;
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer().dual_stack();
    let service = service.tcp(port, 8080).udp(port, 5353).create().await?;
    let (client, n1) = (cluster.outside(), cluster.node("n1")?);
    let at_n1 = [n1.v4(port), n1.v6(port)];
    for to in at_n1 {
        all_answer(&["web-1", "web-2"], || client.http_get(to, SHORT)).await;
    }
    answers(&client, cluster.node("n2")?.v4(port)).await;
    let clients = Clients::start(&cluster, &[port])?;
    let (mut streams, mut flows) = (Vec::new(), Vec::new());
    let agent = cluster.agent("n1")?;
    for (mode, reported) in [
        (Some(ProxyMode::Nftables), "nftables"),
        (None, "none"),
        (Some(ProxyMode::Iptables), "iptables"),
        (None, "none"),
    ] {
        for to in at_n1 {
            for _ in 0..4 {
                let mut stream = client.tcp_connect(to, AMPLE)?;
                streams.push((stream.say("before")?, stream));
                let mut flow = client.udp_flow(to)?;
                flows.push((flow.ask(AMPLE)?.pod, flow));
            }
        }
        // The one that is to forward is there before the other goes.
        if let Some(mode) = mode {
            change_proxy_mode(&cluster, &n1, mode, None)?;
            answers(&client, n1.v4(service.node_port(port)?)).await;
        }
        let proxy = if mode.is_some() { "kube-proxy" } else { "none" };
        agent.stop()?;
        with_service_proxy(agent.clone(), proxy).start(&[]).await?;
        agent.wait_ready(highwire::READY).await?;
        reports(&cluster, "n1", reported).await;
        if mode.is_none() {
            cluster.unit("kube-proxy-n1").stop(LONG)?;
            // Else what it leaves would answer before the next one does, which removes it.
            for family in ["ip", "ip6"] {
                let table = ["nft", "add", "table", family, "kube-proxy"];
                n1.netns().check(&table)?;
                let table = ["nft", "delete", "table", family, "kube-proxy"];
                n1.netns().check(&table)?;
            }
        }
        for to in at_n1 {
            all_answer(&["web-1", "web-2"], || client.http_get(to, SHORT)).await;
            all_answer(&["web-1", "web-2"], || client.udp_ask(to, SHORT)).await;
        }
        for (pod, stream) in &mut streams {
            let now = stream.say(reported).context("an established connection")?;
            ensure!(now == *pod, "a connection moved from {pod} to {now}");
        }
        for (pod, flow) in &mut flows {
            let now = flow.ask(AMPLE).context("a flow")?.pod;
            ensure!(now == *pod, "a flow moved from {pod} to {now}");
        }
    }
    let made = clients.stop().await?;
    println!("{made:?} connections, none failed");
    Ok(())
}

#[apply(cluster_test)]
async fn of_itself_an_agent_does_without_kube_proxy_only_where_it_knows_another() -> Result<()> {
    let up = |config: &mut highwire_e2e::Config| config.proxy_modes = ProxyModes::None;
    let cluster = PrivateCluster::up_with("aut", 1, up).await?;
    highwire::apply(&cluster)?;
    cluster.opt_in("n1").await?;
    let agent = with_service_proxy(cluster.agent("n1")?, "auto");
    agent.start(&[]).await?;
    cluster.controller("c1")?.start(&[]).await?;
    let scope = Scope::new(&cluster, "auto").await?;
    scope
        .pod("web-1")
        .on("n1")
        .label("app", "web")
        .tcp(8080)
        .start()
        .await?;
    let port = scope.free_port()?;
    let service = web_service(&scope, "web", port).await?;
    let n1 = cluster.node("n1")?;
    wait_for("a report that kube-proxy is missing", LONG, || async {
        let report = cluster.kubectl(&["get", "lbn", "n1", "-oyaml"])?;
        ensure!(report.contains("reason: ServiceProxyMissing"), "{report}");
        Ok(())
    })
    .await;
    refuses(&cluster.outside(), n1.v4(port)).await;
    ensure!(service.ingress_ips().await?.is_empty());

    n1.netns().ip_batch(CILIUM)?;
    reports(&cluster, "n1", "none").await;
    answers(&cluster.outside(), n1.v4(port)).await;
    ingress_is(&service, &BOTH[..1]).await;
    Ok(())
}

#[apply(cluster_test)]
async fn a_kube_proxy_that_is_away_is_waited_for() -> Result<()> {
    let up = |config: &mut highwire_e2e::Config| config.proxy_modes = ProxyModes::Mixed;
    let cluster = PrivateCluster::up_with("awy", 2, up).await?;
    highwire::start(&cluster).await?;
    let scope = Scope::new(&cluster, "away").await?;
    web_pods(&scope).await?;
    let port = scope.free_port()?;
    ingress_is(&web_service(&scope, "web", port).await?, &BOTH).await;
    for (node, mode) in [("n1", "nftables"), ("n2", "iptables")] {
        let node = cluster.node(node)?;
        // Beside one, Cilium leaves Services to kube-proxy.
        let undo = "link del cilium_host".to_owned();
        let _cilium = Undo::after(node.netns(), CILIUM, undo)?;
        let proxy = cluster.unit(&format!("kube-proxy-{}", node.name));
        proxy.kill()?;
        // An agent that starts now has not met it.
        let agent = cluster.agent(&node.name)?;
        agent.restart()?;
        agent.wait_ready(highwire::READY).await?;
        reports(&cluster, &node.name, mode).await;
        answers(&cluster.outside(), node.v4(port)).await;
        let table = ["nft", "list", "table", "inet", "highwire"];
        let table = node.netns().check(&table)?;
        ensure!(table.contains("map clusterip4"), "{table}");
        proxy.start_again()?;
        answers(&cluster.outside(), node.v4(port)).await;
    }
    Ok(())
}

/// An interval in which kube-proxy may be missing for a restart or an upgrade.
const MINUTE: Duration = Duration::from_secs(60);

#[apply(cluster_test)]
async fn of_itself_an_agent_that_knew_a_kube_proxy_waits_a_minute_for_it() -> Result<()> {
    let up = |config: &mut highwire_e2e::Config| config.proxy_modes = ProxyModes::Mixed;
    let cluster = PrivateCluster::up_with("min", 1, up).await?;
    highwire::start(&cluster).await?;
    let scope = Scope::new(&cluster, "minute").await?;
    web_pod(&scope, "web-1", "n1").await?;
    let port = scope.free_port()?;
    let service = web_service(&scope, "web", port).await?;
    ingress_is(&service, &BOTH[..1]).await;
    let (client, n1) = (cluster.outside(), cluster.node("n1")?);
    reports(&cluster, "n1", "nftables").await;
    let mut stream = client.tcp_connect(n1.v4(port), AMPLE)?;
    stream.say("before")?;
    let undo = "link del cilium_host".to_owned();
    let _cilium = Undo::after(n1.netns(), CILIUM, undo)?;
    // It takes its traces with it, as when a DaemonSet of it is deleted and cleaned up after.
    cluster.unit("kube-proxy-n1").stop(LONG)?;
    for family in ["ip", "ip6"] {
        let table = ["nft", "delete", "table", family, "kube-proxy"];
        n1.netns().check(&table)?;
    }
    wait_for("a report that kube-proxy is missing", LONG, || async {
        let report = cluster.kubectl(&["get", "lbn", "n1", "-oyaml"])?;
        ensure!(report.contains("reason: ServiceProxyMissing"), "{report}");
        Ok(())
    })
    .await;
    refuses(&client, n1.v4(port)).await;
    wait_for("our own rules", MINUTE + LONG, || async {
        client.http_get(n1.v4(port), SHORT)
    })
    .await;
    reports(&cluster, "n1", "none").await;
    ingress_is(&service, &BOTH[..1]).await;
    stream.say("after")?;
    Ok(())
}
