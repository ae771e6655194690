//! The model of [`highwire_e2e::model`] on a cluster of its own: it agrees with one that
//! works, and not with one that does not.

use std::time::Duration;

use anyhow::{Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{LONG, web_pods, web_service};
use highwire_e2e::model::{Checker, Violation};
use highwire_e2e::reported::bind_tcp;
use highwire_e2e::{PrivateCluster, Scope, highwire};
use macro_rules_attribute::apply;

#[apply(cluster_test)]
async fn the_checker_agrees_with_a_cluster_that_works_and_with_no_other() -> Result<()> {
    let cluster = PrivateCluster::up("model", 3).await?;
    highwire::start(&cluster).await?;
    let scope = Scope::new(&cluster, "model").await?;
    web_pods(&scope).await?;
    let mut checker = Checker::new(&cluster);
    checker.settled(LONG).await?;

    // A port with two claims, one of UDP, one that a program of the host has.
    let [port, taken, udp] = [scope.free_port()?, scope.free_port()?, scope.free_port()?];
    web_service(&scope, "first", port).await?;
    web_service(&scope, "second", port).await?;
    let _listener = bind_tcp(cluster.node("n1")?.netns(), "127.0.0.1", port)?;
    let names = scope.service("names").load_balancer().select("app", "web");
    names.dual_stack().udp(udp, 5353).create().await?;
    let pod = scope.pod("nginx").on("n1").host_network();
    pod.tcp(taken).start().await?;
    web_service(&scope, "taken", taken).await?;
    checker.settled(LONG * 2).await?;

    // Nobody writes statuses.
    let controllers = highwire::CONTROLLERS.map(|name| cluster.controller(name));
    for controller in &controllers {
        controller
            .as_ref()
            .map_err(|error| anyhow::anyhow!("{error:#}"))?
            .kill()?;
    }
    web_service(&scope, "late", scope.free_port()?).await?;
    let found = checker.settled(Duration::from_secs(2)).await;
    let found = found.expect_err("the Service has no address").0;
    let is_late = |it: &Violation| matches!(it, Violation::Status { service, .. } if service.ends_with("/late"));
    ensure!(found.iter().any(is_late), "{found:?}");
    for name in highwire::CONTROLLERS {
        cluster.controller(name)?.unit().start_again()?;
    }
    checker.settled(LONG * 2).await?;

    // A node that serves nothing: what is asked there is not answered.
    cluster.unit("kube-proxy-n2").kill()?;
    let flush = ["nft", "flush", "ruleset"];
    cluster.node("n2")?.netns().check(&flush)?;
    let found = checker.violations().await.0;
    ensure!(!found.is_empty(), "n2 has lost its rules");
    cluster.unit("kube-proxy-n2").start_again()?;
    checker.settled(LONG * 2).await?;
    Ok(())
}
