//! Wires the agent together and keeps it running.

use std::{collections::BTreeSet, pin::pin, sync::Arc};

use anyhow::{Context, Result, bail};
use highwire_api::{LoadBalancerNode, Protocol, node::ProxyMode};
use highwire_runtime::{
    admin::{self, Admin, AdminError, Refresh},
    client,
    heartbeat::Heartbeat,
    signals,
    watch::{WatchHealth, follow, follow_object, paged},
};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::{Api, core::DeserializeGuard};
use tokio::sync::{mpsc, watch};
use tracing::info;

use crate::{
    agent_loop::{AgentLoop, Input},
    config::Config,
    explain::route,
    facts::{
        News, addresses,
        endpoints::{watch_slices, while_needed},
        listeners,
        service_proxy::{self, Expected},
    },
    leave::Lifecycle,
    metrics::Metrics,
    report::{Report, writer::Writer},
    start::{self, Started, until_answered},
    table::{DataPath, Nft, notifications},
    udp::{self, Cleaner},
};

/// Enough for a burst; beyond it the watches wait for the loop.
const INPUTS: usize = 1024;

/// Runs until asked to stop.
///
/// # Errors
/// If something the agent cannot do without is missing at start, or a task that
/// must live forever ends.
pub async fn run(config: Config) -> Result<()> {
    let stop = signals::listen().context("cannot listen for signals")?;
    let nft = Nft::new(config.nft.clone()).within(config.nft_timeout);
    // Before anything else: what nft refuses for good ends the agent with the remedy.
    let paths: &[DataPath] = match config.service_proxy {
        Expected::None => &[DataPath::Direct],
        Expected::Auto | Expected::KubeProxy => &DataPath::BESIDE_PROXY,
    };
    let answer = match start::ask(&nft, paths).await {
        Err(error) if !error.is_late() => return Err(error.into()),
        answer => answer,
    };
    let metrics = Metrics::new()?;
    // What was counted before is not of this agent's time.
    metrics.read_connections().await;
    metrics
        .lease_duration
        .set(config.lease_duration.as_secs_f64());
    let sockets = admin::sockets(&config.listen_address, config.port);
    let (ask, questions) = mpsc::channel(route::QUESTIONS);
    let admin = match Admin::bind(&sockets).await {
        Ok(admin) => admin
            .refreshed_by(read_counters(&metrics))
            .answering_locally(route::routes(ask, nft.clone())),
        Err(error) => {
            let holder = port_holder(&error);
            return Err(error).context(holder);
        }
    };
    let heard = Heartbeat::default();
    let client = client::client(&client::config().await?, &heard, None)?;
    let health = WatchHealth::new(metrics.watch_errors.clone());
    metrics.add_connection(&health, &heard)?;
    let heartbeat = Heartbeat::default();
    let (inputs, received) = mpsc::channel(INPUTS);
    let (reports, reported) = watch::channel(None);
    let (frontends, served) = watch::channel(None);
    let agent_loop = AgentLoop::new(
        &config,
        nft.clone(),
        metrics.clone(),
        heartbeat.clone(),
        reports,
        frontends,
        questions,
    );
    let (slow_nft, nft_is_slow) = watch::channel(None);
    let problems = {
        let (reported, health, node) = (reported.clone(), health.clone(), config.node_name.clone());
        Arc::new(move || {
            let problems = problems(reported.borrow().as_ref(), &health, &node);
            let slow: Option<String> = nft_is_slow.borrow().clone();
            slow.into_iter()
                .chain(client::silence(&heard))
                .chain(problems)
                .collect()
        })
    };
    let mut serving = pin!(admin.serve(metrics.registry.clone(), heartbeat.clone(), problems));

    let node = config.node_name.as_str();
    let lifecycle = Lifecycle::new(client.clone(), &config);
    let Started { version, left } = tokio::select! {
        started = until_answered(answer, async || start::ask(&nft, paths).await, |error| {
            heartbeat.beat();
            slow_nft.send_replace(Some(error.to_string()));
        }) => started?,
        () = &mut serving => bail!("serving health and metrics ended, which must never happen"),
        reason = lifecycle.stop_reason(signals::asked_to_stop(stop.clone())) => {
            lifecycle.stop(reason, &nft).await;
            return Ok(());
        }
    };
    slow_nft.send_replace(None);
    info!(
        version = env!("CARGO_PKG_VERSION"),
        node = config.node_name,
        nft = version,
        listen = ?sockets,
        "agent starts"
    );
    // Services may have been deleted while no agent ran: UDP flows to them may be left.
    let cleaner = Cleaner::new(
        client.clone(),
        config.node_name.clone(),
        health.clone(),
        metrics.clone(),
        udp::taken_by(&left),
    );
    let writer = Writer::new(&client, &config, lifecycle.node(), metrics.clone());
    let (report_exists, exists) = mpsc::channel(16);
    // All Services, for what kube-proxy serves of the others on the node's addresses:
    // NodePorts, and externalIPs, which Services of type ClusterIP have too.
    let services = Api::<Service>::all(client.clone());
    let pods = Api::<Pod>::all(client.clone());
    let own_pods = paged().fields(&format!("spec.nodeName={node}"));
    let nodes = Api::<Node>::all(client.clone());
    // Only whether it exists matters, so a report that cannot be parsed is fine.
    let node_reports = Api::<DeserializeGuard<LoadBalancerNode>>::all(client.clone());

    let (pick_pods, picks_pods) = watch::channel(false);

    let ended = tokio::select! {
        () = follow("Service", services, paged(), health.clone(), inputs.clone(),
            |event| Input::News(News::Service(Box::new(event)))) => "watching Services",
        () = follow_object("Node", nodes, node, health.clone(), inputs.clone(),
            |node: Option<Node>| {
                lifecycle.observe_node(node.as_ref());
                Input::News(News::Node(node.map(Box::new)))
            }) => "watching the Node",
        () = follow("Pod", pods, own_pods, health.clone(), inputs.clone(), |event| {
                lifecycle.observe_pod(&event);
                Input::News(News::Pod(Box::new(event)))
            }) => "watching the node's Pods",
        () = lifecycle.follow(&health) => "watching the Namespace",
        () = follow_object("LoadBalancerNode", node_reports, node, health.clone(),
            report_exists, |report| report.is_some()) => "watching the node's report",
        result = addresses::follow(inputs.clone(), |found| Input::News(News::Addresses(found))) => {
            result.context("cannot follow the host's addresses")?;
            "following the host's addresses"
        }
        () = service_proxy::follow(config.service_proxy, inputs.clone(), |proxy| {
            pick_pods.send_replace(proxy.mode == Some(ProxyMode::Absent));
            Input::News(News::Proxy(proxy))
        }) => "following kube-proxy",
        () = while_needed(picks_pods, async || {
            watch_slices(&client, health.clone(), inputs.clone(), |event| {
                Input::News(News::EndpointSlice(Box::new(event)))
            }).await;
        }) => "watching EndpointSlices",
        result = notifications::follow(inputs.clone(), Input::Table) => {
            result.context("cannot listen to nftables' notifications")?;
            "listening to nftables"
        }
        () = agent_loop.run(received) => "programming nftables",
        () = cleaner.run(served) => "cleaning up UDP flows",
        () = writer.run(reported, exists) => "reporting",
        () = serving => "serving health and metrics",
        // The node goes on serving until it is clear whether the rules stay.
        reason = lifecycle.stop_reason(signals::asked_to_stop(stop.clone())) => {
            lifecycle.stop(reason, &nft).await;
            signals::asked_to_stop(stop).await;
            return Ok(());
        }
    };
    bail!("{ended} ended, which must never happen");
}

