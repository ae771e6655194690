//! `highwire-controller explain`, and who may ask the admin ports what.
//!
//! What the agents explain is tested where the conflicts are, and on a box in external/edge.rs.

use std::time::Duration;

use anyhow::{Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{BOTH, ingress_is, web, web_service};
use highwire_e2e::highwire;
use highwire_e2e::layout::AGENT_PORT;
use highwire_e2e::reported::bind_tcp;
use highwire_e2e::{Cluster, Program};
use macro_rules_attribute::apply;
use serde_json::{Value, json};

/// The leading controller, and one that follows.
async fn controllers(cluster: &Cluster) -> Result<[Program; 2]> {
    let leader = highwire::leader(cluster).await?;
    let follower = if leader == "c1" { "c2" } else { "c1" };
    Ok([cluster.controller(&leader)?, cluster.controller(follower)?])
}

#[apply(cluster_test)]
async fn every_controller_says_why_a_node_is_not_listed() -> Result<()> {
    let (cluster, scope) = web("why").await?;
    let taken = scope.free_port()?;
    let _listener = bind_tcp(cluster.node("n1")?.netns(), "0.0.0.0", taken)?;
    let web = web_service(&scope, "web", taken).await?;
    ingress_is(&web, &[BOTH[1]]).await;
    let key = format!("{}/web", scope.namespace());
    for controller in controllers(&cluster).await? {
        let text = controller.explain(&[&key])?;
        let line = |start: &str| text.lines().find(|line| line.starts_with(start));
        let n1 = line("n1 ").unwrap_or_default();
        let n2 = line("n2 ").unwrap_or_default();
        let holder = format!("{taken}/TCP is held by socket 0.0.0.0:{taken}");
        ensure!(n1.contains("  no  ") && n1.contains(&holder), "{text}");
        ensure!(n2.contains("  192.0.2.12"), "{text}");
        let json: Value = serde_json::from_str(&controller.explain(&[&key, "-o", "json"])?)?;
        ensure!(json["service"] == key.as_str(), "{json}");
        ensure!(
            json["nodes"][1]["listed"] == json!(["192.0.2.12"]),
            "{json}"
        );
        let all = controller.explain(&[])?;
        ensure!(
            all.lines().any(|line| line.starts_with(&format!("{key} "))),
            "{all}"
        );
        let gone = controller.explain(&["nowhere/nothing"]);
        let error = gone.expect_err("there is none").to_string();
        ensure!(
            error.contains("serves no Service nowhere/nothing"),
            "{error}"
        );
    }
    Ok(())
}

#[apply(cluster_test)]
async fn other_hosts_get_no_names() -> Result<()> {
    let (cluster, _scope) = web("names").await?;
    let outside = cluster.outside();
    let agent = cluster.node("n1")?.v4(AGENT_PORT);
    let asked = |path: &'static str| {
        outside.run(|| highwire_e2e::lab::http::http_text(agent, path, Duration::from_secs(5)))
    };
    let metrics = asked("/metrics")?;
    ensure!(metrics.contains("highwire_agent_ready 1"), "{metrics}");
    let refused = asked("/explain")
        .expect_err("not for other hosts")
        .to_string();
    ensure!(refused.contains("404"), "{refused}");
    Ok(())
}
