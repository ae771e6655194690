//! A Service whose endpoints an agent does not know yet. The test is alone on its cluster:
//! the agent's network fails.

use anyhow::{Result, ensure};
use highwire_e2e::expect::{BOTH, LONG, answers, ingress_is, web_service};
use highwire_e2e::faulty_api::{Fault, FaultyApi, Requests, Rule};
use highwire_e2e::{
    PrivateCluster, Program, Programs as _, ProxyModes, Scope, cluster_test, highwire, wait_for,
};
use macro_rules_attribute::apply;
use serde_json::json;

use super::web_pod;

/// Waits until so many ports await an EndpointSlice.
async fn awaits(agent: &Program, ports: f64) {
    wait_for(&format!("{ports} ports to be awaited"), LONG, || async {
        let awaited = agent.metric("highwire_agent_awaited_ports")?;
        ensure!(awaited == ports, "{awaited}");
        Ok(())
    })
    .await;
}

#[apply(cluster_test)]
async fn a_node_is_listed_once_it_knows_endpoints_and_later_if_there_are_none() -> Result<()> {
    let up = |config: &mut highwire_e2e::Config| config.proxy_modes = ProxyModes::None;
    let cluster = PrivateCluster::up_with("fst", 1, up).await?;
    highwire::apply(&cluster)?;
    cluster.opt_in("n1").await?;
    let faulty = FaultyApi::start(&cluster).await?;
    let agent = cluster.agent("n1")?.through(&faulty);
    agent.start(&[]).await?;
    agent.wait_ready(highwire::READY).await?;
    cluster.controller("c1")?.start(&[]).await?;
    let scope = Scope::new(&cluster, "first").await?;
    web_pod(&scope, "web-1", "n1").await?;
    // All is well: known by the time it is listed.
    let (client, n1) = (cluster.outside(), cluster.node("n1")?);
    let port = scope.free_port()?;
    ingress_is(&web_service(&scope, "well", port).await?, &BOTH[..1]).await;
    answers(&client, n1.v4(port)).await;

    for policy in ["Cluster", "Local"] {
        let slices = Requests::of("endpointslices");
        let before = faulty.counts().faults(&slices);
        faulty.set(vec![Rule::new(slices.clone(), Fault::Close)]);
        wait_for("EndpointSlices to be missing", LONG, || async {
            let now = faulty.counts().faults(&slices);
            if now > before { Ok(()) } else { Err(now) }
        })
        .await;
        let port = scope.free_port()?;
        let service = scope.service(&policy.to_lowercase()).load_balancer();
        let service = service.select("app", "web").tcp(port, 8080);
        let service = service.spec("externalTrafficPolicy", json!(policy));
        let service = service.create().await?;
        awaits(&agent, 1.0).await;
        let listed = service.ingress_ips().await?;
        ensure!(listed.is_empty(), "{policy}: {listed:?}");
        faulty.clear();
        ingress_is(&service, &BOTH[..1]).await;
        answers(&client, n1.v4(port)).await;
    }

    // Without a selector nobody makes a slice; nothing waits for it for good.
    let port = scope.free_port()?;
    let service = scope.service("nobody").load_balancer().tcp(port, 8080);
    let service = service.spec("selector", json!(null)).create().await?;
    awaits(&agent, 1.0).await;
    ingress_is(&service, &BOTH[..1]).await;
    awaits(&agent, 0.0).await;
    Ok(())
}
