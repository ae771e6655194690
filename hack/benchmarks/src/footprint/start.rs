//! How long Highwire takes on a cluster that has its images: from `kubectl apply` and the
//! nodes' labels on.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use highwire_api::LoadBalancerNode;
use highwire_e2e::highwire::{self, installed};
use highwire_e2e::lab::wait::try_wait_for;
use highwire_e2e::{Cluster, Programs as _};
use kube::Api;

use crate::output::stats::Sample;
use crate::output::table::Table;

/// How often it is installed and uninstalled.
const ROUNDS: usize = 7;

/// Seconds since `kubectl apply` began, until …
struct Start {
    /// … deploy/ was applied and the nodes had the label.
    applied: f64,
    /// … the agents of all nodes reported that they forward.
    ready: f64,
    /// … their Pods were ready too, as their kubelets say.
    pods: f64,
}

/// Measures it on a cluster without Highwire, and leaves none there.
pub(crate) async fn measure(cluster: &Cluster) -> Result<Table> {
    let mut starts = Vec::new();
    for _ in 0..ROUNDS {
        starts.push(install(cluster).await?);
        installed::controllers_ready(cluster).await?;
        super::uninstall(cluster)?;
    }
    let mut table = Table::new(&["seconds from `kubectl apply` on", "median", "most"]);
    let mut row = |what: &str, of: fn(&Start) -> f64| -> Result<()> {
        let sample = Sample::new(starts.iter().map(of).collect()).context("no rounds")?;
        let seconds = |value: f64| format!("{value:.1}");
        let cells = [
            what.to_owned(),
            seconds(sample.median()),
            seconds(sample.max()),
        ];
        table.row(cells);
        Ok(())
    };
    row("deploy/ is applied and the nodes have the label", |it| {
        it.applied
    })?;
    row("the agents of all nodes report that they forward", |it| {
        it.ready
    })?;
    row("their Pods are ready", |it| it.pods)?;
    Ok(table)
}

async fn install(cluster: &Cluster) -> Result<Start> {
    let began = Instant::now();
    highwire::apply(cluster)?;
    for node in highwire::SERVING {
        cluster.opt_in(node).await?;
    }
    let applied = began.elapsed().as_secs_f64();
    let reports: Api<LoadBalancerNode> = Api::all(cluster.client());
    try_wait_for("every agent to be ready", highwire::READY, || async {
        for node in highwire::SERVING {
            let status = reports.get(node).await?.status.context("no status")?;
            let ready = status.ready().context("no condition Ready")?;
            ensure!(ready.status == "True", "{node}: {}", ready.message);
        }
        anyhow::Ok(())
    })
    .await?;
    let ready = began.elapsed().as_secs_f64();
    installed::agents_ready(cluster).await?;
    let pods = began.elapsed().as_secs_f64();
    Ok(Start {
        applied,
        ready,
        pods,
    })
}
