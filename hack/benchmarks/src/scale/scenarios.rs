//! What is done to the cluster, and how long it takes until every status is final.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use highwire_e2e::lab::wait::try_wait_for;
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::time::sleep;

use super::nodes;
use super::services::{self, Ports};
use super::simulation::Simulation;
use super::size::Size;
use super::step::Step;
use super::view::{Shown, View};
use crate::output::stats::Sample;

/// How many nodes a Service lists at most: `--max-addresses` of the controller.
const LISTED: usize = 64;
/// Nothing is waited for longer.
const LIMIT: Duration = Duration::from_secs(400);
/// How long nothing is done in [`idle`]: several renewals of every Lease.
const PAUSE: Duration = Duration::from_secs(16);
/// How long agents take to start, one after the other: as long as a renewal lasts, so that
/// their renewals are spread over it.
const START: Duration = Duration::from_secs(4);
/// The same in [`started`]: many renewals.
const SLOW_START: Duration = Duration::from_secs(60);
/// Services made one after the other in [`one`].
const SINGLE: usize = 5;
/// An agent's Lease is good for 12 s; then its node may leave.
const SILENT: Duration = Duration::from_secs(15);
/// The port that all want in [`one_port`].
const PORT: u16 = 9000;
/// Most Services in [`fan_out`], since each of its watches lists them all first, and in
/// [`node_loss`], which writes most of them twice.
const MOST: usize = 1000;
/// Conflicts in [`one_port`], of all nodes together: each node writes each of its own into its
/// report, so both grow with the square.
const CONFLICTS: usize = 10_000;
/// Most watches in [`fan_out`].
const WATCHES: usize = 100;

/// All Services are created.
pub(super) const BURST: &str = "all Services at once";
/// All agents start, with all Services there.
pub(super) const STARTED: &str = "all agents start";
/// Nothing is done.
pub(super) const IDLE: &str = "nothing";
/// One Service after the other is created.
pub(super) const ONE: &str = "one Service";
/// Services change in what no node needs.
pub(super) const CHANGES: &str = "changes seen by agents";
/// A node is lost.
pub(super) const LOST: &str = "a node is lost";
/// The leading controller is killed.
pub(super) const KILLED: &str = "the leading controller is killed";
/// The API server is killed and started.
pub(super) const RESTARTED: &str = "the API server restarts";
/// Half of the nodes are lost.
pub(super) const HALF_LOST: &str = "half of the nodes are lost";
/// They are back.
pub(super) const HALF_BACK: &str = "they are back";
/// Many Services want one port.
pub(super) const ONE_PORT: &str = "one port for many";

/// The steps by name, in order.
pub(super) type Steps = Vec<(String, Step)>;

/// Which of the steps are done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope {
    /// The agents are there before the Services, which come all at once; if not, the other way
    /// round.
    pub(super) at_once: bool,
    /// Failures, and one port for many.
    pub(super) trouble: bool,
}

/// Does them.
pub(super) async fn run(simulation: &Simulation, size: Size, scope: Scope) -> Result<Steps> {
    let mut steps = Steps::new();
    let mut add = |name: &str, step: Step| {
        eprintln!(
            "scale {size}: {name}: {:.1} s {:?}",
            step.lasted, step.figures
        );
        steps.push((name.to_owned(), step));
    };
    if scope.at_once {
        simulation.start_all(START).await?;
        add(BURST, burst(simulation, size).await?);
    } else {
        add(STARTED, started(simulation, size).await?);
    }
    add(IDLE, idle(simulation).await?);
    add(ONE, one(simulation).await?);
    if size.services <= MOST {
        add(CHANGES, fan_out(simulation, size).await?);
        add(LOST, node_loss(simulation, size).await?);
    }
    if scope.trouble {
        add(KILLED, controller_killed(simulation).await?);
        add(RESTARTED, api_server_restarts(simulation).await?);
        let (lost, back) = half_lost(simulation, size).await?;
        add(HALF_LOST, lost);
        add(HALF_BACK, back);
        add(ONE_PORT, one_port(simulation, size).await?);
    }
    Ok(steps)
}

/// How many addresses each Service has when `nodes` serve.
fn listed(nodes: usize) -> usize {
    nodes.min(LISTED)
}

