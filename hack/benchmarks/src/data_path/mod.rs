//! Requests, connections and bytes through a node, by Highwire and by what else could carry
//! them.

mod bed;
mod counted;
mod cpu;
mod klipper;
mod load;
mod other_node;
mod path;
mod ports;
mod report;
mod rounds;
mod saved;
mod servers;
mod stalls;

use std::process::Command;

use anyhow::{Context, Result};
use highwire_e2e::{Cluster, Programs as _, highwire};

use crate::Effort;
use crate::frozen::Frozen;
use crate::output::counts::Counts;
use crate::output::document::Document;
use bed::{Bed, OWN_PORTS, Presence};
use load::{Exchange, Exchanges, MANY, exchange, stream};
use path::Path;
use ports::Filling;
use report::{Exchanged, Found, Level, Streams, report};
use rounds::Rounds;
use stalls::Stalls;

/// Rounds of each figure.
const ROUNDS: usize = 7;
/// Ports on the node, beside the measured Services' own.
const PORTS: [usize; 3] = [OWN_PORTS, 100, 10_000];

/// Measures the data path.
pub(crate) async fn measure(
    cluster: &Cluster,
    effort: Effort,
    counts: &mut Counts,
) -> Result<Document> {
    highwire::require(cluster)?;
    let mode = cluster.config().proxy_modes.as_str();
    let title = format!("Data path, kube-proxy in {mode} mode");
    let mut document = Document::new(&format!("data-path-{mode}"), &title);
    let bed = Bed::start(cluster).await?;
    match effort {
        Effort::Quick => {
            counted::count(&bed, counts).await?;
            try_all(&bed)?;
        }
        Effort::Full => measure_all(&bed, &mut document).await?,
    }
    bed.other.end().await?;
    Ok(document)
}

async fn measure_all(bed: &Bed, document: &mut Document) -> Result<()> {
    stop_other_nodes(&bed.cluster)?;
    let mut filling = Filling::start(bed).await?;
    filling.grow_to(bed, OWN_PORTS).await?;
    let streams = Streams::run(|what| {
        Rounds::run(bed, ROUNDS, &Path::POLICY_CLUSTER, |path| {
            stream(&bed.client, bed.bulk(path), what)
        })
    })?;
    let presence = presence(bed).await?;
    let mut levels = Vec::new();
    for ports in PORTS {
        filling.grow_to(bed, ports).await?;
        levels.push(level(bed, ports, MANY)?);
    }
    let alone = level(bed, PORTS[PORTS.len() - 1], 1)?;
    let stalls = {
        let _frozen = without_the_cluster(bed)?;
        Stalls::look()
    };
    let found = Found {
        versions: versions()?,
        stalls,
        levels,
        alone,
        presence,
        streams,
    };
    report(document, &found)
}

/// Whether every path carries what is measured in a full run.
fn try_all(bed: &Bed) -> Result<()> {
    for path in Path::ALL {
        requests(bed, path, Exchange::Request, MANY).context(path.name())?;
    }
    for path in [Path::Highwire, Path::WithoutProxy] {
        requests(bed, path, Exchange::Connection, MANY)?;
        Streams::run(|what| stream(&bed.client, bed.bulk(path), what)).context(path.name())?;
    }
    Ok(())
}

fn level(bed: &Bed, ports: usize, at_a_time: u8) -> Result<Level> {
    let _frozen = without_the_cluster(bed)?;
    let found = Exchanged::run(|what| {
        Rounds::run(bed, ROUNDS, &Path::ALL, |path| {
            requests(bed, path, what, at_a_time)
        })
    })?;
    Ok(Level {
        ports,
        at_a_time,
        found,
    })
}

/// What the table costs packets to a NodePort, which pass it without being changed.
async fn presence(bed: &Bed) -> Result<Exchanged<Presence>> {
    // It would wake the table up.
    bed.agent.stop()?;
    let measured = Exchanged::run(|what| {
        Rounds::run(bed, ROUNDS, &Presence::BOTH, |presence| {
            bed.set_table(presence)?;
            requests(bed, Path::NodePort, what, MANY)
        })
    })?;
    bed.set_table(Presence::Present)?;
    bed.agent.unit().start_again()?;
    bed.agent.wait_ready(highwire::READY).await?;
    Ok(measured)
}

/// Packets need none of the programs that make the cluster.
fn without_the_cluster(bed: &Bed) -> Result<Frozen> {
    Frozen::all(&bed.cluster, |unit| !servers::is_server(unit))
}

fn requests(bed: &Bed, path: Path, what: Exchange, at_a_time: u8) -> Result<Exchanges> {
    let to = bed.web(path)?;
    let exchanged = exchange(bed.cluster.state(), &bed.client, &to, what, at_a_time);
    if path == Path::Proxy {
        return exchanged.with_context(|| format!("nginx logged: {}", bed.proxy_log()));
    }
    exchanged
}

/// Their kube-proxies and agents would use processor time for nothing that is measured.
fn stop_other_nodes(cluster: &Cluster) -> Result<()> {
    for node in cluster
        .nodes()
        .into_iter()
        .filter(|node| ![bed::NODE, other_node::NODE].contains(&node.name.as_str()))
    {
        cluster.unit(&format!("kube-proxy-{}", node.name)).kill()?;
        let agent = cluster.agent(&node.name)?;
        if agent.is_running() {
            agent.stop()?;
        }
    }
    Ok(())
}

/// Of what load is made and answered with.
fn versions() -> Result<String> {
    let wrk = first_line("wrk", "--version")?;
    let wrk = wrk
        .split(" Copyright")
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned();
    let iperf = first_line("iperf3", "--version")?;
    let iperf = iperf.split(" (").next().unwrap_or_default().to_owned();
    let nginx = first_line(&servers::program()?.display().to_string(), "-v")?;
    Ok(format!("{wrk}, {iperf}, {nginx}"))
}

/// What a program prints first, wherever it prints it.
fn first_line(program: &str, argument: &str) -> Result<String> {
    let output = Command::new(program).arg(argument).output();
    let output = output.with_context(|| format!("run {program}"))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    Ok(said.lines().next().unwrap_or_default().to_owned())
}
