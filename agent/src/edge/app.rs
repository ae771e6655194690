//! Wires the agent on a box together and keeps it running.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use highwire_api::external::{ExternalLoadBalancer, LoadBalancer};
use highwire_runtime::{
    admin::{self, Admin},
    client,
    heartbeat::Heartbeat,
    signals,
    watch::{WatchHealth, follow, follow_object, paged},
};
use kube::{Api, core::DeserializeGuard};
use tokio::sync::{mpsc, watch};
use tracing::info;

use super::{
    decide::BoxPolicy,
    edge_loop::{EdgeLoop, Input},
    report,
};
use crate::{
    app::read_counters,
    config::EdgeConfig,
    explain::route,
    facts::{addresses, host::Host},
    metrics::Metrics,
    start,
    table::{DataPath, KernelTable, Nft, notifications},
    udp::{self, Cleaner},
};

/// Enough for a burst; beyond it the watches wait for the loop.
const INPUTS: usize = 1024;

/// Runs until asked to stop. Rules stay, so that a restart interrupts nothing;
/// `highwire-agent cleanup` removes them.
///
/// # Errors
/// If something the agent cannot do without is missing at start, or a task that must live
/// forever ends.
pub async fn run(config: EdgeConfig) -> Result<()> {
    let stop = signals::listen().context("cannot listen for signals")?;
    let nft = Nft::new(config.nft).within(config.nft_timeout);
    let metrics = Metrics::new()?;
    // What was counted before is not of this agent's time.
    metrics.read_connections().await;
    metrics
        .lease_duration
        .set(config.lease_duration.as_secs_f64());
    let sockets = admin::sockets(&config.listen_address, config.port);
    let (ask, questions) = mpsc::channel(route::QUESTIONS);
    let admin = Admin::bind(&sockets)
        .await?
        .refreshed_by(read_counters(&metrics))
        .answering_locally(route::routes(ask, nft.clone()));
    let ask_nft = async || start::ask(&nft, &[DataPath::Direct]).await;
    let started = start::until_answered(ask_nft().await, ask_nft, |_| {}).await?;
    let heard = Heartbeat::default();
    let client = client::client(&client::config().await?, &heard, None)?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        name = config.name,
        nft = started.version,
        listen = ?sockets,
        "agent of a box starts"
    );
    let health = WatchHealth::new(metrics.watch_errors.clone());
    metrics.add_connection(&health, &heard)?;
    let heartbeat = Heartbeat::default();
    let (inputs, received) = mpsc::channel(INPUTS);
    let (wanted, to_write) = watch::channel(report::Wanted::new());
    let (frontends, served) = watch::channel(None);
    let (problem, has_problem) = watch::channel(Some("nothing programmed yet".to_owned()));
    let edge_loop = EdgeLoop {
        name: config.name.clone(),
        policy: BoxPolicy {
            address_cidr: config.address_cidr,
            reserved_ports: config.reserved_ports,
            keeps_client: config.no_masquerade,
        },
        table: KernelTable::new(nft, metrics.clone()),
        host: Host::new(config.listener_hold_down),
        wanted,
        questions,
        decision: None,
        udp: frontends,
        problem,
        metrics: metrics.clone(),
        heartbeat: heartbeat.clone(),
    };
    let problems = {
        let health = health.clone();
        Arc::new(move || {
            let mut all = health.problems();
            all.extend(client::silence(&heard));
            all.extend(has_problem.borrow().clone());
            all
        })
    };
    // Services may have been deleted while no agent ran: UDP flows to them may be left.
    let cleaner = Cleaner::new(
        client.clone(),
        config.name.clone(),
        health.clone(),
        metrics.clone(),
        udp::taken_by(&started.left),
    );
    let externals = Api::<ExternalLoadBalancer>::all(client.clone());
    let load_balancers = Api::<DeserializeGuard<LoadBalancer>>::all(client.clone());
    let ended = tokio::select! {
        () = follow_object("ExternalLoadBalancer", externals, &config.name, health.clone(),
            inputs.clone(), |object| Input::External(object.map(Box::new))) => {
            "watching the ExternalLoadBalancer"
        }
        () = follow("LoadBalancer", load_balancers, paged(), health.clone(), inputs.clone(),
            |event| Input::LoadBalancer(Box::new(event))) => "watching LoadBalancers",
        result = addresses::follow(inputs.clone(), Input::Addresses) => {
            result.context("cannot follow the host's addresses")?;
            "following the host's addresses"
        }
        result = notifications::follow(inputs.clone(), Input::Table) => {
            result.context("cannot listen to nftables' notifications")?;
            "listening to nftables"
        }
        () = edge_loop.run(received) => "programming nftables",
        () = cleaner.run(served) => "cleaning up UDP flows",
        () = report::write(client.clone(), to_write, metrics.clone()) => "reporting",
        () = report::renew(client.clone(), config.namespace.clone(), config.name.clone(),
            config.lease_duration, metrics.clone()) => "renewing the Lease",
        () = admin.serve(metrics.registry.clone(), heartbeat, problems) => {
            "serving health and metrics"
        }
        () = signals::asked_to_stop(stop) => return Ok(()),
    };
    bail!("{ended} ended, which must never happen");
}