fn is_served(nodes: usize) -> impl Fn(&Shown) -> bool {
    move |shown| shown.addresses.len() == listed(nodes)
}

fn median(values: impl IntoIterator<Item = f64>) -> Result<Sample> {
    Sample::new(values.into_iter().collect()).context("nothing was measured")
}

/// Waits until all Services have their addresses. Returns when they had, and how many seconds
/// after the last report that was.
async fn all_served(view: &View, size: Size) -> Result<(Instant, f64)> {
    let all = ("web", size.services);
    let settled = view
        .settled("all addresses", all, LIMIT, is_served(size.nodes))
        .await?;
    let last = view.last_report().unwrap_or(settled);
    let after = settled.saturating_duration_since(last);
    Ok((settled, after.as_secs_f64()))
}

async fn burst(simulation: &Simulation, size: Size) -> Result<Step> {
    let (view, before) = (&simulation.view, simulation.moment().await?);
    let (decisions, start) = (*simulation.decisions.borrow(), Instant::now());
    let reports = simulation.traffic.of("PATCH loadbalancernodes/status");
    let created = services::create(&simulation.client, "web", size.services, Ports::Own).await?;
    let accepted = start.elapsed();
    let (settled, after) = all_served(view, size).await?;
    let created: BTreeMap<String, Instant> = created.into_iter().collect();
    let waited = view
        .services("web")
        .into_iter()
        .filter_map(|(name, shown)| {
            let first = shown.first?.saturating_duration_since(*created.get(&name)?);
            Some(first.as_secs_f64())
        });
    let waited = median(waited)?;
    let reports = simulation.traffic.of("PATCH loadbalancernodes/status") - reports;
    let decided = *simulation.decisions.borrow();
    Ok(simulation
        .since(&before)
        .await?
        .with("accepted", accepted.as_secs_f64())
        .with("settled", settled.duration_since(start).as_secs_f64())
        .with("settled after the last report", after)
        .with("first address, p50", waited.median())
        .with("first address, p99", waited.percentile(0.99))
        .with("reports", reports as f64)
        .with("decisions", (decided.1 - decisions.1) as f64)
        .with("deciding", (decided.0 - decisions.0).as_secs_f64()))
}

/// The Services are there when the agents start.
async fn started(simulation: &Simulation, size: Size) -> Result<Step> {
    services::create(&simulation.client, "web", size.services, Ports::Own).await?;
    let (view, before) = (&simulation.view, simulation.moment().await?);
    let (decisions, start) = (*simulation.decisions.borrow(), Instant::now());
    simulation.start_all(SLOW_START).await?;
    let reported = start.elapsed();
    let (settled, after) = all_served(view, size).await?;
    let decided = *simulation.decisions.borrow();
    Ok(simulation
        .since(&before)
        .await?
        .with("all have reported", reported.as_secs_f64())
        .with("settled", settled.duration_since(start).as_secs_f64())
        .with("settled after the last report", after)
        .with("decisions", (decided.1 - decisions.1) as f64)
        .with("deciding", (decided.0 - decisions.0).as_secs_f64()))
}

async fn idle(simulation: &Simulation) -> Result<Step> {
    let before = simulation.moment().await?;
    let leases = simulation.traffic.of("PUT leases");
    sleep(PAUSE).await;
    let leases = (simulation.traffic.of("PUT leases") - leases) as f64;
    let step = simulation.since(&before).await?;
    let rate = leases / step.lasted / simulation.count() as f64;
    Ok(step.with("Leases per second and node", rate))
}

/// Creates one Service and waits. Returns the seconds until its status was final, and how
/// many of them had passed since the last node reported.
async fn create_one(simulation: &Simulation, name: &str, nodes: usize) -> Result<(f64, f64)> {
    let (view, start) = (&simulation.view, Instant::now());
    // Ports are counted from the first again; this one is below them.
    let port = Ports::One(8000 + u16::try_from(view.services("one").len())?);
    services::create(&simulation.client, name, 1, port).await?;
    let settled = view
        .settled(name, (name, 1), LIMIT, is_served(nodes))
        .await?;
    let last = view.last_report().unwrap_or(start).max(start);
    let after = settled.saturating_duration_since(last);
    let took = settled.saturating_duration_since(start);
    Ok((took.as_secs_f64(), after.as_secs_f64()))
}