/// Reads the kernel's counters of connections when the metrics are read.
pub(crate) fn read_counters(metrics: &Metrics) -> Refresh {
    let metrics = metrics.clone();
    Arc::new(move || {
        let metrics = metrics.clone();
        Box::pin(async move { metrics.read_connections().await })
    })
}

/// A text: who has the admin port that the agent cannot bind.
fn port_holder(error: &AdminError) -> String {
    let found = listeners::scan().unwrap_or_default();
    let holder = found.iter().find(|listener| {
        listener.protocol == Protocol::Tcp
            && listener.bound.port() == error.address.port()
            && (listener.device.is_some()
                || listener.covers(error.address.ip(), &BTreeSet::new())
                || error.address.ip().is_unspecified())
    });
    match holder {
        Some(holder) => match listeners::program(holder.inode) {
            Some(program) => format!("the port is held by {holder} ({program})"),
            None => format!("the port is held by {holder}"),
        },
        None => "the admin port cannot be had".to_owned(),
    }
}

/// The texts of `/readyz`: what keeps the agent from being ready.
fn problems(report: Option<&Report>, health: &WatchHealth, node: &str) -> Vec<String> {
    let mut problems = health.problems();
    match report {
        None if problems.is_empty() => problems.push(format!(
            "nothing programmed yet: waiting for Services and for Node {node:?}; \
             is that its name in `kubectl get nodes`?"
        )),
        None => problems.push("nothing programmed yet".to_owned()),
        Some(report) if !report.readiness().is_ready() => {
            let readiness = report.readiness();
            problems.push(format!("{}: {readiness}", readiness.reason()));
        }
        Some(_) => {}
    }
    problems
}
