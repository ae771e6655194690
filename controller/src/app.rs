//! Wires the controller together and keeps it running.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use highwire_runtime::{
    admin::{self, Admin},
    client,
    heartbeat::Heartbeat,
    signals,
    uninstall::{Installation, Presence, StopReason},
    watch::WatchHealth,
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tracing::{info, warn};

use crate::{
    config::Config,
    election::{self, Election},
    event_loop::EventLoop,
    events,
    explain::{self, Questions},
    external::{edges::Edges, keeper::Keeper, objects::Objects},
    leading::Role,
    metrics::Metrics,
    reconciler::Reconciler,
    watches,
    writer::Writer,
};

/// Enough for a burst; beyond it the watches wait for the loop. Whole objects wait here.
const INPUTS: usize = 64;

/// Enough for a burst of new Services; beyond it Events are dropped and counted.
const EVENTS: usize = 4096;

/// The deadline of a write, and of an Event.
const WRITING: Duration = Duration::from_secs(10);

/// How long Events that wait may still be sent, and the Lease be given up.
const CLOSING: Duration = Duration::from_secs(4);

/// How long boxes outside the cluster may take to answer what was sent to them. At an uninstall
/// nothing is: this controller no longer leads then.
const ANSWERING: Duration = Duration::from_secs(4);

/// How long what was written may be cleared at an uninstall, becoming the leader for it
/// included. With the wait for an answer before, and [`CLOSING`] after, it stays within the
/// Pod's terminationGracePeriodSeconds.
const CLEARING: Duration = Duration::from_secs(30);

/// Runs until asked to stop.
///
/// # Errors
/// If something the controller cannot do without is missing at start, or a task that
/// must live forever ends.
pub async fn run(config: Config) -> Result<()> {
    let stop = signals::listen().context("cannot listen for signals")?;
    let metrics = Metrics::new()?;
    let sockets = admin::sockets(&config.listen_address, config.port);
    let (ask, questions) = mpsc::channel(explain::QUESTIONS);
    let admin = Admin::bind(&sockets)
        .await?
        .answering_locally(explain::routes(Questions(ask)));
    let (api, heard) = (client::config().await?, Heartbeat::default());
    let client = client::client(&api, &heard, None)?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        identity = config.identity,
        listen = ?sockets,
        "controller starts"
    );

    let health = WatchHealth::new(metrics.watch_errors.clone());
    metrics.add_connection(&health, &heard)?;
    let heartbeat = Heartbeat::default();
    let (inputs, received) = mpsc::channel(INPUTS);
    let (events, to_send) = mpsc::channel(EVENTS);
    let (role, has_role) = watch::channel(Role::Follow);
    let (left, has_left) = watch::channel(false);
    let (resign, resigned) = oneshot::channel::<()>();
    let (identity, namespace) = (config.identity, config.namespace);
    let pod = config.pod_name.filter(|name| !name.is_empty());
    let ignore_exclude_label = config.policy.ignore_exclude_label;
    let reconciler = Reconciler::new(config.class_policy, config.policy);
    let (missing, is_missing) = watch::channel(reconciler.facts().missing());

    let (snapshots, planned_from) = watch::channel(Arc::default());
    let writing = client::client(&api, &heard, Some(WRITING))?;
    let keeper = Keeper {
        snapshots: planned_from,
        role: has_role.clone(),
        objects: Objects::new(writing.clone()),
        secrets: Api::namespaced(writing.clone(), &namespace),
        ignore_exclude_label,
        events: events.clone(),
        metrics: metrics.clone(),
        edges: Edges::default(),
    };
    // Its requests have a deadline, and a connection of their own.
    let for_election = client::client(&api, &heard, Some(election::REQUEST_TIMEOUT))?;
    let leases = Api::<Lease>::namespaced(for_election, &namespace);
    let election = Election::new(leases, identity.clone(), metrics.clone());
    let (is_elected, election_problem) = (election.leading(), election.problem());
    let event_loop = EventLoop {
        inputs: received,
        questions,
        role: has_role,
        snapshots,
        left,
        reconciler,
        writer: Arc::new(Writer::new(
            writing.clone(),
            election.term(),
            metrics.clone(),
        )),
        events,
        metrics: metrics.clone(),
        heartbeat: heartbeat.clone(),
        missing,
    };
    let problems = {
        let health = health.clone();
        let incomplete = |kind: &_| format!("the first list of {kind} is not complete yet");
        Arc::new(move || {
            let mut all = health.problems();
            all.extend(client::silence(&heard));
            all.extend(is_missing.borrow().iter().map(incomplete));
            all.extend(election_problem.borrow().clone());
            all
        })
    };

    let (finish, finishing) = oneshot::channel::<()>();
    let mut keeping = tokio::spawn(keeper.run(async { finishing.await.unwrap_or_default() }));
    let registry = metrics.registry.clone();
    let mut sending = tokio::spawn(events::send(writing, identity, metrics, to_send));
    // A dropped sender asks to resign just as well.
    let resigned = async { resigned.await.unwrap_or_default() };
    let mut election = tokio::spawn(election.run(resigned));
    let installation = Installation::new(client.clone(), namespace.clone(), pod);
    let until_done = lead(&installation, stop.clone(), is_elected, role, has_left);

    let ended = tokio::select! {
        () = watches::run(&client, &namespace, &health, &inputs) => "watching",
        () = admin.serve(registry, heartbeat, problems) => "serving health and metrics",
        _ = &mut sending => "sending Events",
        _ = &mut election => "electing a leader",
        _ = &mut keeping => "keeping boxes outside the cluster",
        () = installation.follow(&health) => "watching the Namespace",
        () = event_loop.run(until_done) => {
            // Leadership goes last: what was begun as leader is finished as leader.
            let _ = finish.send(());
            let _ = timeout(ANSWERING, keeping).await;
            let _ = resign.send(());
            let _ = timeout(CLOSING, async { tokio::join!(election, sending) }).await;
            if *stop.borrow() {
                return Ok(());
            }
            "the event loop"
        }
    };
    bail!("{ended} ended, which must never happen");
}

