//! Wires the controller together and keeps it running.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use highwire_runtime::{
    admin::Admin,
    client,
    heartbeat::Heartbeat,
    signals,
    uninstall::{Installation, Presence, StopReason},
    watch::WatchHealth,
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::{Instant, timeout},
};
use tracing::info;

use crate::{
    actor::{Actor, Missing},
    config::{Config, Place},
    events, farewell,
    leader::{Election, ElectionHealth},
    metrics::Metrics,
    watches,
    writer::Writer,
};

/// Enough for a burst; beyond it the watches wait for the loop.
const INPUTS: usize = 256;

/// Enough for a burst of new Services; beyond it Events are dropped and counted.
const ANNOUNCEMENTS: usize = 4096;

/// How long Events that wait may still be sent, and the Lease be given up.
const FAREWELL: Duration = Duration::from_secs(4);

/// How long what was written may be cleared when Highwire is removed, becoming the
/// leader for it included. With the wait for an answer before, and [`FAREWELL`] after,
/// it stays within the Pod's terminationGracePeriodSeconds.
const CLEARING: Duration = Duration::from_secs(30);

/// Runs until asked to stop.
///
/// # Errors
/// If something the controller cannot do without is missing at start, or a task that
/// must live forever ends.
pub(crate) async fn run(config: Config) -> Result<()> {
    let stop = signals::listen().context("cannot listen for signals")?;
    let metrics = Metrics::new()?;
    let admin = Admin::bind(&config.admin).await?;
    let (api, heard) = (client::config().await?, Heartbeat::default());
    let client = client::client(&api, &heard, None)?;
    metrics.registry.register(Box::new(client::Silence::new(
        "highwire_controller_api_server_silence_seconds",
        heard.clone(),
    )?))?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        identity = config.identity,
        listen = ?config.admin,
        "controller starts"
    );

    let health = WatchHealth::new(metrics.watch_errors.clone());
    let (election_health, missing) = (ElectionHealth::default(), Missing::default());
    let heartbeat = Heartbeat::default();
    let (inputs, received) = mpsc::channel(INPUTS);
    let (announcements, announced) = mpsc::channel(ANNOUNCEMENTS);
    let (elected, won) = watch::channel(false);
    let (leading, led) = watch::channel(false);
    let (finish, finished) = oneshot::channel::<()>();
    let released = Arc::new(Notify::new());

    let actor = Actor {
        inputs: received,
        leading: led,
        released: Arc::clone(&released),
        advertising: config.advertising.clone(),
        writer: Arc::new(Writer::new(
            client.clone(),
            config.class_policy,
            metrics.clone(),
        )),
        announcements,
        metrics: metrics.clone(),
        heartbeat: heartbeat.clone(),
        missing: missing.clone(),
    };
    let election = Election::new(
        &api,
        &heard,
        config.identity.clone(),
        config.place.namespace.clone(),
        election_health.clone(),
        elected,
    )?;
    let problems = {
        let health = health.clone();
        let all = move || {
            let election = election_health.problem();
            [
                client::silence(&heard).into_iter().collect(),
                health.problems(),
                missing.problems(),
                election.into_iter().collect(),
            ]
            .concat()
        };
        Arc::new(all)
    };

    let registry = metrics.registry.clone();
    let mut sending = tokio::spawn(events::run(
        client.clone(),
        config.identity.clone(),
        metrics,
        announced,
    ));
    let (resign, resigned) = oneshot::channel::<()>();
    let mut election = tokio::spawn(async move {
        // A dropped sender asks to resign just as well.
        election
            .run(&released, async { resigned.await.unwrap_or_default() })
            .await;
    });

    let Place { namespace, pod } = config.place.clone();
    let installation = Installation::new(client.clone(), namespace, pod);
    let mut office = std::pin::pin!(async {
        let asked = || signals::asked_to_stop(stop.clone());
        let other = async || Presence::Present;
        let reason = tokio::select! {
            reason = installation.stop_reason(asked(), other) => reason,
            () = lead_while_staying(won.clone(), &leading, &installation) => StopReason::Restart,
        };
        if let StopReason::Uninstall(reason) = reason {
            info!(
                reason,
                "Highwire is removed: clearing what was written of Services"
            );
            leading.send_replace(false);
            let end = Instant::now() + CLEARING;
            // Whoever led before may have died without.
            if timeout(CLEARING, won.clone().wait_for(|won| *won))
                .await
                .is_ok()
            {
                farewell::clear(&client, end).await;
            }
            asked().await;
        }
        let _ = finish.send(());
        std::future::pending::<()>().await;
    });

    let ended = tokio::select! {
        () = watches::run(
            &client, &config.place.namespace, config.class_policy, config.exclude_label, &health, &inputs
        ) => "watching",
        () = admin.serve(registry, heartbeat, problems) => "serving health and metrics",
        _ = &mut sending => "sending Events",
        _ = &mut election => "electing a leader",
        () = installation.follow(&health) => "watching the Namespace",
        () = &mut office => "leading",
        () = actor.run(async { finished.await.unwrap_or_default() }) => {
            // Leadership goes last: what was begun as leader is finished as leader.
            let _ = resign.send(());
            let _ = timeout(FAREWELL, async { tokio::join!(election, sending) }).await;
            if *stop.borrow() {
                return Ok(());
            }
            "the event loop"
        }
    };
    bail!("{ended} ended, which must never happen");
}

/// Lets the elected controller lead, unless Highwire is being removed: its predecessor
/// has cleared what it would write again.
async fn lead_while_staying(
    mut won: watch::Receiver<bool>,
    leading: &watch::Sender<bool>,
    installation: &Installation,
) {
    loop {
        let leads = *won.borrow_and_update();
        if !leads {
            leading.send_replace(false);
        }
        tokio::select! {
            goes = installation.is_uninstalled(), if leads && !*leading.borrow() => {
                leading.send_replace(!goes);
                if won.changed().await.is_err() {
                    return;
                }
            }
            changed = won.changed() => if changed.is_err() {
                return;
            },
        }
    }
}