async fn one(simulation: &Simulation) -> Result<Step> {
    let before = simulation.moment().await?;
    let (mut all, mut afterwards, mut changes) = (Vec::new(), Vec::new(), 0);
    for number in 0..SINGLE {
        let name = format!("one-{number}");
        let (took, after) = create_one(simulation, &name, simulation.count()).await?;
        all.push(took);
        afterwards.push(after);
        let shown = simulation.view.services(&name);
        changes += shown.iter().map(|(_, shown)| shown.writes).sum::<usize>();
    }
    let (all, afterwards) = (median(all)?, median(afterwards)?);
    Ok(simulation
        .since(&before)
        .await?
        .with("final, median", all.median())
        .with("final, most", all.max())
        .with("after the last report, most", afterwards.max())
        .with("status writes each", changes as f64 / SINGLE as f64))
}

/// Changes an annotation of Services with and without more watches, to see what an event
/// costs the API server for each agent that watches.
async fn fan_out(simulation: &Simulation, size: Size) -> Result<Step> {
    let count = size.services;
    let watches = size.nodes.min(WATCHES);
    let alone = annotate(simulation, count, "alone").await?;
    let open = simulation.more_watches(watches).await?;
    // They begin with all Services that there are.
    sleep(Duration::from_secs(3)).await;
    let step = annotate(simulation, count, "watched").await?;
    drop(open);
    let cpu = |step: &Step| step.process("kube-apiserver").cpu;
    let each = (cpu(&step) - cpu(&alone)) / (count * watches) as f64;
    Ok(step
        .with("watches", watches as f64)
        .with("µs per event and watch", each * 1e6))
}

async fn annotate(simulation: &Simulation, count: usize, value: &str) -> Result<Step> {
    let before = simulation.moment().await?;
    let services: Api<Service> = Api::namespaced(simulation.client.clone(), services::NAMESPACE);
    let patch = json!({ "metadata": { "annotations": { "highwire-bench/touched": value } } });
    for index in 0..count {
        let patch = Patch::Merge(&patch);
        let name = format!("web-{index:05}");
        services
            .patch(&name, &PatchParams::default(), &patch)
            .await?;
    }
    sleep(Duration::from_secs(1)).await;
    simulation.since(&before).await
}

async fn node_loss(simulation: &Simulation, size: Size) -> Result<Step> {
    let (view, lost) = (&simulation.view, 0);
    let before = simulation.moment().await?;
    let start = Instant::now();
    simulation.lose(&[lost]).await?;
    let address = nodes::address(lost);
    let is_out = |shown: &Shown| !shown.addresses.contains(&address);
    let listing = view
        .services("web")
        .iter()
        .filter(|(_, shown)| !is_out(shown))
        .count();
    let all = ("web", size.services);
    let settled = if size.nodes > 1 {
        view.settled("the lost node to leave", all, LIMIT, is_out)
            .await?
    } else {
        start
    };
    let step = simulation.since(&before).await?;
    simulation.start_agents([lost], START).await?;
    let back = is_served(size.nodes);
    view.settled("the node to be back", all, LIMIT, back)
        .await?;
    Ok(step
        .with("settled", settled.duration_since(start).as_secs_f64())
        .with("Services that listed it", listing as f64))
}

async fn controller_killed(simulation: &Simulation) -> Result<Step> {
    let before = simulation.moment().await?;
    let leader = simulation.leader().await?;
    leader.kill()?;
    let (took, _) = create_one(simulation, "one-killed", simulation.count()).await?;
    let own = simulation.view.services("one-killed");
    let own: usize = own.iter().map(|(_, shown)| shown.writes).sum();
    leader.unit().start_again()?;
    let start = Instant::now();
    leader.wait_ready(LIMIT).await?;
    let ready = start.elapsed();
    let step = simulation.since(&before).await?;
    let others = step.status_changes - own;
    Ok(step
        .with("a new Service is final", took)
        .with("the killed one is ready again", ready.as_secs_f64())
        .with("status writes to others", others as f64))
}

