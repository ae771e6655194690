//! What serving Services adds to a cluster: Pods, containers and memory, Highwire's beside
//! those of one DaemonSet per Service, as Akrobateo and K3s ServiceLB make them. On nodes with
//! kubelets and containerd.
//!
//! Their images cannot be fetched here. A DaemonSet of echo servers with a hostPort stands in:
//! the same Pods, sandboxes, shims and portmap rules, and in each a process that is about as
//! small as klipper-lb's shell. ServiceLB has one such container per port, this one per Service.

mod node;
mod start;

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use highwire_e2e::bed::workload::{self, HostPort};
use highwire_e2e::expect::LONG;
use highwire_e2e::highwire::{documented, installed};
use highwire_e2e::{Cluster, NodeKind, Scope, Svc, wait_for};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;

use crate::output::document::Document;
use crate::output::plot::{Axis, Plot};
use crate::output::table::{Table, number};

/// How many Services there are when memory is measured.
const STEPS: [usize; 4] = [1, 5, 10, 20];

/// What one of the two systems costs.
struct Cost {
    /// MiB per node without a Service, and at each of [`STEPS`].
    memory: Vec<f64>,
    /// Pods that run for it in the cluster with the most Services.
    pods: usize,
    /// Seconds until the first Service's Pods run; until it is advertised.
    first: f64,
    /// Containers started because one Service got another port.
    restarted: usize,
}

/// Measures both, one after the other.
pub(crate) async fn measure(cluster: &Cluster) -> Result<Document> {
    ensure!(
        matches!(cluster.config().node_kind, NodeKind::Kubelet(_)),
        "this needs nodes with kubelets: hack/bench footprint"
    );
    let scope = Scope::alone(cluster, "footprint").await?;
    uninstall(cluster)?;
    let starts = start::measure(cluster).await?;
    let pods = containers(cluster).await?.len();
    let empty = node::memory(cluster)?;
    let daemon_sets = daemon_sets(&scope, empty, pods).await?;
    let empty = node::memory(cluster)?;
    let highwire = highwire(&scope, empty, pods).await?;
    scope.remove();
    let systems = [
        ("one DaemonSet per Service", daemon_sets),
        ("Highwire", highwire),
    ];
    Ok(document(cluster, &systems, starts))
}

/// One DaemonSet with a hostPort for each Service.
async fn daemon_sets(scope: &Scope, empty: f64, others: usize) -> Result<Cost> {
    let cluster = scope.cluster();
    let sets: Api<DaemonSet> = Api::namespaced(cluster.client(), scope.namespace());
    let (mut memory, mut first, mut first_port) = (vec![0.0], 0.0, 0);
    for number in 1..=STEPS[STEPS.len() - 1] {
        let began = Instant::now();
        let port = scope.free_port()?;
        workload::daemon_set(scope, &format!("svclb-{number}"), port, HostPort::Portmap).await?;
        if number == 1 {
            first = began.elapsed().as_secs_f64();
            first_port = port;
        }
        if STEPS.contains(&number) {
            memory.push(node::memory(cluster)? - empty);
        }
    }
    let before = containers(cluster).await?;
    // Merged with the port of that containerPort.
    let template = json!({ "spec": { "template": { "spec": { "containers": [{
        "name": "echo",
        "ports": [{ "containerPort": first_port, "hostPort": scope.free_port()? }],
    }] } } } });
    let (parameters, patch) = (PatchParams::default(), Patch::Strategic(template));
    let patched = sets.patch("svclb-1", &parameters, &patch).await?;
    let generation = patched.metadata.generation;
    wait_for("the changed DaemonSet", LONG * 3, || async {
        let status = sets.get("svclb-1").await?.status.context("no status")?;
        ensure!(
            status.observed_generation == generation
                && status.updated_number_scheduled == Some(status.desired_number_scheduled)
                && status.number_ready == status.desired_number_scheduled,
            "{status:?}"
        );
        anyhow::Ok(())
    })
    .await;
    let after = containers(cluster).await?;
    let cost = Cost {
        memory,
        pods: before.len() - others,
        first,
        restarted: after.difference(&before).count(),
    };
    sets.delete_collection(&DeleteParams::background(), &ListParams::default())
        .await?;
    wait_for("their Pods to go", LONG * 3, || async {
        let left = containers(cluster).await?.len();
        ensure!(left == others, "{left} containers, not {others}");
        anyhow::Ok(())
    })
    .await;
    Ok(cost)
}

