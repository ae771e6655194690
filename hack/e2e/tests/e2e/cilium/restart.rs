//! Starts and stops, of Cilium's agent and ours. Each test alone on the cluster.

use anyhow::{Result, ensure};
use highwire_e2e::cluster::cilium;
use highwire_e2e::expect::{ALL, AMPLE, LONG, answers, ingress_is, refuses};
use highwire_e2e::{Programs as _, Scope, cluster_test, highwire, wait_for};
use macro_rules_attribute::apply;

use super::{cluster, outside_and_nodes, web_pods, web_service};

#[apply(cluster_test)]
async fn auto_recognises_cilium() -> Result<()> {
    let (cluster, _) = cluster().await?;
    let _scope = Scope::alone(&cluster, "auto").await?;
    let usual = cluster.agent("n1")?;
    usual.stop()?;
    let agent = usual.clone().with_arguments(&["--service-proxy=auto"]);
    agent.start(&[]).await?;
    agent.wait_ready(highwire::READY).await?;
    let explained = agent.explain(&[])?;
    agent.stop()?;
    usual.start(&[]).await?;
    usual.wait_ready(highwire::READY).await?;
    ensure!(explained.contains("kube-proxy: none"), "{explained}");
    ensure!(explained.contains("Node n1: ready"), "{explained}");
    Ok(())
}

/// Its programs stay in the kernel, as our rules do.
#[apply(cluster_test)]
async fn a_restart_of_cilium_interrupts_nothing() -> Result<()> {
    let (cluster, cilium) = cluster().await?;
    let scope = Scope::alone(&cluster, "again").await?;
    web_pods(&scope).await?;
    let port = scope.free_port()?;
    ingress_is(&web_service(&scope, "Cluster", port).await?, &ALL).await;
    let node = cluster.node("n1")?;
    let mut streams = Vec::new();
    for from in outside_and_nodes(&cluster) {
        for to in [node.v4(port), node.v6(port)] {
            answers(&from, to).await;
            streams.push((from.clone(), to, from.tcp_connect(to, AMPLE)?));
        }
    }
    let agent = cluster.unit(&cilium::unit_name("n1"));
    let mut go_on = |when: &str| -> Result<()> {
        for (from, to, stream) in &mut streams {
            stream.say(when)?;
            from.http_get(*to, AMPLE)?;
        }
        Ok(())
    };
    go_on("with Cilium")?;
    agent.kill()?;
    go_on("without Cilium's agent")?;
    agent.start_again()?;
    let mut failed = None;
    wait_for("Cilium to be well", 3 * LONG, || {
        failed = failed.take().or(go_on("while it starts").err());
        let well = cilium::answers(cluster.state(), &cilium, "n1");
        async move { well }
    })
    .await;
    failed.map_or(Ok(()), Err)?;
    go_on("with Cilium again")
}

#[apply(cluster_test)]
async fn cleanup_leaves_what_is_cilium_s() -> Result<()> {
    let (cluster, cilium) = cluster().await?;
    let scope = Scope::alone(&cluster, "cleanup").await?;
    web_pods(&scope).await?;
    let port = scope.free_port()?;
    let service = web_service(&scope, "Cluster", port).await?;
    ingress_is(&service, &ALL).await;
    let (node, client) = (cluster.node("n1")?, cluster.outside());
    let node_port = node.v4(service.node_port(port)?);
    answers(&client, node.v4(port)).await;
    answers(&client, node_port).await;
    let agent = cluster.agent("n1")?;
    agent.stop()?;
    let program = agent.binary().display().to_string();
    let before = node.netns().check(&["iptables-save"])?;
    node.netns().check(&[&program, "cleanup"])?;
    let after = node.netns().check(&["iptables-save"])?;
    refuses(&client, node.v4(port)).await;
    let answered = client.http_get(node_port, AMPLE);
    agent.start(&[]).await?;
    agent.wait_ready(highwire::READY).await?;
    ensure!(answered.is_ok(), "Cilium's NodePort: {answered:?}");
    let rules = |saved: &str| -> Vec<String> {
        let lines = saved.lines().filter(|line| line.starts_with("-A"));
        lines.map(str::to_owned).collect()
    };
    ensure!(rules(&before) == rules(&after), "{before}\n{after}");
    ensure!(before.contains("CILIUM_"), "{before}");
    cilium::answers(cluster.state(), &cilium, "n1")
}
