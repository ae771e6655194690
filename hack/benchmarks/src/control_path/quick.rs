//! What a Service costs in counts, which are the same on every machine.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use highwire_e2e::{Cluster, Program, Scope, highwire};

use super::created::{Counters, advertised};
use super::services::{self, Crowd};
use crate::output::counts::Counts;

/// Services of ten ports that are there while others are counted.
const CROWDS: [usize; 2] = [1, 50];
/// Services that are counted, one after the other.
const CREATED: usize = 5;
const IDLE: Duration = Duration::from_secs(6);

/// Counts on the first node.
pub(crate) async fn measure(cluster: &Cluster, scope: &Scope, counts: &mut Counts) -> Result<()> {
    let agents = super::agents(cluster)?;
    let runs = counted_runs(cluster, &agents[0]).await?;
    services::served(&agents, 0).await;
    let mut first = 0;
    for services in CROWDS {
        let crowd = Crowd::of_ten_ports(services);
        crowd.create(scope, first, &agents, services).await?;
        first = services;
        services::settled(scope, Duration::from_millis(500)).await?;
        let mut note = |what: &str, count: f64| {
            let ports = crowd.all_ports();
            counts.add(format!("control-path: {what}, {ports} ports there"), count);
        };
        let (before, ran, written) = (Counters::of(&agents[0])?, runs.count()?, writes(cluster)?);
        for index in 0..CREATED {
            let (_, service) = services::create(scope, &format!("one-{services}-{index}")).await?;
            advertised(&service, std::time::Instant::now()).await?;
            service.delete().await?;
            services::served(&agents, services).await;
        }
        let each = |count: f64| count / CREATED as f64;
        let cost = Counters::of(&agents[0])?.since(&before, CREATED, 0.0);
        note(
            "transactions per Service created and deleted",
            cost.transactions,
        );
        note("elements per Service created and deleted", cost.elements);
        note("bytes per Service created and deleted", cost.bytes);
        note(
            "runs of nft per Service created and deleted",
            each(runs.count()? - ran),
        );
        let written = writes(cluster)? - written;
        note(
            "status writes per Service created and deleted",
            each(written),
        );
    }
    let ran = runs.count()?;
    tokio::time::sleep(IDLE).await;
    counts.add("control-path: runs of nft while idle", runs.count()? - ran);
    let connections = agents[0].connections()?;
    counts.add(
        "control-path: connections to the API server",
        connections as f64,
    );
    agents[0].stop()?;
    agents[0].start(&[]).await?;
    agents[0].wait_ready(highwire::READY).await
}

/// Where each run of nft leaves a line.
struct Runs(PathBuf);

impl Runs {
    fn count(&self) -> Result<f64> {
        let lines = fs::read_to_string(&self.0).context("read the runs of nft")?;
        Ok(lines.lines().count() as f64)
    }
}

/// Starts the agent again with an nft that counts its runs.
async fn counted_runs(cluster: &Cluster, agent: &Program) -> Result<Runs> {
    let (program, log) = (
        cluster.state().path("nft-counted"),
        cluster.state().path("nft-runs"),
    );
    let script = format!(
        "#!/bin/sh\necho \"$*\" >> {}\nexec nft \"$@\"\n",
        log.display()
    );
    fs::write(&log, "")?;
    fs::write(&program, script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    agent.stop()?;
    let flag = format!("--nft={}", program.display());
    agent.start(&[&flag]).await?;
    agent.wait_ready(highwire::READY).await?;
    Ok(Runs(log))
}

/// How many statuses of Services and reports of nodes were written so far.
fn writes(cluster: &Cluster) -> Result<f64> {
    let metrics = cluster.kubectl(&["get", "--raw", "/metrics"])?;
    let requests = metrics.lines().filter(|line| {
        let label = |label: &str| line.contains(label);
        line.starts_with("apiserver_request_total{")
            && label("subresource=\"status\"")
            && (label("resource=\"services\"") || label("resource=\"loadbalancernodes\""))
            && (label("verb=\"PATCH\"") || label("verb=\"PUT\""))
    });
    let counts = requests.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
    Ok(counts.sum())
}