async fn api_server_restarts(simulation: &Simulation) -> Result<Step> {
    let before = simulation.moment().await?;
    let (server, start) = (simulation.cluster.unit("kube-apiserver"), Instant::now());
    server.kill()?;
    server.start_again()?;
    try_wait_for("the API server to be ready", LIMIT, || async {
        if !server.is_running() {
            // As its kubelet would.
            eprintln!("the API server has ended:\n{}", server.tail(30));
            server.start_again()?;
        }
        let request = http::Request::get("/readyz").body(Vec::new())?;
        let answer = tokio::time::timeout(
            Duration::from_secs(1),
            simulation.client.request_text(request),
        );
        anyhow::Ok(answer.await??)
    })
    .await?;
    let ready = start.elapsed();
    let (took, _) = create_one(simulation, "one-restarted", simulation.count()).await?;
    let own = simulation.view.services("one-restarted");
    let own: usize = own.iter().map(|(_, shown)| shown.writes).sum();
    // As long as it takes until silent agents would count as dead.
    sleep(SILENT).await;
    let step = simulation.since(&before).await?;
    let others = step.status_changes - own;
    Ok(step
        .with("ready", ready.as_secs_f64())
        .with("a new Service is final", took)
        .with("status writes to others", others as f64))
}

async fn half_lost(simulation: &Simulation, size: Size) -> Result<(Step, Step)> {
    let (view, all) = (&simulation.view, ("web", size.services));
    let lost: Vec<usize> = (0..size.nodes).filter(|index| index % 2 == 1).collect();
    let gone: BTreeSet<IpAddr> = lost.iter().map(|index| nodes::address(*index)).collect();
    let left = listed(size.nodes - lost.len());
    let before = simulation.moment().await?;
    simulation.lose(&lost).await?;
    sleep(SILENT).await;
    let silent = simulation.since(&before).await?.status_changes;
    let start = Instant::now();
    nodes::set_ready(&simulation.client, &lost, false).await?;
    let written = start.elapsed();
    let is_out =
        |shown: &Shown| shown.addresses.len() == left && shown.addresses.is_disjoint(&gone);
    let settled = view
        .settled("the lost nodes to leave", all, LIMIT, is_out)
        .await?;
    let step = simulation
        .since(&before)
        .await?
        .with("status writes while only silent", silent as f64)
        .with("all Nodes are marked", written.as_secs_f64())
        .with("settled", settled.duration_since(start).as_secs_f64());

    let before = simulation.moment().await?;
    let start = Instant::now();
    nodes::set_ready(&simulation.client, &lost, true).await?;
    simulation.start_agents(lost, START).await?;
    let back = is_served(size.nodes);
    let settled = view
        .settled("the nodes to be back", all, LIMIT, back)
        .await?;
    let back = simulation.since(&before).await?;
    Ok((
        step,
        back.with("settled", settled.duration_since(start).as_secs_f64()),
    ))
}

async fn one_port(simulation: &Simulation, size: Size) -> Result<Step> {
    let count = (CONFLICTS / size.nodes).min(size.services);
    let (view, before) = (&simulation.view, simulation.moment().await?);
    let reports = simulation.traffic.of("PATCH loadbalancernodes/status");
    let start = Instant::now();
    services::create(&simulation.client, "rival", count, Ports::One(PORT)).await?;
    let accepted = start.elapsed();
    // Nodes that see them in another order give it to others; both keep it.
    let is_done = |shown: &Shown| shown.refused || !shown.addresses.is_empty();
    let settled = view
        .settled("one to be served", ("rival", count), LIMIT, is_done)
        .await?;
    let rivals = view.services("rival");
    let served = rivals
        .iter()
        .filter(|(_, shown)| !shown.addresses.is_empty());
    let reports = simulation.traffic.of("PATCH loadbalancernodes/status") - reports;
    Ok(simulation
        .since(&before)
        .await?
        .with("Services", count as f64)
        .with("accepted", accepted.as_secs_f64())
        .with("settled", settled.duration_since(start).as_secs_f64())
        .with("served", served.count() as f64)
        .with("reports", reports as f64))
}
