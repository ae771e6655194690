//! A controller whose API server fails. It is alone on its cluster; the agents' network is
//! well.

use anyhow::{Context as _, Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::LONG;
use highwire_e2e::faulty_api::{Fault, FaultyApi, Refusal, Requests, Rule, Verb};
use highwire_e2e::{PrivateCluster, Scope, highwire, wait_for};
use macro_rules_attribute::apply;

use super::bed::{LogLines, Refused, Served, listed, on_node, refusals};

async fn served(name: &str) -> Result<(PrivateCluster, Served)> {
    let cluster = PrivateCluster::up(name, 1).await?;
    highwire::apply(&cluster)?;
    cluster.opt_in("n1").await?;
    let agent = cluster.agent("n1")?;
    agent.start(&["--lease-duration=6"]).await?;
    let faulty = FaultyApi::start(&cluster).await?;
    let controller = cluster.controller("c1")?.through(&faulty);
    controller.start(&[]).await?;
    controller.wait_ready(highwire::READY).await?;
    agent.wait_ready(highwire::READY).await?;
    let scope = Scope::new(&cluster, "api").await?;
    let served = Served::new(&cluster, scope, "n1", (controller, faulty)).await?;
    Ok((cluster, served))
}

#[apply(cluster_test)]
async fn a_controller_outlives_every_refusal() -> Result<()> {
    let (_cluster, mut served) = served("ctl").await?;
    for refused in refusals() {
        served
            .survives(refused, "watching Services has failed")
            .await?;
    }
    served.recovered().await
}

#[apply(cluster_test)]
async fn a_status_that_was_refused_is_written_once_it_can_be() -> Result<()> {
    let (_cluster, mut served) = served("wrt").await?;
    let statuses = Requests::of("services/status");
    for Refused { name, fault, .. } in refusals() {
        let log = LogLines::new(&served.program)?;
        served.faulty.set(vec![Rule::new(statuses.clone(), fault)]);
        let mut waiting = Vec::new();
        for number in 0..10 {
            let port = served.scope.free_port()?;
            let name = format!("{}-{number}", name);
            waiting.push(on_node(&served.scope, &name, port, &served.node).await?);
        }
        served.suffered(&statuses, 10).await;
        served.lives().context(name)?;
        served.faulty.clear();
        for service in &waiting {
            listed(service, &served.node).await;
        }
        log.check(name)?;
        for service in waiting {
            service.delete().await?;
        }
    }
    Ok(())
}

#[apply(cluster_test)]
async fn a_controller_outlives_broken_watches() -> Result<()> {
    let (_cluster, mut served) = served("brk").await?;
    let watches = Requests::all().only(&[Verb::Watch]);
    served.survives_broken_watches(&watches, 11).await?;
    served.recovered().await
}

#[apply(cluster_test)]
async fn readyz_and_the_metrics_name_the_watch_that_fails() -> Result<()> {
    let (_cluster, mut served) = served("nam").await?;
    let watched = [
        ("services", "Services"),
        ("nodes", "Nodes"),
        ("loadbalancernodes", "LoadBalancerNodes"),
        ("leases", "Leases"),
        ("endpointslices", "EndpointSlices"),
        ("externalloadbalancers", "ExternalLoadBalancers"),
        ("loadbalancers", "LoadBalancers"),
    ];
    for (resource, kind) in watched {
        let reads = Requests::of(resource).only(&[Verb::Watch, Verb::List]);
        let fault = Fault::Refuse(Refusal::InternalError);
        served.faulty.set(vec![Rule::new(reads, fault)]);
        let failing = format!("watching {kind} has failed");
        served.says(&failing, "request timed out").await;
        let series = format!("highwire_controller_watch_failing_seconds{{kind=\"{kind}\"}}");
        wait_for(&series, LONG, || async {
            let seconds = served.program.metric(&series)?;
            ensure!(seconds > 0.0, "{seconds}");
            anyhow::Ok(())
        })
        .await;
        served.faulty.clear();
        served.works(&format!("after-{resource}")).await?;
        served.lives()?;
    }
    served.recovered().await
}