/// Highwire, and a Service of type LoadBalancer for each.
async fn highwire(scope: &Scope, empty: f64, others: usize) -> Result<Cost> {
    let cluster = scope.cluster();
    installed::install(cluster).await?;
    let mut memory = vec![node::memory(cluster)? - empty];
    let (mut first, mut services) = (0.0, Vec::new());
    for number in 1..=STEPS[STEPS.len() - 1] {
        let began = Instant::now();
        let service = scope.service(&format!("web-{number}")).load_balancer();
        let service = service.tcp(scope.free_port()?, 8080).create().await?;
        advertised(&service, cluster.nodes().len()).await;
        services.push(service);
        if number == 1 {
            first = began.elapsed().as_secs_f64();
        }
        if STEPS.contains(&number) {
            memory.push(node::memory(cluster)? - empty);
        }
    }
    let before = containers(cluster).await?;
    let moved = scope.free_port()?;
    let ports = json!({ "spec": { "ports": [{ "name": "moved", "port": moved }] } });
    services[0].patch(ports).await?;
    wait_for("the changed port in the status", LONG, || async {
        let ingress = services[0].ingress().await?;
        let ports = ingress
            .iter()
            .flat_map(|entry| entry.ports.iter().flatten());
        let there = ports.filter(|port| port.port == i32::from(moved)).count();
        ensure!(there == cluster.nodes().len(), "{ingress:?}");
        anyhow::Ok(())
    })
    .await;
    let after = containers(cluster).await?;
    Ok(Cost {
        memory,
        pods: before.len() - others,
        first,
        restarted: after.difference(&before).count(),
    })
}

async fn advertised(service: &Svc, nodes: usize) {
    wait_for("every node in the status", LONG, || async {
        let ingress = service.ingress().await?;
        ensure!(ingress.len() == nodes, "{ingress:?}");
        anyhow::Ok(())
    })
    .await;
}

/// By the documented commands: the cluster was started with Highwire.
fn uninstall(cluster: &Cluster) -> Result<()> {
    for command in documented::uninstall()? {
        let words = command.split_whitespace();
        let words: Vec<&str> = ["--request-timeout=0"].into_iter().chain(words).collect();
        cluster.kubectl(&words)?;
    }
    Ok(())
}

/// The containers that run in the cluster, or have been started and wait to be replaced.
async fn containers(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let pods: Api<Pod> = Api::all(cluster.client());
    let statuses = pods.list(&ListParams::default()).await?.into_iter();
    let statuses = statuses.filter_map(|pod| pod.status?.container_statuses);
    Ok(statuses
        .flatten()
        .filter_map(|it| it.container_id)
        .collect())
}

fn document(cluster: &Cluster, systems: &[(&str, Cost); 2], starts: Table) -> Document {
    let nodes = cluster.nodes().len();
    let most = STEPS[STEPS.len() - 1];
    let mut document = Document::new("footprint", "What serving Services adds to a cluster");
    document.paragraph(
        "Akrobateo and K3s ServiceLB start a DaemonSet for each Service. Their images were not \
         at hand: DaemonSets of a small echo server with a hostPort stand in for them, one \
         container each. Memory is what all processes of a node hold, shared pages divided \
         among those that share them (PSS), less what they held before; so it has the shims \
         of containerd in it, and what the kubelet and containerd grew by.",
    );
    let mut table = Table::new(&["", systems[0].0, systems[1].0]);
    let mut row = |what: &str, of: &dyn Fn(&Cost) -> f64| {
        table.row([
            what.to_owned(),
            number(of(&systems[0].1)),
            number(of(&systems[1].1)),
        ]);
    };
    row(
        &format!("containers for {most} Services on {nodes} nodes"),
        &|cost| cost.pods as f64,
    );
    row(
        "seconds from the first Service to its Pods, or to its status",
        &|cost| cost.first,
    );
    row(
        "containers started because a Service got another port",
        &|cost| cost.restarted as f64,
    );
    for (index, services) in [0].iter().chain(&STEPS).enumerate() {
        row(&format!("MiB per node with {services} Services"), &|cost| {
            cost.memory[index]
        });
    }
    document.table(table);
    let mut plot = Plot::new(
        "Memory per node",
        Axis::linear("Services"),
        Axis::linear("MiB"),
    );
    for (name, cost) in systems {
        let points = [0].iter().chain(&STEPS).zip(&cost.memory);
        let points = points.map(|(services, memory)| (*services as f64, memory.max(0.0)));
        plot.line(name, points.collect());
    }
    document.plot("memory", plot);
    document.paragraph(
        "Installed and uninstalled in turn, its images being on the nodes, without any Service:",
    );
    document.table(starts);
    document
}
