//! A thousand Services that all want one port.
//!
//! On a cluster of its own: it counts what the controllers write, and leaves more
//! behind than is quickly removed.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{BOTH, LONG, answers, ingress_is, web_pods, web_service};
use highwire_e2e::{Cluster, PrivateCluster, Program, Scope, highwire, wait_for};
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::ListParams;
use macro_rules_attribute::apply;
use serde_json::Value;

const CROWD: usize = 1000;

async fn leader(cluster: &Cluster) -> Result<Program> {
    cluster.controller(&highwire::leader(cluster).await?)
}

/// Status writes so far, of every result.
fn writes(leader: &Program) -> Result<f64> {
    let metrics = leader.metrics()?;
    let lines = metrics
        .lines()
        .filter(|line| line.starts_with("highwire_controller_status_writes_total{"));
    let counts = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(counts.sum())
}

#[apply(cluster_test)]
async fn one_serves_and_every_other_gets_a_condition() -> Result<()> {
    let cluster = PrivateCluster::up("crd", 2).await?;
    highwire::start(&cluster).await?;
    let scope = Scope::new(&cluster, "crowd").await?;
    web_pods(&scope).await?;
    let port = scope.free_port()?;
    let first = web_service(&scope, "first", port).await?;
    ingress_is(&first, &BOTH).await;
    let leader = leader(&cluster).await?;
    let before = writes(&leader)?;
    for batch in 0..(CROWD - 1).div_ceil(50) {
        let names =
            (batch * 50..(batch * 50 + 50).min(CROWD - 1)).map(|index| format!("late-{index}"));
        let creating: Vec<_> = names
            .map(|name| {
                let service = scope.service(&name).load_balancer().select("app", "web");
                // No NodePorts: there are fewer of those than Services here.
                let service = service.spec("allocateLoadBalancerNodePorts", false.into());
                tokio::spawn(service.tcp(port, 8080).create())
            })
            .collect();
        for created in creating {
            created.await??;
        }
    }
    let agent = cluster.agent("n1")?;
    wait_for("every conflict to be reported", LONG * 4, || async {
        let conflicts = agent
            .metric("highwire_agent_conflicts{reason=\"HeldByService\"}")
            .map_err(|e| e.to_string())?;
        if conflicts == (CROWD - 1) as f64 {
            Ok(())
        } else {
            Err(conflicts.to_string())
        }
    })
    .await;
    let services: Api<Service> = Api::namespaced(cluster.client(), scope.namespace());
    wait_for("every loser to have the condition", LONG * 6, || async {
        let listed = services
            .list(&ListParams::default())
            .await
            .map_err(|e| e.to_string())?;
        let explained = listed.iter().filter(|service| {
            let conditions = service
                .status
                .as_ref()
                .and_then(|status| status.conditions.as_ref());
            conditions.into_iter().flatten().any(|condition| {
                condition.type_ == "LoadBalancerPortsError"
                    && condition.status == "True"
                    && condition.message.contains("/first on n1, n2")
            })
        });
        let explained = explained.count();
        if explained == CROWD - 1 {
            Ok(())
        } else {
            Err(explained.to_string())
        }
    })
    .await;
    let selector = "--field-selector=reason=PortConflict";
    wait_for("an Event for every loser", LONG * 6, || async {
        let listed = cluster.kubectl(&[
            "get",
            "events",
            "-n",
            scope.namespace(),
            selector,
            "-o=json",
        ])?;
        let listed: Value = serde_json::from_str(&listed)?;
        let about = |event: &Value| event["involvedObject"]["name"].as_str().map(str::to_owned);
        let services = listed["items"].as_array().into_iter().flatten().map(about);
        let services: BTreeSet<Option<String>> = services.collect();
        ensure!(services.len() == CROWD - 1, "{} Services", services.len());
        Ok(())
    })
    .await;
    let written = writes(&leader)? - before;
    // One per loser; a second where the two nodes' reports came apart; and where an agent
    // took so long that this was said, one more for that and one when it had come. On a busy
    // machine that is many, but never more for one.
    ensure!(written <= 4.0 * CROWD as f64, "{written} status writes");
    ensure!(written >= (CROWD - 1) as f64, "{written} status writes");

    // And then nobody is busy any more.
    let (writes_now, applies) = (
        writes(&leader)?,
        agent.metric("highwire_agent_elements_changed_total")?,
    );
    tokio::time::sleep(Duration::from_secs(5)).await; // the silence itself is the condition
    ensure!(
        writes(&leader)? == writes_now,
        "the controller goes on writing"
    );
    ensure!(
        agent.metric("highwire_agent_elements_changed_total")? == applies,
        "the agent goes on"
    );
    answers(&cluster.outside(), cluster.node("n1")?.v4(port)).await;
    ingress_is(&first, &BOTH).await;
    Ok(())
}
