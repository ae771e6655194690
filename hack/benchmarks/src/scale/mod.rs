//! Many nodes and many Services: a real API server, etcd and controllers, and simulated nodes
//! with the agents' own deciding and reporting.

mod agents;
mod api_metrics;
mod nodes;
mod report;
mod results;
mod scenarios;
mod services;
mod simulation;
mod size;
mod step;
mod traffic;
mod usage;
mod view;

use std::path::Path;

use anyhow::{Context, Result};
use highwire_e2e::Cluster;
use tokio::runtime::Builder;

use crate::Effort;
use crate::output::document::Document;
use results::{Measured, Results};
use scenarios::{Scope, Steps};
use simulation::Simulation;
pub(crate) use size::Size;

/// Failures take minutes, so they are measured with so many Services, and at most so many
/// nodes.
const WITH_FAILURES: Size = Size {
    nodes: 100,
    services: 1000,
};

/// Sizes beyond these have their Services before their agents: this machine's processors, which
/// the API server shares with all agents, do not let so many agents follow so many changes.
const AT_ONCE: Size = Size {
    nodes: 100,
    services: 1000,
};

/// Measures what grows with nodes and Services, at one size; nothing yet if it has to be
/// quick. The document is of all sizes that were measured; `scale.json` in `folder` keeps
/// them.
pub(crate) async fn measure(
    cluster: &Cluster,
    effort: Effort,
    size: Size,
    folder: &Path,
) -> Result<Document> {
    let mut results = Results::read(folder)?;
    if effort == Effort::Full {
        // The threads of a runtime are in the namespace of who starts it.
        let build = || Builder::new_multi_thread().enable_all().build();
        let runtime = cluster.netns("cp")?.run(build)?;
        let steps = runtime.spawn(simulate(cluster.clone(), size)).await;
        runtime.shutdown_background();
        let steps = steps.context("the simulation panicked")??;
        results.add(Measured::new(size, steps)?);
        results.write(folder)?;
    }
    Ok(report::document(&results))
}

async fn simulate(cluster: Cluster, size: Size) -> Result<Steps> {
    let fits = |most: Size| size.nodes <= most.nodes && size.services <= most.services;
    let scope = Scope {
        at_once: fits(AT_ONCE),
        trouble: fits(WITH_FAILURES) && size.services == WITH_FAILURES.services,
    };
    let simulation = Simulation::prepare(cluster, size.nodes).await?;
    scenarios::run(&simulation, size, scope).await
}
