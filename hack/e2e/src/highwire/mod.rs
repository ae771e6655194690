//! Highwire itself on a test cluster, as `kubectl apply -f deploy` and two node
//! labels bring it up. On bare nodes the harness stands in for the DaemonSet and the
//! Deployment ([`program`]); on nodes with kubelets those run it ([`installed`]).

pub mod documented;
pub mod installed;
pub mod kubelet;
pub mod program;
pub mod token;
pub mod workload;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;

use crate::cluster::config::NodeKind;
use crate::cluster::handle::Cluster;
use crate::highwire::program::{Program, Programs as _};
use crate::highwire::workload::NAMESPACE;
use crate::lab::wait::try_wait_for;

/// The nodes that are opted in; n3 stays out.
pub const SERVING: [&str; 2] = ["n1", "n2"];
/// The controllers.
pub const CONTROLLERS: [&str; 2] = ["c1", "c2"];
/// How long a program may take until it is ready.
pub const READY: Duration = Duration::from_secs(30);

/// Applies `deploy/`, opts n1 and n2 in, starts their agents and two controllers,
/// and waits until all are ready. A cluster without nodes has controllers only. Safe to call
/// again.
pub async fn start(cluster: &Cluster) -> Result<()> {
    match cluster.config().node_kind {
        NodeKind::Bare => start_with(cluster, &[], &[]).await,
        NodeKind::Kubelet(_) => installed::install(cluster).await,
    }
}

/// The same on bare nodes with additional flags for the agents and for the controllers.
pub async fn start_with(cluster: &Cluster, agents: &[&str], controllers: &[&str]) -> Result<()> {
    apply(cluster)?;
    let exists = |node: &&str| cluster.node(node).is_ok();
    for node in SERVING.into_iter().filter(exists) {
        cluster.opt_in(node).await?;
        ensure_running(&cluster.agent(node)?, agents).await?;
    }
    for name in CONTROLLERS {
        ensure_running(&cluster.controller(name)?, controllers).await?;
    }
    try_wait_for("a leader", READY, || async { leader(cluster).await }).await?;
    Ok(())
}

/// `kubectl apply -f deploy`.
pub fn apply(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["apply", "-f", "deploy"]).map(drop)
}

/// Fails, naming the remedy, unless Highwire runs on this cluster.
pub fn require(cluster: &Cluster) -> Result<()> {
    for node in SERVING {
        let agent = cluster.agent(node)?;
        ensure!(
            agent.is_running(),
            "Highwire does not run here: hack/cluster highwire starts it"
        );
    }
    Ok(())
}

/// Which controller leads, by the Lease.
pub async fn leader(cluster: &Cluster) -> Result<String> {
    let leases: Api<Lease> = Api::namespaced(cluster.client(), NAMESPACE);
    let lease = leases.get("highwire-controller").await?;
    let holder = lease.spec.and_then(|spec| spec.holder_identity);
    holder
        .filter(|holder| !holder.is_empty())
        .context("nobody holds the Lease highwire-controller")
}

async fn ensure_running(program: &Program, flags: &[&str]) -> Result<()> {
    if !program.is_running() {
        program.start(flags).await?;
    }
    program.wait_ready(READY).await
}
