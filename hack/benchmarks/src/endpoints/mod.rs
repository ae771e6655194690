//! What an agent costs where there is no kube-proxy: it follows the endpoints of all Services,
//! and its table holds every one of them.

mod changes;
mod quick;
mod report;
mod slices;

use std::time::Duration;

use anyhow::{Result, ensure};
use highwire_e2e::{Cluster, Program, Programs as _, Scope, highwire};

use self::changes::Changes;
use self::report::Report;
use self::slices::Slices;
use crate::Effort;
use crate::control_path::{Crowd, Resident, load, served, settled, start};
use crate::output::counts::Counts;
use crate::output::document::Document;

/// Services of one port each, and the endpoints of each.
const SERVICES: usize = 1_000;
const ENDPOINTS: usize = 10;
/// Endpoints that change in a second, and for how long.
const RATE: u32 = 50;
const BUSY: Duration = Duration::from_secs(60);
/// How long CPU is measured while nothing changes.
const IDLE: Duration = Duration::from_secs(40);
/// Nothing has been written for this long before a measurement begins.
const QUIET: Duration = Duration::from_secs(2);

/// Measures on a cluster without kube-proxies.
pub(crate) async fn measure(
    cluster: &Cluster,
    effort: Effort,
    counts: &mut Counts,
) -> Result<Document> {
    ensure!(
        !cluster.config().proxy_modes.has_any(),
        "this needs a cluster without kube-proxies: hack/bench endpoints"
    );
    highwire::require(cluster)?;
    let scope = Scope::new(cluster, "endpoints").await?;
    let agent = cluster.agent(highwire::SERVING[0])?;
    match effort {
        Effort::Quick => {
            quick::measure(&scope, &agent, counts).await?;
            Ok(Document::new("endpoints", "Without kube-proxy"))
        }
        Effort::Full => Ok(measure_all(&scope, &agent).await?.document()),
    }
}

async fn measure_all(scope: &Scope, agent: &Program) -> Result<Report> {
    let cluster = scope.cluster();
    let agents = [agent.clone(), cluster.agent(highwire::SERVING[1])?];
    agent.restart()?;
    agent.wait_ready(highwire::READY).await?;
    settled(scope, QUIET).await?;
    let mut resident = vec![Resident::read("no Service", agent)?];
    let crowd = services(SERVICES);
    let slices = Slices::of(scope, crowd);
    for endpoints in [1, ENDPOINTS] {
        if endpoints == 1 {
            slices.create(endpoints).await?;
            crowd.create(scope, 0, &agents, SERVICES).await?;
        } else {
            slices.set_all(endpoints).await?;
        }
        settled(scope, QUIET).await?;
        changes::calm(agent, QUIET).await?;
        let what = format!("{SERVICES} Services, endpoints of each: {endpoints}");
        resident.push(Resident::read(&what, agent)?);
    }
    let [idle] = load([agent.unit()], IDLE).await?;
    let warm = start::agent(cluster, SERVICES, true).await?;
    let cold = start::agent(cluster, SERVICES, false).await?;
    served(&agents, SERVICES).await;
    settled(scope, QUIET).await?;
    changes::calm(agent, QUIET).await?;
    resident.push(Resident::read("… after starts with them", agent)?);
    let busy = Changes::run(&slices, agent, RATE, BUSY).await?;
    resident.push(Resident::read("… after the changes", agent)?);
    Ok(Report {
        resident,
        idle,
        warm,
        cold,
        busy,
    })
}

/// Services without a selector: their endpoints are whatever is written down for them.
fn services(services: usize) -> Crowd {
    Crowd {
        prefix: "direct",
        services,
        ports: 1,
        protocol: "TCP",
        has_selector: false,
    }
}
