//! From a Service in the API to its port in the kernel and its ingress; what the agent costs
//! while nothing or much changes.

mod changes;
mod churn;
pub(crate) mod created;
pub(crate) mod kernel;
mod process;
mod quick;
mod report;
mod services;
pub(crate) mod start;

use std::time::Duration;

use anyhow::Result;
use highwire_e2e::{Cluster, Program, Programs as _, Scope, highwire};

use self::created::Number;
pub(crate) use self::process::{Cpu, load};
pub(crate) use self::report::Resident;
use self::report::{At, Report};
pub(crate) use self::services::{Crowd, served, settled};
pub(crate) use self::start::Start;
use crate::Effort;
use crate::output::counts::Counts;
use crate::output::document::Document;

/// Services of ten ports each that are there meanwhile, and those that are created one after
/// the other then. With 10,000 ports kube-proxy takes up to ten seconds for each.
const SIZES: [(usize, Number); 3] = [
    (
        1,
        Number {
            to_the_end: 200,
            alone: 200,
        },
    ),
    (
        100,
        Number {
            to_the_end: 200,
            alone: 200,
        },
    ),
    (
        1_000,
        Number {
            to_the_end: 30,
            alone: 200,
        },
    ),
];
/// For [`first_byte`].
const FIRST_BYTES: Number = Number {
    to_the_end: 100,
    alone: 20,
};
/// How often endpoints change, and a node is lost.
const MOVES: usize = 20;
const LOSSES: usize = 3;
/// How long CPU is measured while nothing changes, and while much does.
const IDLE: Duration = Duration::from_secs(40);
const BUSY: Duration = Duration::from_secs(60);
/// Changes a second then.
const CHANGES: u32 = 50;
/// Nothing has been written for this long before a measurement begins.
const QUIET: Duration = Duration::from_secs(2);

/// Measures the control path.
pub(crate) async fn measure(
    cluster: &Cluster,
    effort: Effort,
    counts: &mut Counts,
) -> Result<Document> {
    let scope = scope_with_pods(cluster, "control-path").await?;
    let mode = cluster.config().proxy_modes.as_str();
    if effort == Effort::Quick {
        quick::measure(cluster, &scope, counts).await?;
        return Ok(Document::new(
            &format!("control-path-{mode}"),
            "Control path",
        ));
    }
    let mut report = Report::default();
    resident(cluster, &scope, &mut report).await?;
    sizes(cluster, &scope, &mut report).await?;
    let (_, service) = services::create(&scope, "lost").await?;
    report.moved = Some(changes::endpoints(cluster, &scope, MOVES).await?);
    report.lost = Some(changes::node_loss(cluster, &service, LOSSES).await?);
    service.delete().await?;
    Ok(report.document(mode, &cluster.config().proxy_sync.min))
}

/// Measures only what is advertised when, with the `minSyncPeriod` that the cluster has.
pub(crate) async fn first_byte(cluster: &Cluster) -> Result<Document> {
    let scope = scope_with_pods(cluster, "first-byte").await?;
    let created = created::measure(cluster, &scope, "first", FIRST_BYTES).await?;
    let config = cluster.config();
    let mode = config.proxy_modes.as_str();
    Ok(report::first_byte(&created, mode, &config.proxy_sync.min))
}

async fn scope_with_pods(cluster: &Cluster, name: &str) -> Result<Scope> {
    highwire::require(cluster)?;
    // The other nodes' kube-proxies would take this machine's time for nothing.
    let nodes = cluster.nodes().into_iter();
    for node in nodes.filter(|node| !highwire::SERVING.contains(&node.name.as_str())) {
        cluster.unit(&format!("kube-proxy-{}", node.name)).kill()?;
    }
    let scope = Scope::new(cluster, name).await?;
    for (pod, node) in [("web-1", "n1"), ("web-2", "n2")] {
        let pod = scope
            .pod(pod)
            .on(node)
            .label("app", "web")
            .label("pod", pod);
        pod.tcp(8080).udp(8080).start().await?;
    }
    Ok(scope)
}

