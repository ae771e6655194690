//! Every agent and controller is replaced, again and again, under load.

use std::time::Instant;

use anyhow::{Context, Result};
use highwire_e2e::{Cluster, Program, Programs as _, highwire};
use serde_json::json;

use super::Amount;
use super::bed::{Bed, lost, own_trouble, table};
use super::machine::Watched;
use super::replace::replace;
use crate::load::{Load, Tally};
use crate::output::counts::Counts;
use crate::output::document::Document;
use crate::output::stats::Sample;
use crate::output::table::{Table, number};

/// Counts what is lost while that many updates happen, and until that many requests were sent.
pub(crate) async fn measure(
    cluster: &Cluster,
    amount: Amount,
    counts: &mut Counts,
) -> Result<Document> {
    let bed = Bed::new(cluster, "loss").await?;
    let versions = bed.versions().await?;
    let watched = Watched::new(&bed.client())?;
    let load = Load::start(&bed.client(), bed.streams(f64::from(amount.rate))?);
    let (mut agents, mut controllers) = (Vec::new(), Vec::new());
    while agents.len() < amount.updates * highwire::SERVING.len() || load.sent() < amount.requests {
        for node in highwire::SERVING {
            agents.push(timed(cluster, &cluster.agent(node)?).await?);
        }
        for name in highwire::CONTROLLERS {
            controllers.push(timed(cluster, &cluster.controller(name)?).await?);
        }
        eprintln!(
            "{} updates, {} requests",
            controllers.len() / highwire::CONTROLLERS.len(),
            load.sent()
        );
    }
    let tallies = load.stop()?;
    let words = watched.words()?;
    bed.listed().await?;
    let written = bed.written_since(&versions).await?;
    let total = Tally::total(&tallies).context("no stream")?;
    let updates = agents.len() / highwire::SERVING.len();
    for fault in &total.faults {
        eprintln!("lost: {fault}");
    }
    counts.add("loss: requests lost", total.lost.all() as f64);
    counts.add("loss: Services whose status was written", written as f64);
    println!(
        "loss: {} requests, {} lost, {updates} updates",
        total.sent(),
        total.lost.all()
    );

    let mut document = Document::new("faults-loss", "Rolling updates under load");
    document.paragraph(&format!(
        "{updates} times each of {} agents and {} controllers was asked to stop (its Pod deleted, \
         SIGTERM, its node, label and DaemonSet still there), and a new process was started once the \
         old one had ended; the next one followed when that was ready. Meanwhile clients outside \
         asked every node, {} new TCP connections a second and other requests beside them, by IPv4 \
         and IPv6 in turn, open-loop. A request is lost if it is refused or cut, if no answer comes \
         within 10 s (TCP) or 3 s (UDP), or if somebody else answers. Answers \
         that took 0.95 s or more are counted: a SYN that is lost is sent again after a second.",
        highwire::SERVING.len(), highwire::CONTROLLERS.len(), number(f64::from(amount.rate)),
    ));
    document.paragraph(&format!("{} {words}", own_trouble(&tallies)));
    document.table(table(&tallies));
    document.heading("The updates");
    document.paragraph(&format!(
        "{written} of {} Services had their status written meanwhile.",
        versions.len()
    ));
    let mut times = Table::new(&[
        "from the deletion of the Pod until the new process is ready, ms",
        "p50",
        "max",
        "times",
    ]);
    for (name, taken) in [("agent", agents), ("controller", controllers)] {
        let sample = Sample::new(taken).context("no update")?;
        times.row([
            name.to_owned(),
            number(sample.median()),
            number(sample.max()),
            sample.count().to_string(),
        ]);
    }
    document.table(times);
    lost(&mut document, &total);
    document.data(json!({
        "updates": updates,
        "sent": total.sent(),
        "lost": total.lost,
        "slow": total.slow,
        "late": total.late,
        "unsent": total.unsent,
        "own": total.own,
        "services_written": written,
        "streams": tallies.iter().map(|tally| json!({
            "name": tally.name, "sent": tally.sent(), "lost": tally.lost, "slow": tally.slow,
            "slowest_ms": tally.times().map(|it| it.max()),
        })).collect::<Vec<_>>(),
    }));
    Ok(document)
}

async fn timed(cluster: &Cluster, program: &Program) -> Result<f64> {
    let start = Instant::now();
    replace(cluster, program).await?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}
