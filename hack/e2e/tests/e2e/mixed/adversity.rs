//! Starting in the wrong order, an API server that goes away, and leaving.
//! Each on a cluster of its own.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{
    AMPLE, BOTH, LONG, answers, ingress_is, refuses, web_pods, web_service,
};
use highwire_e2e::{Netns, PrivateCluster, Scope, highwire, wait_for};
use macro_rules_attribute::apply;

fn has_table(netns: &Netns) -> Result<bool> {
    Ok(netns
        .check(&["nft", "list", "tables"])?
        .contains("inet highwire"))
}

#[apply(cluster_test)]
async fn an_agent_started_before_the_rest_waits_and_logs_what_is_missing() -> Result<()> {
    let cluster = PrivateCluster::up("ord", 1).await?;
    // The account alone, so that the agent has a token but no rights and no CRD.
    for file in ["deploy/00-namespace.yaml", "deploy/20-rbac-agent.yaml"] {
        cluster.kubectl(&["apply", "-f", file])?;
    }
    cluster.kubectl(&["delete", "clusterrolebinding,clusterrole", "highwire-agent"])?;
    cluster.opt_in("n1").await?;
    let agent = cluster.agent("n1")?;
    agent.start(&[]).await?;
    wait_for("a hint at the RBAC", LONG, || async {
        let log = agent.unit().log();
        if log.contains("was the RBAC of deploy/ applied?") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    let pid = agent.unit().pid();
    cluster.kubectl(&["apply", "-f", "deploy/20-rbac-agent.yaml"])?;
    wait_for("a hint at what else is missing", LONG, || async {
        let log = agent.unit().log();
        if log.contains("was all of deploy/ applied?") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    highwire::apply(&cluster)?;
    agent.wait_ready(LONG).await?;
    wait_for("the node to be reported", LONG, || async {
        cluster.kubectl(&["get", "lbn", "n1"])
    })
    .await;
    ensure!(
        agent.unit().pid() == pid,
        "it must not have died meanwhile:\n{}",
        agent.unit().log()
    );
    let repeated = agent
        .unit()
        .log()
        .matches("was the RBAC of deploy/ applied?")
        .count();
    ensure!(
        repeated < 12,
        "the same message again and again: {}",
        agent.unit().log()
    );
    Ok(())
}

#[apply(cluster_test)]
async fn a_node_goes_on_while_the_api_server_is_away() -> Result<()> {
    let cluster = PrivateCluster::up("away", 2).await?;
    highwire::start(&cluster).await?;
    let scope = Scope::new(&cluster, "away").await?;
    web_pods(&scope).await?;
    let port = scope.free_port()?;
    let service = web_service(&scope, "web", port).await?;
    ingress_is(&service, &BOTH).await;
    let (client, to) = (cluster.outside(), cluster.node("n1")?.v4(port));
    answers(&client, to).await;
    let agent = cluster.agent("n1")?;
    let pids = [agent.unit().pid(), cluster.controller("c1")?.unit().pid()];
    let apiserver = cluster.unit("kube-apiserver");
    apiserver.kill()?;
    wait_for("readyz to say so", LONG, || async {
        let ready = agent.get("/readyz");
        let said = format!("{ready:?}");
        if said.contains("watching") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
    client.http_get(to, AMPLE)?;
    // An agent that starts now waits, and the rules of the one before stay.
    let starting = cluster.agent("n2")?;
    starting.kill()?;
    starting.restart()?;
    wait_for("the new agent to say what it waits for", LONG, || async {
        let said = format!("{:?}", starting.get("/readyz"));
        if said.contains("watching") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
    answers(&client, cluster.node("n2")?.v4(port)).await;
    let waiting = starting.unit().pid();
    apiserver.start_again()?;
    let later = scope.free_port()?;
    let created = wait_for("the API server to be back", LONG * 3, || async {
        web_service(&scope, "later", later).await
    })
    .await;
    answers(&client, cluster.node("n1")?.v4(later)).await;
    ingress_is(&created, &BOTH).await;
    ingress_is(&service, &BOTH).await;
    answers(&client, cluster.node("n2")?.v4(later)).await;
    ensure!(
        starting.unit().pid() == waiting,
        "it must have lived through it"
    );
    let after = [agent.unit().pid(), cluster.controller("c1")?.unit().pid()];
    ensure!(after == pids, "both must have lived through it");
    Ok(())
}

#[apply(cluster_test)]
async fn opting_out_and_uninstalling_remove_everything_and_a_restart_nothing() -> Result<()> {
    let cluster = PrivateCluster::up("gone", 2).await?;
    highwire::start(&cluster).await?;
    let scope = Scope::new(&cluster, "gone").await?;
    web_pods(&scope).await?;
    let port = scope.free_port()?;
    let service = web_service(&scope, "web", port).await?;
    ingress_is(&service, &BOTH).await;
    let (n1, n2) = (cluster.node("n1")?, cluster.node("n2")?);

    // Opted out while the agent runs: out of service at once; then the DaemonSet
    // controller would end the Pod.
    cluster.opt_out("n1").await?;
    refuses(&cluster.outside(), n1.v4(port)).await;
    ingress_is(&service, &["192.0.2.12"]).await;
    cluster.agent("n1")?.stop()?;
    ensure!(!has_table(n1.netns())?, "the table stayed on n1");
    let reports = cluster.kubectl(&["get", "lbn", "-o=name"])?;
    ensure!(
        reports.trim() == "loadbalancernode.highwire.dev/n2",
        "{reports}"
    );

    // A restart leaves the rules.
    let agent = cluster.agent("n2")?;
    agent.stop()?;
    ensure!(has_table(n2.netns())?, "a restart must not take the table");
    answers(&cluster.outside(), n2.v4(port)).await;
    agent.start(&[]).await?;
    agent.wait_ready(LONG).await?;

    // Highwire is being removed.
    cluster.kubectl(&[
        "delete",
        "daemonset",
        "-n",
        "highwire-system",
        "highwire-agent",
    ])?;
    agent.stop()?;
    ensure!(!has_table(n2.netns())?, "the table stayed on n2");
    ingress_is(&service, &[]).await;
    Ok(())
}

#[apply(cluster_test)]
async fn forwarding_switched_off_is_reported_with_the_remedy() -> Result<()> {
    let cluster = PrivateCluster::up("fwd", 2).await?;
    highwire::start(&cluster).await?;
    let scope = Scope::new(&cluster, "fwd").await?;
    web_pods(&scope).await?;
    let service = web_service(&scope, "web", scope.free_port()?).await?;
    ingress_is(&service, &BOTH).await;
    let node = cluster.node("n2")?;
    node.netns().sysctl(&[("net/ipv4/ip_forward", "0")])?;
    ingress_is(&service, &["192.0.2.11"]).await;
    let described = cluster.kubectl(&["describe", "lbn", "n2"])?;
    ensure!(
        described.contains("ForwardingDisabled")
            && described.contains("sysctl -w net.ipv4.ip_forward=1"),
        "{described}"
    );
    node.netns().sysctl(&[("net/ipv4/ip_forward", "1")])?;
    ingress_is(&service, &BOTH).await;
    Ok(())
}

#[apply(cluster_test)]
async fn an_unknown_node_name_is_reported() -> Result<()> {
    let cluster = PrivateCluster::up("name", 1).await?;
    highwire::apply(&cluster)?;
    let agent = cluster.agent("n1")?;
    agent.start(&["--node-name=n-one"]).await?;
    wait_for("readyz to name it", LONG, || async {
        let ready = format!("{:?}", agent.get("/readyz"));
        if ready.contains("n-one") && ready.contains("kubectl get nodes") {
            Ok(())
        } else {
            Err(ready)
        }
    })
    .await;
    ensure!(
        !has_table(cluster.node("n1")?.netns())?,
        "nothing may be programmed for it"
    );
    agent
        .unit()
        .check_running()
        .context("it waits and does not crash")?;
    agent.unit().stop(Duration::from_secs(10))?;
    Ok(())
}

#[apply(cluster_test)]
async fn a_node_without_kube_proxy_says_so_and_leaves() -> Result<()> {
    let cluster = PrivateCluster::up("prx", 2).await?;
    highwire::start(&cluster).await?;
    let scope = Scope::new(&cluster, "prx").await?;
    web_pods(&scope).await?;
    let service = web_service(&scope, "web", scope.free_port()?).await?;
    ingress_is(&service, &BOTH).await;
    let proxy = cluster.unit("kube-proxy-n2");
    proxy.kill()?;
    cluster
        .node("n2")?
        .netns()
        .check(&["nft", "flush", "ruleset"])?;
    ingress_is(&service, &["192.0.2.11"]).await;
    let described = cluster.kubectl(&["describe", "lbn", "n2"])?;
    for said in [
        "ServiceProxyMissing",
        "run kube-proxy",
        "--service-proxy=none",
    ] {
        ensure!(described.contains(said), "{said}: {described}");
    }
    proxy.start_again()?;
    ingress_is(&service, &BOTH).await;
    Ok(())
}