/// The agents of the serving nodes.
fn agents(cluster: &Cluster) -> Result<Vec<Program>> {
    let nodes = highwire::SERVING.iter();
    nodes.map(|node| cluster.agent(node)).collect()
}

/// The agent's memory with Services of one port each, from a fresh start on.
async fn resident(cluster: &Cluster, scope: &Scope, report: &mut Report) -> Result<()> {
    let agents = agents(cluster)?;
    let agent = &agents[0];
    agent.restart()?;
    agent.wait_ready(highwire::READY).await?;
    services::settled(scope, QUIET).await?;
    let read = |what: &str, report: &mut Report| -> Result<()> {
        report.resident.push(Resident::read(what, agent)?);
        Ok(())
    };
    read("no Service", report)?;
    let mut first = 0;
    for services in [50, 1_000] {
        let crowd = Crowd {
            prefix: "tcp",
            services,
            ports: 1,
            protocol: "TCP",
            has_selector: true,
        };
        crowd.create(scope, first, &agents, services).await?;
        first = services;
        services::settled(scope, QUIET).await?;
        read(&format!("{services} TCP Services of one port"), report)?;
    }
    services::delete_all(scope, &agents).await?;
    let crowd = Crowd {
        prefix: "udp",
        services: 2_000,
        ports: 1,
        protocol: "UDP",
        has_selector: true,
    };
    crowd.create(scope, 0, &agents, crowd.services).await?;
    services::settled(scope, QUIET).await?;
    read("2,000 UDP Services of one port", report)?;
    services::delete_all(scope, &agents).await?;
    services::settled(scope, QUIET).await?;
    read("all of them deleted", report)
}

/// Everything at 10, 1,000 and 10,000 ports.
async fn sizes(cluster: &Cluster, scope: &Scope, report: &mut Report) -> Result<()> {
    let agents = agents(cluster)?;
    let agent = agents[0].unit();
    let proxy = cluster.unit("kube-proxy-n1");
    let mut first = 0;
    let read = |what: &str| Resident::read(what, &agents[0]);
    for (services, number) in SIZES {
        let crowd = Crowd::of_ten_ports(services);
        let ports = crowd.all_ports();
        eprintln!("{ports} ports");
        crowd.create(scope, first, &agents, services).await?;
        first = services;
        services::settled(scope, QUIET).await?;
        let prefix = format!("at-{services}");
        let created = created::measure(cluster, scope, &prefix, number).await?;
        services::served(&agents, services).await;
        services::settled(scope, QUIET).await?;
        let idle = process::load([agent, &proxy], IDLE).await?;
        let warm = start::agent(cluster, services, true).await?;
        let cold = start::agent(cluster, services, false).await?;
        let proxy = start::kube_proxy(cluster).await?;
        services::served(&agents, services).await;
        report.sizes.push(At {
            ports,
            created,
            idle,
            warm,
            cold,
            proxy,
        });
    }
    report
        .resident
        .push(read("10,000 ports of 1,000 Services")?);
    let churn = churn::run(scope, &[agent, &proxy], CHANGES, BUSY).await?;
    services::served(&agents, 1_000).await;
    services::settled(scope, QUIET).await?;
    let after = format!(
        "{:.0} changes a second for {} s later",
        churn.rate,
        BUSY.as_secs()
    );
    report.resident.push(read(&after)?);
    report.churn = Some(churn);
    let churn = churn::run(scope, &[agent, &proxy], CHANGES, BUSY).await?;
    services::served(&agents, 1_000).await;
    services::settled(scope, QUIET).await?;
    report.resident.push(read(&format!(
        "{:.0} a second for as long again",
        churn.rate
    ))?);
    services::delete_all(scope, &agents).await?;
    services::settled(scope, QUIET).await?;
    report.resident.push(read("all of them deleted")?);
    Ok(())
}
