//! Many Services at once, and the cost of one more.
//!
//! Alone on the cluster: it counts what all Services there cost.

use anyhow::{Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{LONG, answers, ingress_is, web_alone, web_service};
use highwire_e2e::{Program, Svc, wait_for};
use macro_rules_attribute::apply;

const MANY: usize = 300;
/// Elements that say which Pods a port leads to, however many those are.
const TARGETS: f64 = 64.0;

async fn services_are(agent: &Program, wanted: usize) {
    wait_for(&format!("{wanted} Services"), LONG * 3, || async {
        let services = agent
            .metric("highwire_agent_services")
            .map_err(|e| e.to_string())?;
        if services == wanted as f64 {
            Ok(())
        } else {
            Err(services.to_string())
        }
    })
    .await;
}

#[apply(cluster_test)]
async fn three_hundred_services_are_served_and_one_more_costs_its_own_elements_only() -> Result<()>
{
    let (cluster, scope) = web_alone("many").await?;
    let agents = [cluster.agent("n1")?, cluster.agent("n2")?];
    for agent in &agents {
        services_are(agent, 0).await; // those of earlier tests are going
    }
    let repairs = |agent: &Program| agent.metric("highwire_agent_drift_repairs_total");
    let repaired = [repairs(&agents[0])?, repairs(&agents[1])?];
    let mut services: Vec<(u16, Svc)> = Vec::new();
    for batch in 0..MANY / 50 {
        let mut creating = Vec::new();
        for index in 0..50 {
            let port = scope.free_port()?;
            let service = scope
                .service(&format!("web-{batch}-{index}"))
                .load_balancer();
            let service = service.select("app", "web").tcp(port, 8080);
            creating.push(tokio::spawn(async move {
                Ok::<_, anyhow::Error>((port, service.create().await?))
            }));
        }
        for created in creating {
            services.push(created.await??);
        }
    }
    for agent in &agents {
        services_are(agent, MANY).await;
    }
    for (_, service) in &services {
        ingress_is(service, &["192.0.2.11", "192.0.2.12"]).await;
    }
    let client = cluster.outside();
    for node in ["n1", "n2"] {
        let node = cluster.node(node)?;
        for (port, _) in &services {
            answers(&client, node.v4(*port)).await;
        }
    }

    // Nobody touches our table, whatever kube-proxy does to its own.
    let repaired_since = [repairs(&agents[0])?, repairs(&agents[1])?];
    ensure!(
        repaired_since == repaired,
        "{repaired:?} → {repaired_since:?}"
    );

    let count = |agent: &Program| -> Result<[f64; 3]> {
        Ok([
            agent.metric("highwire_agent_elements_changed_total")?,
            agent.metric("highwire_agent_applies_total{kind=\"change\",result=\"ok\"}")?,
            agent.metric("highwire_agent_applies_total{kind=\"replace\",result=\"ok\"}")?,
        ])
    };
    let before = [count(&agents[0])?, count(&agents[1])?];
    let port = scope.free_port()?;
    let service = web_service(&scope, "one-more", port).await?;
    ingress_is(&service, &["192.0.2.11", "192.0.2.12"]).await;
    for (agent, before) in agents.iter().zip(before) {
        let after = count(agent)?;
        let cost = [0, 1, 2].map(|index| after[index] - before[index]);
        // The port in the set and its ClusterIP, or, without a kube-proxy, its Pods; status
        // writes cost nothing.
        let is_wanted = match cluster.config().proxy_modes.has_any() {
            true => cost == [2.0, 1.0, 0.0],
            // The EndpointSlice may come after the Service.
            false => [1.0, 2.0]
                .map(|changes| [1.0 + TARGETS, changes, 0.0])
                .contains(&cost),
        };
        ensure!(is_wanted, "elements, changes, replacements: {cost:?}");
    }
    Ok(())
}
