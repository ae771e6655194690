//! The death of a leader, of an agent, of kube-proxy.
//!
//! Each alone on the shared cluster: all others stand on what they stop.

use anyhow::{Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{
    AMPLE, BOTH, LONG, SHORT, Served, answers, ingress_is, serve, web_alone, web_service,
};
use highwire_e2e::{highwire, wait_for};
use macro_rules_attribute::apply;

#[apply(cluster_test)]
async fn the_other_controller_takes_over_and_no_status_flaps() -> Result<()> {
    let (cluster, scope) = web_alone("leader").await?;
    let service = web_service(&scope, "before", scope.free_port()?).await?;
    ingress_is(&service, &BOTH).await;
    let version = service.get().await?.metadata.resource_version;
    let first = highwire::leader(&cluster).await?;
    cluster.controller(&first)?.kill()?;
    let second = wait_for("another leader", LONG, || async {
        match highwire::leader(&cluster).await {
            Ok(leader) if leader != first => Ok(leader),
            other => Err(other),
        }
    })
    .await;
    let later = web_service(&scope, "after", scope.free_port()?).await?;
    ingress_is(&later, &BOTH).await;
    cluster.controller(&first)?.restart()?;
    cluster
        .controller(&first)?
        .wait_ready(highwire::READY)
        .await?;
    ensure!(
        service.get().await?.metadata.resource_version == version,
        "its status was rewritten"
    );
    ensure!(
        highwire::leader(&cluster).await? == second,
        "the lead went back without a reason"
    );
    Ok(())
}

#[apply(cluster_test)]
async fn a_restarted_controller_rewrites_nothing() -> Result<()> {
    let (cluster, scope) = web_alone("restart").await?;
    let service = web_service(&scope, "web", scope.free_port()?).await?;
    ingress_is(&service, &BOTH).await;
    let version = service.get().await?.metadata.resource_version;
    for name in highwire::CONTROLLERS {
        cluster.controller(name)?.stop()?;
    }
    highwire::start(&cluster).await?;
    let later = web_service(&scope, "later", scope.free_port()?).await?;
    ingress_is(&later, &BOTH).await;
    ensure!(
        service.get().await?.metadata.resource_version == version,
        "its status was rewritten"
    );
    Ok(())
}

#[apply(cluster_test)]
async fn a_dead_agents_node_leaves_and_comes_back() -> Result<()> {
    let Served {
        cluster,
        scope: _scope,
        service,
        port,
    } = serve(web_alone("dead").await?).await?;
    let agent = cluster.agent("n2")?;
    agent.kill()?;
    ingress_is(&service, &["192.0.2.11"]).await;
    // The kernel goes on without the agent.
    answers(&cluster.outside(), cluster.node("n2")?.v4(port)).await;
    highwire::start(&cluster).await?;
    ingress_is(&service, &BOTH).await;
    Ok(())
}

#[apply(cluster_test)]
async fn an_agents_restart_interrupts_nothing() -> Result<()> {
    let Served {
        cluster,
        scope: _scope,
        service,
        port,
    } = serve(web_alone("again").await?).await?;
    let (client, to) = (cluster.outside(), cluster.node("n1")?.v4(port));
    answers(&client, to).await;
    let version = service.get().await?.metadata.resource_version;
    let agent = cluster.agent("n1")?;
    agent.stop()?;
    let mut stream = client.tcp_connect(to, AMPLE)?;
    stream.say("without an agent")?;
    agent.start(&[]).await?;
    for _ in 0..100 {
        client.http_get(to, AMPLE)?;
    }
    agent.wait_ready(highwire::READY).await?;
    client.http_get(to, AMPLE)?;
    stream.say("with a new agent")?;
    ensure!(
        service.get().await?.metadata.resource_version == version,
        "its status flapped"
    );
    Ok(())
}

#[apply(cluster_test)]
async fn a_restart_of_kube_proxy_interrupts_nothing() -> Result<()> {
    let (cluster, scope) = web_alone("proxy").await?;
    let (port, later) = (scope.free_port()?, scope.free_port()?);
    ingress_is(&web_service(&scope, "web", port).await?, &BOTH).await;
    let (client, n1) = (cluster.outside(), cluster.node("n1")?);
    answers(&client, n1.v4(port)).await;
    let proxy = cluster.unit("kube-proxy-n1");
    proxy.kill()?;
    for _ in 0..50 {
        let reply = client.http_get(n1.v4(port), SHORT);
        ensure!(reply.is_ok(), "while it is away: {reply:?}");
    }
    proxy.start_again()?;
    let service = web_service(&scope, "later", later).await?;
    wait_for("the later Service", LONG, || {
        let kept = client.http_get(n1.v4(port), SHORT);
        kept.unwrap_or_else(|error| panic!("while it starts: {error}"));
        let new = client.http_get(n1.v4(later), SHORT);
        async move { new }
    })
    .await;
    ingress_is(&service, &BOTH).await;
    Ok(())
}

#[apply(cluster_test)]
async fn what_others_change_in_our_table_is_put_back() -> Result<()> {
    let Served {
        cluster,
        scope: _scope,
        service: _,
        port,
    } = serve(web_alone("flush").await?).await?;
    let node = cluster.node("n1")?;
    answers(&cluster.outside(), node.v4(port)).await;
    let agent = cluster.agent("n1")?;
    let repairs = || agent.metric("highwire_agent_drift_repairs_total");
    let element = format!("delete element inet highwire ports4 {{ tcp . {port} }}");
    let chain = match cluster.config().proxy_modes.has_any() {
        true => "flush chain inet highwire rewrite",
        false => "flush chain inet highwire to_service",
    };
    for change in [
        element.as_str(),
        chain,
        "flush table inet highwire",
        "delete table inet highwire",
    ] {
        let before = repairs()?;
        node.netns().check(&["nft", change])?;
        let what = format!("the repair of {change}");
        wait_for(&what, LONG, || async {
            repairs().is_ok_and(|now| now > before)
        })
        .await;
        answers(&cluster.outside(), node.v4(port)).await;
        ensure!(
            repairs()? == before + 1.0,
            "{change}: it repaired what it had repaired itself"
        );
    }
    Ok(())
}
