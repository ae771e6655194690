//! Highwire as `deploy/` and kubelets run it: Pods, rollouts, containers.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};

use crate::cluster::config::NodeKind;
use crate::cluster::handle::Cluster;
use crate::highwire::program::Programs as _;
use crate::highwire::workload::NAMESPACE;
use crate::highwire::{SERVING, apply, leader};
use crate::lab::machine::Machine;
use crate::lab::wait::try_wait_for;

/// How long a rollout may take, images and a slow machine included.
const LIMIT: Duration = Duration::from_secs(90);
/// What containers are called in containerd.
const CONTAINERS: &str = "k8s.io";

/// A program of `deploy/`, by the name of its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// Of the DaemonSet.
    Agent,
    /// Of the Deployment.
    Controller,
}

/// A running container.
#[derive(Clone, Debug)]
pub struct Container {
    machine: Machine,
    /// Its process 1, as its machine counts.
    pid: u32,
    cgroup: String,
}

/// Applies `deploy/`, opts the serving nodes in, and waits until agents and controllers are
/// ready. Prints how long that took. Safe to call again.
pub async fn install(cluster: &Cluster) -> Result<()> {
    let began = Instant::now();
    apply(cluster)?;
    for node in SERVING {
        cluster.opt_in(node).await?;
    }
    let applied = began.elapsed();
    agents_ready(cluster).await?;
    let agents = began.elapsed();
    controllers_ready(cluster).await?;
    println!(
        "deploy/ applied and nodes labelled after {applied:.1?}, agents ready after \
         {agents:.1?}, all after {:.1?}",
        began.elapsed()
    );
    Ok(())
}

/// Waits until the agents of all opted-in nodes are of the latest template and ready.
pub async fn agents_ready(cluster: &Cluster) -> Result<()> {
    let sets: Api<DaemonSet> = Api::namespaced(cluster.client(), NAMESPACE);
    let outcome = try_wait_for("all agents to be ready", LIMIT, || async {
        let set = sets.get("highwire-agent").await?;
        let status = set.status.context("no status yet")?;
        let wanted = i32::try_from(SERVING.len())?;
        ensure!(
            status.observed_generation == set.metadata.generation
                && status.desired_number_scheduled == wanted
                && status.updated_number_scheduled == Some(wanted)
                && status.number_ready == wanted,
            "{status:?}"
        );
        Ok(())
    });
    explained(cluster, outcome.await)
}

/// Waits until all controllers are of the latest template and ready, the ones before are
/// gone, and one leads.
pub async fn controllers_ready(cluster: &Cluster) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(cluster.client(), NAMESPACE);
    let outcome = try_wait_for("all controllers to be ready", LIMIT, || async {
        let deployment = deployments.get("highwire-controller").await?;
        let wanted = deployment.spec.and_then(|spec| spec.replicas);
        let status = deployment.status.context("no status yet")?;
        ensure!(
            status.observed_generation == deployment.metadata.generation
                && status.replicas == wanted
                && status.updated_replicas == wanted
                && status.ready_replicas == wanted,
            "{status:?}"
        );
        let holder = leader(cluster).await?;
        ensure!(
            pods(cluster, Component::Controller)
                .await?
                .iter()
                .any(|pod| holder.contains(&pod.name_any())),
            "{holder} led, and has gone"
        );
        Ok(())
    });
    explained(cluster, outcome.await)
}

/// The Pods of a component that are not being deleted.
pub async fn pods(cluster: &Cluster, component: Component) -> Result<Vec<Pod>> {
    let pods: Api<Pod> = Api::namespaced(cluster.client(), NAMESPACE);
    let label = format!("app.kubernetes.io/component={}", component.name());
    let mut listed = pods.list(&ListParams::default().labels(&label)).await?;
    let stays = |pod: &Pod| pod.metadata.deletion_timestamp.is_none();
    listed.items.retain(stays);
    Ok(listed.items)
}

