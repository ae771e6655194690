//! Wires the agent together and keeps it running.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use highwire_api::Protocol;
use highwire_runtime::{
    admin::{Admin, AdminError, Refresh},
    client,
    heartbeat::Heartbeat,
    signals,
    watch::{WatchHealth, follow, paged},
};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::Api;
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tracing::info;

use crate::{
    config::Config,
    deletions,
    host::{addresses, listeners, proxy, table_events},
    kernel::Kernel,
    lifecycle::Lifecycle,
    metrics::Metrics,
    programmer::{Input, Programmer},
    report::Report,
    reporter::Reporter,
    udp::{self, Cleaner},
};

/// Enough for a burst; beyond it the watches wait for the programmer.
const INPUTS: usize = 1024;

const PROXY_LOOK: Duration = Duration::from_secs(10);
const PROXY_SEARCH: Duration = Duration::from_secs(2);

/// Runs until asked to stop.
///
/// # Errors
/// If something the agent cannot do without is missing at start, or a task that
/// must live forever ends.
pub async fn run(config: Config) -> Result<()> {
    let stop = signals::listen().context("cannot listen for signals")?;
    let kernel = Kernel::new(config.nft.clone());
    let nft_version = kernel.probe().await?;
    let metrics = Metrics::new()?;
    let admin = match Admin::bind(&config.admin).await {
        Ok(admin) => admin.refreshed_by(read_counters(&kernel, &metrics)),
        Err(error) => {
            let holder = port_holder(&error);
            return Err(error).context(holder);
        }
    };
    let heard = Heartbeat::default();
    let client = client::client(&client::config().await?, &heard, None)?;
    metrics.registry.register(Box::new(client::Silence::new(
        "highwire_agent_api_server_silence_seconds",
        heard.clone(),
    )?))?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        node = config.node_name,
        nft = nft_version,
        listen = ?config.admin,
        "agent starts"
    );

    let health = WatchHealth::new(metrics.watch_errors.clone());
    let heartbeat = Heartbeat::default();
    let (inputs, received) = mpsc::channel(INPUTS);
    let (reports, reported) = watch::channel(None);
    let (frontends, served) = watch::channel(None);
    let programmer = Programmer::new(
        &config,
        kernel.clone(),
        metrics.clone(),
        heartbeat.clone(),
        reports,
        frontends,
    );
    // Of Services that went while no agent ran, UDP flows may be left.
    let left = kernel.elements().await?.unwrap_or_default();
    let taken = udp::taken_by(&left);
    let cleaner = Cleaner::new(
        client.clone(),
        config.node_name.clone(),
        health.clone(),
        metrics.clone(),
        taken,
    );
    let problems = {
        let (reported, health, node) = (reported.clone(), health.clone(), config.node_name.clone());
        Arc::new(move || {
            let problems = problems(reported.borrow().as_ref(), &health, &node);
            client::silence(&heard)
                .into_iter()
                .chain(problems)
                .collect()
        })
    };

    // All Services, for what kube-proxy serves of the others on the node's addresses:
    // NodePorts, and externalIPs, which Services of type ClusterIP have too.
    let services = paged();
    let own_pods = paged().fields(&format!("spec.nodeName={}", config.node_name));
    let own_node = paged().fields(&format!("metadata.name={}", config.node_name));
    let lifecycle = Lifecycle::new(client.clone(), &config);
    let reporter = Reporter::new(&client, &config, lifecycle.node(), metrics.clone());
    let (deleted, own_deletions) = mpsc::channel(1);
    let (addresses, found_addresses) = mpsc::channel(1);
    let (table_events, found_table_events) = mpsc::channel(INPUTS);

    let ended = tokio::select! {
        () = follow("Service", Api::<Service>::all(client.clone()), services, health.clone(),
            inputs.clone(), |event| Input::Service(Box::new(event))) => "watching Services",
        () = follow("Node", Api::<Node>::all(client.clone()), own_node.clone(), health.clone(),
            inputs.clone(), |event| {
                lifecycle.observe_node(&event);
                Input::Node(Box::new(event))
            }) => "watching the Node",
        () = follow("Pod", Api::<Pod>::all(client.clone()), own_pods, health.clone(),
            inputs.clone(), |event| {
                lifecycle.observe_pod(&event);
                Input::Pod(Box::new(event))
            }) => "watching the node's Pods",
        () = lifecycle.follow(&health) => "watching the Namespace",
        () = deletions::follow(&client, own_node, &health, deleted) => "watching the node's report",
        result = addresses::follow(addresses) => {
            result.context("cannot follow the host's addresses")?;
            "following the host's addresses"
        }
        () = pass_on(found_addresses, &inputs, Input::HostAddresses) => "following the host's addresses",
        () = follow_proxy(&inputs) => "looking at kube-proxy",
        result = table_events::follow(table_events) => {
            result.context("cannot listen to nftables' notifications")?;
            "listening to nftables"
        }
        () = pass_on(found_table_events, &inputs, Input::Table) => "listening to nftables",
        () = programmer.run(received) => "programming nftables",
        () = cleaner.run(served) => "cleaning up UDP flows",
        () = reporter.run(reported, own_deletions) => "reporting",
        () = admin.serve(metrics.registry.clone(), heartbeat, problems) => {
            "serving health and metrics"
        }
        // Until it is clear what stays, the node goes on serving.
        reason = lifecycle.stop_reason(signals::asked_to_stop(stop.clone())) => {
            lifecycle.stop(reason, &kernel).await;
            signals::asked_to_stop(stop).await;
            return Ok(());
        }
    };
    bail!("{ended} ended, which must never happen");
}

/// Reads the kernel's counters of connections, which only who looks at them needs.
fn read_counters(kernel: &Kernel, metrics: &Metrics) -> Refresh {
    let (kernel, metrics) = (kernel.clone(), metrics.clone());
    Arc::new(move || {
        let (kernel, metrics) = (kernel.clone(), metrics.clone());
        Box::pin(async move {
            if let Ok(counters) = kernel.counters().await {
                metrics.show_connections(&counters);
            }
        })
    })
}

/// Looks at kube-proxy, more often while there is no sign of it.
async fn follow_proxy(inputs: &mpsc::Sender<Input>) {
    let mut told = None;
    loop {
        let mode = proxy::detect(told.flatten()).await;
        if told != Some(mode) && inputs.send(Input::Proxy(mode)).await.is_err() {
            return;
        }
        told = Some(mode);
        sleep(if mode.is_some() {
            PROXY_LOOK
        } else {
            PROXY_SEARCH
        })
        .await;
    }
}

async fn pass_on<T>(
    mut from: mpsc::Receiver<T>,
    to: &mpsc::Sender<Input>,
    wrap: impl Fn(T) -> Input,
) {
    while let Some(found) = from.recv().await {
        if to.send(wrap(found)).await.is_err() {
            return;
        }
    }
}

/// Who has the port that the agent itself wanted, in words.
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

/// What keeps the agent from being ready, each in words.
fn problems(report: Option<&Report>, health: &WatchHealth, node: &str) -> Vec<String> {
    let mut problems = health.problems();
    match report {
        None if problems.is_empty() => problems.push(format!(
            "nothing programmed yet: waiting for Services and for Node {node:?}; \
             is that its name in `kubectl get nodes`?"
        )),
        None => problems.push("nothing programmed yet".to_owned()),
        Some(report) if !report.readiness.is_ready() => {
            problems.push(format!(
                "{}: {}",
                report.readiness.reason(),
                report.readiness
            ));
        }
        Some(_) => {}
    }
    problems
}
