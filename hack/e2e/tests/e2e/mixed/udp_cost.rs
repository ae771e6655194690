//! What deleting stale UDP flows costs: connections to the API server, and sweeps of
//! conntrack. On clusters of their own, since they count what the whole agent does.

use std::time::Duration;

use anyhow::{Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{ALL, LONG, SHORT, ingress_is, refuses_udp, web_pods};
use highwire_e2e::{PrivateCluster, Program, Scope, highwire, wait_for};
use macro_rules_attribute::apply;

const MANY: usize = 100;

async fn serves(agent: &Program, services: usize) {
    wait_for(&format!("{services} Services"), LONG * 3, || async {
        match agent.metric("highwire_agent_services") {
            Ok(served) if served == services as f64 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[apply(cluster_test)]
async fn a_hundred_udp_services_cost_no_more_connections_than_one() -> Result<()> {
    let cluster = PrivateCluster::up("cost", 2).await?;
    highwire::start(&cluster).await?;
    let scope = Scope::new(&cluster, "cost").await?;
    web_pods(&scope).await?;
    let create = async |name: &str| {
        let service = scope.service(name).load_balancer().select("app", "web");
        service.udp(scope.free_port()?, 5353).create().await
    };
    let agent = cluster.agent("n1")?;
    let first = create("first").await?;
    ingress_is(&first, &highwire_e2e::expect::BOTH).await;
    let one = agent.connections()?;
    for number in 1..MANY {
        create(&format!("web-{number}")).await?;
    }
    serves(&agent, MANY).await;
    // What reports it wrote at once may have opened goes again.
    wait_for(&format!("{one} connections again"), LONG * 6, || async {
        match agent.connections() {
            Ok(now) if now <= one => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    println!(
        "{one} connections, {} KiB with {MANY} UDP Services",
        agent.unit().rss_kib().unwrap_or_default()
    );
    Ok(())
}

#[apply(cluster_test)]
async fn with_policy_local_a_node_without_endpoints_lets_refused_clients_be() -> Result<()> {
    let cluster = PrivateCluster::up("ulcl", 2).await?;
    highwire::start(&cluster).await?;
    let scope = Scope::new(&cluster, "local").await?;
    let pod = scope.pod("web-2").on("n2").label("app", "web");
    pod.udp(5353).start().await?;
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer().external_local();
    let service = service.dual_stack().udp(port, 5353).create().await?;
    ingress_is(&service, &[ALL[1], ALL[3]]).await;
    let (agent, client) = (cluster.agent("n1")?, cluster.outside());
    let to = cluster.node("n1")?.v4(port);
    let mut flow = client.udp_flow(to)?;
    refuses_udp(&mut flow).await;
    let metric = |name: &str| agent.metric(&format!("highwire_agent_udp_{name}"));
    let (sweeps, deleted) = (
        metric("sweeps_total{result=\"ok\"}")?,
        metric("flows_deleted_total")?,
    );
    // Something changes, and the sweeps that follow find this client's flow.
    let other = scope.service("other").load_balancer();
    other.udp(scope.free_port()?, 5353).create().await?;
    wait_for("more sweeps", LONG, || {
        flow.ask(Duration::from_millis(50)).ok();
        let now = metric("sweeps_total{result=\"ok\"}");
        async move {
            match now {
                Ok(now) if now >= sweeps + 3.0 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        }
    })
    .await;
    let now = metric("flows_deleted_total")?;
    ensure!(
        now == deleted,
        "{} flows deleted that come again at once",
        now - deleted
    );
    let answer = cluster
        .outside()
        .udp_ask(cluster.node("n2")?.v4(port), SHORT);
    ensure!(answer.is_ok(), "{answer:?}");
    Ok(())
}
