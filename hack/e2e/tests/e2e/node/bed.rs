//! What the tests here begin with, and what they look for at the end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use highwire_e2e::bed::workload;
use highwire_e2e::expect::{ALL, answers, ingress_is};
use highwire_e2e::highwire::installed;
use highwire_e2e::{Cluster, Netns, Scope, Svc, wait_for};

/// For what takes kubelets some rounds.
pub(crate) const LONGER: Duration = Duration::from_secs(60);

/// A Service of echo servers on each node, served by both.
pub(crate) struct Bed {
    pub(crate) service: Svc,
    pub(crate) port: u16,
    pub(crate) scope: Scope,
    pub(crate) cluster: Cluster,
}

/// Alone on the cluster, with Highwire installed.
pub(crate) async fn alone(prefix: &str) -> Result<Bed> {
    let cluster = Cluster::attach().await?;
    let scope = Scope::alone(&cluster, prefix).await?;
    installed::install(&cluster).await?;
    Bed::new(cluster, scope).await
}

/// Beside others that change nothing of Highwire, with it installed.
pub(crate) async fn together(prefix: &str) -> Result<(Cluster, Scope)> {
    let cluster = Cluster::attach().await?;
    let scope = Scope::new(&cluster, prefix).await?;
    installed::install(&cluster).await?;
    Ok((cluster, scope))
}

impl Bed {
    async fn new(cluster: Cluster, scope: Scope) -> Result<Self> {
        workload::daemon_set(&scope, "web", 8080, workload::HostPort::None).await?;
        let port = scope.free_port()?;
        let began = Instant::now();
        let service = service(&scope, "web", port, 8080).await?;
        let bed = Self {
            service,
            port,
            scope,
            cluster,
        };
        bed.answers().await?;
        let first_byte = began.elapsed();
        bed.is_advertised().await;
        println!(
            "Service to first byte at both nodes {first_byte:.2?}, to both in its status {:.2?}",
            began.elapsed()
        );
        Ok(bed)
    }

    /// Every address of both nodes answers.
    pub(crate) async fn answers(&self) -> Result<()> {
        for node in self.cluster.nodes() {
            for to in [node.v4(self.port), node.v6(self.port)] {
                answers(&self.cluster.outside(), to).await;
            }
        }
        Ok(())
    }

    /// The status lists both nodes.
    pub(crate) async fn is_advertised(&self) {
        ingress_is(&self.service, &ALL).await;
    }
}

/// A dual-stack LoadBalancer Service of the Pods of that name.
pub(crate) async fn service(scope: &Scope, name: &str, port: u16, target: u16) -> Result<Svc> {
    let service = scope.service(name).load_balancer().dual_stack();
    service.tcp(port, target).create().await
}

pub(crate) fn has_table(netns: &Netns) -> Result<bool> {
    let tables = netns.check(&["nft", "list", "tables"])?;
    Ok(tables.contains("inet highwire"))
}

/// Waits until the node's kernel has no table of Highwire's.
pub(crate) async fn no_table(cluster: &Cluster, node: &str) -> Result<()> {
    let node = cluster.node(node)?;
    wait_for(&format!("no table on {}", node.name), LONGER, || async {
        has_table(node.netns()).is_ok_and(|there| !there)
    })
    .await;
    Ok(())
}

/// Words of a command line.
pub(crate) fn kubectl(cluster: &Cluster, command: &str) -> Result<String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    cluster.kubectl(&words)
}

/// Nothing in the API server has to do with Highwire but Services.
pub(crate) fn nothing_in_the_cluster(cluster: &Cluster) -> Result<()> {
    for kinds in [
        "clusterroles,clusterrolebindings,namespaces,crd",
        "validatingadmissionpolicies,validatingadmissionpolicybindings",
        "flowschemas,prioritylevelconfigurations",
        "leases,pods,serviceaccounts,daemonsets,deployments,replicasets",
    ] {
        let left = kubectl(cluster, &format!("get {kinds} --all-namespaces -oname"))?;
        let mut names = left.lines();
        let ours = names.find(|name| name.contains("highwire"));
        ensure!(ours.is_none(), "left: {ours:?}");
    }
    Ok(())
}

/// The restarts of the first container of a Pod.
pub(crate) fn restarts(pod: &k8s_openapi::api::core::v1::Pod) -> Result<i32> {
    let status = pod.status.as_ref().context("no status")?;
    let first = status.container_statuses.iter().flatten().next();
    Ok(first.context("no container")?.restart_count)
}