/// The agent's Pod on a node.
pub async fn agent_pod(cluster: &Cluster, node: &str) -> Result<Pod> {
    let all = pods(cluster, Component::Agent).await?;
    let on_node = |pod: &Pod| pod.spec.as_ref()?.node_name.clone().filter(|it| it == node);
    let mut found = all.into_iter().filter(|pod| on_node(pod).is_some());
    found.next().with_context(|| format!("no agent on {node}"))
}

/// The logs of all containers that Highwire has had on a machine, which may be off.
pub fn logs(machine: &Machine) -> Vec<PathBuf> {
    let pods = machine.disk().join("var/log/pods");
    let of_ours = format!("{NAMESPACE}_");
    let ours = entries(&pods).filter(|pod| {
        let name = pod.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with(&of_ours)
    });
    let logs = ours
        .flat_map(|pod| entries(&pod))
        .flat_map(|container| entries(&container));
    logs.collect()
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

impl Component {
    fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Controller => "controller",
        }
    }
}

impl Container {
    /// The first container of a Pod, which must be running.
    pub fn of(cluster: &Cluster, pod: &Pod) -> Result<Self> {
        let NodeKind::Kubelet(containers) = &cluster.config().node_kind else {
            bail!("this cluster has no kubelets");
        };
        let name = pod.name_any();
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        let machine = cluster.node(&node.context("not scheduled")?)?.machine();
        let status = pod.status.as_ref().context("no status")?;
        let first = status.container_statuses.iter().flatten().next();
        let id = first.and_then(|it| it.container_id.clone());
        let id = id.with_context(|| format!("{name} has no container"))?;
        let id = id.trim_start_matches("containerd://");
        let ctr = containers.containerd.join("ctr").display().to_string();
        let namespace = format!("--namespace={CONTAINERS}");
        let tasks = machine.check(&[&ctr, &namespace, "tasks", "list"])?;
        let mut rows = tasks.lines().map(|line| line.split_whitespace());
        let pid = rows.find_map(|mut row| (row.next()? == id).then(|| row.next()?.parse().ok())?);
        let pid: u32 = pid.with_context(|| format!("{name} does not run: {tasks}"))?;
        // From within: on the host its path begins elsewhere.
        let cgroups = machine.check(&["cat", &format!("/proc/{pid}/cgroup")])?;
        let memory = cgroups
            .lines()
            .find(|line| line.contains(":memory:") || line.starts_with("0::/kubepods"));
        let cgroup = memory.and_then(|line| line.rsplit(':').next());
        Ok(Self {
            cgroup: cgroup.context("no cgroup")?.to_owned(),
            machine,
            pid,
        })
    }

    /// Sends its process 1 a signal: `KILL`, `STOP`.
    pub fn signal(&self, signal: &str) -> Result<()> {
        let signal = format!("-{signal}");
        let command = ["kill", &signal, &self.pid.to_string()];
        self.machine.check(&command).map(drop)
    }

    /// A file that `/proc/1` holds inside.
    pub fn proc_1(&self, file: &str) -> Result<String> {
        let path = self.machine.file(format!("/proc/{}/{file}", self.pid))?;
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// A file of its file system.
    pub fn file(&self, path: &str) -> Result<String> {
        let path = self
            .machine
            .file(format!("/proc/{}/root{path}", self.pid))?;
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// The folder of its memory cgroup, on its machine.
    pub fn memory_cgroup(&self) -> Result<String> {
        for hierarchy in ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"] {
            let folder = format!("{hierarchy}{}", self.cgroup);
            if self.machine.file(&folder)?.exists() {
                return Ok(folder);
            }
        }
        bail!("no cgroup {}", self.cgroup)
    }

    /// The machine it is on.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Its process 1, as its machine counts.
    pub fn pid(&self) -> u32 {
        self.pid
    }
}

/// An error with what the Pods and Events of Highwire say.
fn explained(cluster: &Cluster, outcome: Result<()>) -> Result<()> {
    outcome.with_context(|| {
        let said = ["pods", "events"].map(|what| {
            cluster
                .kubectl(&["get", what, "-owide", "-n", NAMESPACE])
                .unwrap_or_default()
        });
        said.join("\n")
    })
}
