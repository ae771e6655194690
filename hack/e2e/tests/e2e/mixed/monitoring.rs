//! `deploy/monitoring/` with a real Prometheus: what the dashboard and the alerts ask for is
//! what agents and controllers show.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Result, ensure};
use highwire_e2e::expect::{AMPLE, BOTH, LONG, ingress_is, web, web_service};
use highwire_e2e::prometheus::promql;
use highwire_e2e::{Programs as _, Prometheus, checkout, cluster_test, wait_for};
use macro_rules_attribute::apply;

/// Every selector finds series: a query for one that does not exist would find nothing, and
/// nobody would notice.
fn find_series(prometheus: &Prometheus, of: &str, query: &str) -> Result<()> {
    let selectors = promql::selectors(query);
    ensure!(!selectors.is_empty(), "{of}: {query} asks for nothing");
    for selector in selectors {
        let found = prometheus.series(&selector)?;
        ensure!(!found.is_empty(), "{of}: nothing is {selector}");
    }
    Ok(())
}

#[apply(cluster_test)]
async fn every_query_of_the_dashboard_and_every_alert_finds_what_it_asks_for() -> Result<()> {
    let (cluster, scope) = web("monitoring").await?;
    let port = scope.free_port()?;
    let service = web_service(&scope, "web", port).await?;
    ingress_is(&service, &BOTH).await;
    let prometheus = Prometheus::start(&cluster).await?;
    // Rates need two values.
    wait_for("three scrapes of all four programs", LONG, || async {
        let scraped = prometheus.query("sum_over_time(up[1m]) >= 3")?;
        ensure!(scraped.len() == 4, "{scraped:?}");
        Ok(())
    })
    .await;
    // The documented relabelling names them.
    for series in [
        "up{job=\"highwire-agent\",instance=\"n2\"}",
        "up{job=\"highwire-controller\",instance=\"highwire-controller-c1\"}",
    ] {
        ensure!(prometheus.series(series)?.len() == 1, "{series}");
    }

    let queries = promql::of_dashboard()?;
    for (panel, query) in &queries {
        find_series(&prometheus, panel, query)?;
        let found = prometheus.query(query)?;
        ensure!(!found.is_empty(), "{panel}: {query} finds nothing");
    }

    let alerts = wait_for("all alerts to be evaluated", LONG, || async {
        let alerts = prometheus.alerts()?;
        let is_new = alerts.iter().any(|alert| alert.health == "unknown");
        ensure!(!is_new, "{alerts:?}");
        anyhow::Ok(alerts)
    })
    .await;
    let rules = fs::read_to_string(checkout().join("deploy/monitoring/prometheusrule.yaml"))?;
    ensure!(alerts.len() == rules.matches("- alert: ").count());
    for alert in &alerts {
        ensure!(alert.health == "ok", "{}: {}", alert.name, alert.last_error);
        prometheus.query(&alert.query)?;
        find_series(&prometheus, &alert.name, &alert.query)?;
    }

    // What a query finds is what happens.
    let connections = "sum(highwire_agent_connections_total{outcome=\"rewrite\"})";
    let value = || -> Result<f64> {
        let found = prometheus.query(connections)?;
        Ok(found[0]["value"][1].as_str().unwrap_or_default().parse()?)
    };
    let before = value()?;
    for node in ["n1", "n2"] {
        let to = cluster.node(node)?.v4(port);
        cluster.outside().http_get(to, AMPLE)?;
    }
    wait_for("both connections to be counted", LONG, || async {
        let now = value()?;
        ensure!(now >= before + 2.0, "{before} {now}");
        Ok(())
    })
    .await;
    Ok(())
}

/// The programs show nothing that neither their documents nor `process_…` name.
#[apply(cluster_test)]
async fn every_metric_of_ours_is_documented() -> Result<()> {
    let (cluster, _scope) = web("metrics").await?;
    for (program, document, prefix) in [
        (cluster.agent("n1")?, "agent/README.md", "highwire_agent"),
        (
            cluster.controller("c1")?,
            "controller/README.md",
            "highwire_controller",
        ),
    ] {
        let text = fs::read_to_string(checkout().join(document))?;
        let metrics = program.metrics()?;
        let names = metrics
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        let names: BTreeSet<&str> = names.collect();
        ensure!(names.len() > 15, "{names:?}");
        for name in names {
            let Some(own) = name.strip_prefix(prefix) else {
                ensure!(name.starts_with("process_"), "{name}");
                continue;
            };
            let is_there = text.contains(&format!("{own}`"))
                || text.contains(&format!("{own}{{"))
                || text.contains(&format!("`{}`", &own[1..]));
            ensure!(is_there, "{document} does not have {name}");
        }
    }
    Ok(())
}
