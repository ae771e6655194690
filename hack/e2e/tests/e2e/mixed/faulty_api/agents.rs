//! Agents whose API server fails.

use std::sync::Weak;
use std::time::Duration;

use anyhow::{Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{LONG, SHORT, answers, refuses};
use highwire_e2e::faulty_api::{
    Fault, FaultyApi, Outcome, Refusal, Requests, Rule, Verb, WatchFault,
};
use highwire_e2e::{FileCluster, FileSlot, PrivateCluster, Program, Scope, highwire, wait_for};
use macro_rules_attribute::apply;
use tokio::sync::Mutex;

use super::bed::{Served, listed, on_node, refusals, version};

/// A watch that brings nothing for 44 s is dead (`SILENCE` in runtime/src/client.rs).
const NOTICED: Duration = Duration::from_secs(60);

static CLUSTER: FileSlot = Mutex::const_new(Weak::new());

/// The cluster of these tests. Its controllers' network is well.
async fn cluster() -> Result<FileCluster> {
    FileCluster::join(&CLUSTER, async {
        let cluster = PrivateCluster::up("api", 6).await?;
        highwire::apply(&cluster)?;
        let controller = cluster.controller("c1")?;
        controller.start(&[]).await?;
        controller.wait_ready(highwire::READY).await?;
        Ok(cluster)
    })
    .await
}

/// The agent of a node behind a network of its own.
async fn agent(cluster: &FileCluster, node: &str) -> Result<(Program, FaultyApi)> {
    let faulty = FaultyApi::start(cluster).await?;
    let agent = cluster.agent(node)?.through(&faulty);
    cluster.opt_in(node).await?;
    agent.start(&["--lease-duration=6"]).await?;
    agent.wait_ready(highwire::READY).await?;
    Ok((agent, faulty))
}

async fn served(cluster: &FileCluster, node: &str) -> Result<Served> {
    let agent = agent(cluster, node).await?;
    let scope = Scope::new(cluster, "api").await?;
    Served::new(cluster, scope, node, agent).await
}

fn watches(resource: &str) -> Requests {
    Requests::of(resource).only(&[Verb::Watch])
}

#[apply(cluster_test)]
async fn an_agent_outlives_every_refusal() -> Result<()> {
    let cluster = cluster().await?;
    let mut served = served(&cluster, "n1").await?;
    for refused in refusals() {
        served
            .survives(refused, "watching Service has failed")
            .await?;
    }
    served.recovered().await
}

#[apply(cluster_test)]
async fn an_agent_outlives_broken_watches() -> Result<()> {
    let cluster = cluster().await?;
    let mut served = served(&cluster, "n2").await?;
    // Each of its six watches, and some that began again.
    served
        .survives_broken_watches(&watches("services"), 9)
        .await?;
    served.recovered().await
}

#[apply(cluster_test)]
async fn a_version_that_is_too_old_for_a_watch_makes_an_agent_list_again() -> Result<()> {
    let cluster = cluster().await?;
    let mut served = served(&cluster, "n3").await?;
    let lists = Requests::of("services").only(&[Verb::List]);
    let listed = || served.faulty.counts().of(&lists, Outcome::PassedOn);
    let before = listed();
    let gone = Fault::Refuse(Refusal::Gone);
    served
        .faulty
        .set(vec![Rule::new(watches("services"), gone)]);
    wait_for("another list", LONG, || async { listed() > before }).await;
    served.lives()?;
    served.faulty.clear();
    served.recovered().await
}

#[apply(cluster_test)]
async fn an_old_list_neither_ends_a_service_for_good_nor_brings_one_back() -> Result<()> {
    let cluster = cluster().await?;
    let served = served(&cluster, "n4").await?;
    let (client, node) = (cluster.outside(), &served.node);
    let [old, new] = [served.scope.free_port()?, served.scope.free_port()?];
    let deleted = on_node(&served.scope, "old", old, node).await?;
    answers(&client, node.v4(old)).await;
    let then = version(&cluster).await?;
    deleted.delete().await?;
    let created = on_node(&served.scope, "new", new, node).await?;
    refuses(&client, node.v4(old)).await;
    answers(&client, node.v4(new)).await;
    listed(&created, node).await;

    served.faulty.set(vec![
        Rule::new(watches("services"), Fault::Watch(WatchFault::GoneEvent)).times(1),
        Rule::new(Requests::of("services"), Fault::OldList(then)).times(1),
    ]);
    let lists = Requests::of("services");
    wait_for("the old list", LONG, || async {
        served.faulty.counts().of(&lists, Outcome::OldList) == 1
    })
    .await;
    // The watch that follows brings what has happened since.
    refuses(&client, node.v4(old)).await;
    answers(&client, node.v4(new)).await;
    listed(&created, node).await;
    served.recovered().await
}

#[apply(cluster_test)]
async fn an_agent_that_stops_and_starts_beside_a_failing_api_server_keeps_its_rules() -> Result<()>
{
    let cluster = cluster().await?;
    let mut served = served(&cluster, "n6").await?;
    // It asks for its DaemonSet and its Node, and gets a page that says nothing of them.
    let page = Fault::Refuse(Refusal::NotFound);
    served.faulty.set(vec![Rule::new(Requests::all(), page)]);
    served.program.stop()?;
    served.forwards()?;
    served
        .faulty
        .set(vec![Rule::new(Requests::all(), Fault::Close)]);
    served.start_again().await?;
    served.says("watching Service has failed", "").await;
    served.forwards()?;
    served.faulty.clear();
    served.recovered().await?;
    served.forwards()
}

#[apply(cluster_test)]
async fn a_silent_watch_is_noticed_and_begun_again() -> Result<()> {
    let cluster = cluster().await?;
    let mut served = served(&cluster, "n5").await?;
    let silent = Fault::Watch(WatchFault::Silent);
    served
        .faulty
        .set(vec![Rule::new(watches("services"), silent).times(1)]);
    served.suffered(&watches("services"), 1).await;
    let port = served.scope.free_port()?;
    let service = on_node(&served.scope, "unheard", port, &served.node).await?;
    // No bookmark, no event and no end: nothing else says that it is dead.
    let (client, to) = (cluster.outside(), served.node.v4(port));
    wait_for("the unheard Service", NOTICED, || async {
        client.http_get(to, SHORT)
    })
    .await;
    // What comes first proves that it works again, so `/readyz` says it for a moment only.
    let errors = "highwire_agent_watch_errors_total{kind=\"Service\"}";
    ensure!(served.program.metric(errors)? >= 1.0, "it was not counted");
    listed(&service, &served.node).await;
    served.lives()?;
    served.recovered().await
}
