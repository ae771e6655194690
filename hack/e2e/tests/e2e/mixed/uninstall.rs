//! Highwire is removed: by the README's own commands, by the one that people type
//! instead, under any name, with slow agents, and without an API server for a while.
//! The garbage collector and the namespace controller are the real ones; the harness
//! stands in for kubelets. Each test on a cluster of its own.

use std::fs;

use anyhow::{Context, Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::checkout;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{BOTH, LONG, answers, ingress_is, web_pods, web_service};
use highwire_e2e::highwire::documented;
use highwire_e2e::{
    Cluster, Install, Kubelet, Netns, PrivateCluster, Program, Scope, Svc, highwire, wait_for,
};
use macro_rules_attribute::apply;
use nix::sys::signal::Signal;
use tokio::task::{JoinHandle, spawn_blocking};

/// Runs kubectl while the test goes on.
fn kubectl(cluster: &Cluster, command: &str) -> JoinHandle<Result<String>> {
    let (cluster, command) = (cluster.clone(), command.to_owned());
    spawn_blocking(move || {
        let words: Vec<&str> = command.split_whitespace().collect();
        cluster.kubectl(&words)
    })
}

fn has_table(netns: &Netns) -> Result<bool> {
    Ok(netns
        .check(&["nft", "list", "tables"])?
        .contains("inet highwire"))
}

/// All agents and controllers.
fn programs(cluster: &Cluster, install: &Install) -> Result<Vec<Program>> {
    let agents = highwire::SERVING.iter().map(|node| cluster.agent(node));
    let controllers = highwire::CONTROLLERS.iter();
    let controllers = controllers.map(|name| cluster.controller(name));
    agents
        .chain(controllers)
        .map(|program| Ok(program?.installed_as(install)))
        .collect()
}

/// A cluster with a Service that is served, one that is refused its port, and one of
/// another load balancer.
struct Bed {
    kubelet: Kubelet,
    _scope: Scope,
    served: Svc,
    refused: Svc,
    foreign: Svc,
    port: u16,
    // Last, for the scope needs it.
    cluster: PrivateCluster,
}

const FOREIGN: &str = "203.0.113.7";

async fn bed(name: &str) -> Result<Bed> {
    let cluster = PrivateCluster::up(name, 2).await?;
    highwire::start(&cluster).await?;
    let kubelet = Kubelet::of(&cluster, programs(&cluster, &Install::default())?);
    let scope = Scope::new(&cluster, name).await?;
    web_pods(&scope).await?;
    let port = scope.free_port()?;
    let served = web_service(&scope, "web", port).await?;
    ingress_is(&served, &BOTH).await;
    let refused = web_service(&scope, "late", port).await?;
    wait_for("its condition", LONG, || conditions(&refused)).await?;
    let foreign = scope.service("foreign").load_balancer().class("x.dev/y");
    let foreign = foreign.tcp(scope.free_port()?, 8080).create().await?;
    let status = format!(r#"{{"status":{{"loadBalancer":{{"ingress":[{{"ip":"{FOREIGN}"}}]}}}}}}"#);
    let namespace = scope.namespace();
    cluster.kubectl(&[
        "patch",
        "service",
        "foreign",
        "-n",
        namespace,
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ])?;
    Ok(Bed {
        kubelet,
        _scope: scope,
        served,
        refused,
        foreign,
        port,
        cluster,
    })
}

/// The types of a Service's conditions; `None` if there are none.
async fn conditions(service: &Svc) -> Option<Result<Vec<String>>> {
    let object = match service.get().await {
        Ok(object) => object,
        Err(error) => return Some(Err(error)),
    };
    let conditions = object.status?.conditions?;
    let types: Vec<String> = conditions.into_iter().map(|it| it.type_).collect();
    (!types.is_empty()).then_some(Ok(types))
}

impl Bed {
    async fn no_rules(&self) -> Result<()> {
        for node in self.cluster.nodes() {
            let name = &node.name;
            wait_for(&format!("no table on {name}"), LONG, || async {
                has_table(node.netns()).is_ok_and(|there| !there)
            })
            .await;
        }
        Ok(())
    }

    /// Nothing of Highwire is anywhere.
    async fn nothing_left(&self) -> Result<()> {
        self.no_rules().await?;
        for service in [&self.served, &self.refused] {
            ingress_is(service, &[]).await;
            let left = conditions(service).await.transpose()?;
            ensure!(left.is_none(), "conditions of {}: {left:?}", service.name());
        }
        ingress_is(&self.foreign, &[FOREIGN]).await;
        nothing_in_the_cluster(&self.cluster)
    }
}

fn nothing_in_the_cluster(cluster: &Cluster) -> Result<()> {
    for kinds in [
        "clusterroles,clusterrolebindings,namespaces,crd",
        "validatingadmissionpolicies,validatingadmissionpolicybindings",
        "flowschemas,prioritylevelconfigurations",
        "leases,pods,serviceaccounts,daemonsets,deployments,replicasets",
    ] {
        let left = cluster.kubectl(&["get", kinds, "--all-namespaces", "-oname"])?;
        let ours: Vec<&str> = left
            .lines()
            .filter(|name| name.contains("highwire"))
            .collect();
        ensure!(ours.is_empty(), "left: {ours:?}");
    }
    Ok(())
}

#[apply(cluster_test)]
async fn the_commands_of_the_readme_leave_nothing_with_a_slow_agent() -> Result<()> {
    let bed = bed("off").await?;
    let slow = bed.cluster.agent("n2")?;
    slow.unit().signal(Signal::SIGSTOP)?;
    let [stop, check, delete] = documented::uninstall()?;
    let stopping = kubectl(&bed.cluster, &stop);
    let n1 = bed.cluster.node("n1")?;
    wait_for("the other one's rules to go", LONG, || async {
        has_table(n1.netns()).is_ok_and(|there| !there)
    })
    .await;
    ensure!(!stopping.is_finished(), "it must wait for the slow one");
    slow.unit().signal(Signal::SIGCONT)?;
    stopping.await??;
    let left = kubectl(&bed.cluster, &check).await??;
    ensure!(left.is_empty(), "before the second command: {left}");
    bed.no_rules().await?;
    kubectl(&bed.cluster, &delete).await??;
    bed.nothing_left().await
}

#[apply(cluster_test)]
async fn the_plain_delete_takes_the_rules_even_of_a_slow_agent() -> Result<()> {
    let bed = bed("pln").await?;
    let slow = bed.cluster.agent("n2")?;
    slow.unit().signal(Signal::SIGSTOP)?;
    let deleting = kubectl(&bed.cluster, "delete -f deploy");
    // Until its rights are gone and it has been asked to stop.
    let pod = slow.workload().pod_name();
    wait_for("the rights to go and SIGTERM to come", LONG, || async {
        let rights = "get serviceaccounts,clusterroles -A -oname";
        let rights = kubectl(&bed.cluster, rights).await??;
        ensure!(!rights.contains("highwire"), "{rights}");
        let asked =
            format!("get pod {pod} -nhighwire-system -ojsonpath={{.metadata.deletionTimestamp}}");
        ensure!(!kubectl(&bed.cluster, &asked).await??.is_empty());
        anyhow::Ok(())
    })
    .await;
    ensure!(has_table(bed.cluster.node("n2")?.netns())?, "it is stopped");
    slow.unit().signal(Signal::SIGCONT)?;
    deleting.await??;
    bed.no_rules().await?;
    nothing_in_the_cluster(&bed.cluster)?;
    // Which statuses were cleared before the controller lost its rights is a race, as the
    // README says. Its remedy clears the rest.
    highwire::start(&bed.cluster).await?;
    for command in documented::uninstall()? {
        kubectl(&bed.cluster, &command).await??;
    }
    bed.nothing_left().await
}

#[apply(cluster_test)]
async fn an_api_server_that_goes_away_in_the_middle_is_waited_for() -> Result<()> {
    let bed = bed("mid").await?;
    let apiserver = bed.cluster.unit("kube-apiserver");
    let programs = programs(&bed.cluster, &Install::default())?;
    for program in &programs {
        program.unit().signal(Signal::SIGSTOP)?;
    }
    let [stop, _, delete] = documented::uninstall()?;
    let stopping = kubectl(&bed.cluster, &stop);
    for program in &programs {
        let pod = program.workload().pod_name();
        wait_for(&format!("{pod} to be deleted"), LONG, || async {
            let asked = format!(
                "get pod {pod} -nhighwire-system -ojsonpath={{.metadata.deletionTimestamp}}"
            );
            let asked = kubectl(&bed.cluster, &asked).await??;
            ensure!(!asked.is_empty());
            anyhow::Ok(())
        })
        .await;
    }
    // Nobody has read a word of it yet when the API server goes.
    tokio::time::timeout(LONG, bed.kubelet.asked(programs.len())).await?;
    apiserver.kill()?;
    for program in &programs {
        program.unit().signal(Signal::SIGCONT)?;
    }
    let n1 = bed.cluster.agent("n1")?;
    wait_for("it to notice", LONG, || async {
        n1.unit().log().contains("stopping; a second signal")
    })
    .await;
    ensure!(
        has_table(bed.cluster.node("n1")?.netns())?,
        "nobody can tell yet"
    );
    apiserver.start_again()?;
    // kubectl may have given up.
    if stopping.await?.is_err() {
        wait_for("the API server", LONG * 3, || async {
            kubectl(&bed.cluster, &stop)
                .await
                .is_ok_and(|done| done.is_ok())
        })
        .await;
    }
    bed.no_rules().await?;
    kubectl(&bed.cluster, &delete).await??;
    bed.nothing_left().await
}

#[apply(cluster_test)]
async fn what_is_orphaned_or_run_by_hand_stays() -> Result<()> {
    let bed = bed("orp").await?;
    let orphan = "-n highwire-system delete daemonset,deployment --all --cascade=orphan";
    kubectl(&bed.cluster, orphan).await??;
    let all = programs(&bed.cluster, &Install::default())?;
    for program in &all {
        program.stop()?;
    }
    for node in bed.cluster.nodes() {
        ensure!(has_table(node.netns())?, "the table of {} went", node.name);
    }
    ingress_is(&bed.served, &BOTH).await;
    let reports = bed.cluster.kubectl(&["get", "lbn", "-oname"])?;
    ensure!(reports.lines().count() == 2, "{reports}");

    // Run by hand: without a Pod nobody knows, though the DaemonSet is gone.
    let agent = bed.cluster.agent("n1")?;
    agent.start(&["--pod-name="]).await?;
    agent.wait_ready(LONG).await?;
    agent.stop()?;
    ensure!(has_table(bed.cluster.node("n1")?.netns())?);
    answers(&bed.cluster.outside(), bed.cluster.node("n1")?.v4(bed.port)).await;
    Ok(())
}

/// `deploy/` under other names, as a user's kustomization makes it.
fn kustomized(cluster: &Cluster, install: &Install) -> Result<String> {
    let dir = cluster.state().path("kustomize");
    fs::create_dir_all(&dir)?;
    let mut files = Vec::new();
    for entry in fs::read_dir(checkout().join("deploy"))? {
        let path = entry?.path();
        if path.is_dir() {
            continue;
        }
        let name = path.file_name().context("a file")?.to_owned();
        fs::copy(&path, dir.join(&name))?;
        files.push(name.to_string_lossy().into_owned());
    }
    files.sort();
    let kustomization = serde_json::json!({
        "namespace": install.namespace,
        "namePrefix": install.prefix,
        "resources": files,
    });
    fs::write(dir.join("kustomization.yaml"), kustomization.to_string())?;
    Ok(dir.display().to_string())
}

#[apply(cluster_test)]
async fn any_namespace_and_name_prefix_does() -> Result<()> {
    let install = Install {
        namespace: "edge".into(),
        prefix: "lb-".into(),
    };
    let cluster = PrivateCluster::up("kus", 2).await?;
    let dir = kustomized(&cluster, &install)?;
    cluster.kubectl(&["apply", "-k", &dir])?;
    let all = programs(&cluster, &install)?;
    for node in highwire::SERVING {
        cluster.opt_in(node).await?;
    }
    for program in &all {
        program.start(&[]).await?;
        program.wait_ready(LONG).await?;
    }
    let scope = Scope::new(&cluster, "kus").await?;
    web_pods(&scope).await?;
    let port = scope.free_port()?;
    let service = web_service(&scope, "web", port).await?;
    ingress_is(&service, &BOTH).await;

    // A restart leaves the rules and the status.
    for program in &all {
        program.stop()?;
    }
    for node in cluster.nodes() {
        ensure!(has_table(node.netns())?, "the table of {} went", node.name);
    }
    ingress_is(&service, &BOTH).await;
    for program in &all {
        program.start(&[]).await?;
        program.wait_ready(LONG).await?;
    }

    let _kubelet = Kubelet::of(&cluster, all);
    let stop = "-n edge delete daemonset,deployment --all --cascade=foreground";
    kubectl(&cluster, stop).await??;
    kubectl(&cluster, &format!("delete -k {dir} --ignore-not-found")).await??;
    for node in cluster.nodes() {
        ensure!(
            !has_table(node.netns())?,
            "the table of {} stayed",
            node.name
        );
    }
    ingress_is(&service, &[]).await;
    nothing_in_the_cluster(&cluster)
}

#[apply(cluster_test)]
async fn a_node_that_was_cut_off_keeps_its_rules_until_they_are_cleaned_up() -> Result<()> {
    let bed = bed("cut").await?;
    let (agent, node) = (bed.cluster.agent("n2")?, bed.cluster.node("n2")?);
    // As if its power had gone, but the kernel remembers.
    agent.kill()?;
    let [stop, _, delete] = documented::uninstall()?;
    kubectl(&bed.cluster, &stop).await??;
    kubectl(&bed.cluster, &delete).await??;
    ensure!(has_table(node.netns())?, "who should have removed it?");
    let program = agent.binary().display().to_string();
    node.netns().check(&[&program, "cleanup"])?;
    bed.nothing_left().await
}