/// Leads while elected, until the program is asked to stop. At an uninstall it then clears
/// what was written.
async fn lead(
    installation: &Installation,
    stop: watch::Receiver<bool>,
    mut elected: watch::Receiver<bool>,
    role: watch::Sender<Role>,
    mut left: watch::Receiver<bool>,
) {
    let asked = || signals::asked_to_stop(stop.clone());
    let other = async || Presence::Present;
    let reason = tokio::select! {
        reason = installation.stop_reason(asked(), other) => reason,
        () = lead_while_installed(elected.clone(), &role, installation) => return,
    };
    if let StopReason::Uninstall(reason) = reason {
        info!(
            reason,
            "Highwire is being uninstalled: clearing what was written in Services"
        );
        role.send_replace(Role::Follow);
        // The leader before may have died without clearing anything.
        let clearing = async {
            let _ = elected.wait_for(|elected| *elected).await;
            role.send_replace(Role::Leave);
            let _ = left.wait_for(|left| *left).await;
        };
        match timeout(CLEARING, clearing).await {
            Ok(()) => info!("nothing is left that could be cleared"),
            Err(_) => warn!("not all Services could be cleared in time"),
        }
        asked().await;
    }
}

/// Lets the elected controller lead, unless Highwire is being uninstalled: its predecessor
/// has cleared what it would write again.
async fn lead_while_installed(
    mut elected: watch::Receiver<bool>,
    role: &watch::Sender<Role>,
    installation: &Installation,
) {
    loop {
        let is_elected = *elected.borrow_and_update();
        let leads = is_elected && !installation.is_uninstalled().await;
        // The answer may have taken a while.
        let leads = leads && *elected.borrow();
        role.send_replace(if leads { Role::Lead } else { Role::Follow });
        if elected.changed().await.is_err() {
            return;
        }
    }
}
