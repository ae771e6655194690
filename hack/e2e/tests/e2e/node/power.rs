//! A node loses its power and boots with an empty kernel; kube-proxy comes last.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use highwire_e2e::expect::{SHORT, answers};
use highwire_e2e::highwire::installed::{self, Component, agent_pod};
use highwire_e2e::lifecycle::{power_off, power_on};
use highwire_e2e::{Cluster, Container, cluster_test, wait_for};
use kube::ResourceExt as _;
use macro_rules_attribute::apply;

use super::bed::{LONGER, alone, has_table, kubectl, restarts};

/// Has a controller on each node. After a drain both may be on one, and nothing moves them;
/// if it dies, minutes pass until another one runs.
async fn one_controller_each(cluster: &Cluster) -> Result<()> {
    loop {
        let pods = installed::pods(cluster, Component::Controller).await?;
        let nodes: BTreeSet<_> = pods
            .iter()
            .filter_map(|pod| pod.spec.as_ref()?.node_name.as_ref())
            .collect();
        if nodes.len() == pods.len() {
            return Ok(());
        }
        let first = pods.first().context("no controller")?.name_any();
        kubectl(cluster, &format!("delete pod -n highwire-system {first}"))?;
        installed::controllers_ready(cluster).await?;
    }
}

#[apply(cluster_test)]
async fn a_node_that_lost_its_power_serves_again_once_its_kube_proxy_does() -> Result<()> {
    let bed = alone("power").await?;
    let (cluster, n2) = (&bed.cluster, bed.cluster.node("n2")?);
    one_controller_each(cluster).await?;
    let before = agent_pod(cluster, "n2").await?;
    let began = Instant::now();
    power_off(cluster, &n2)?;
    // If the leading controller was on it, another has to notice that first.
    wait_for("it to leave the status", LONGER, || async {
        let listed = bed.service.ingress_ips().await?;
        ensure!(listed == ["192.0.2.11", "2001:db8:1::11"], "{listed:?}");
        anyhow::Ok(())
    })
    .await;
    println!("power cut, not listed after {:.1?}", began.elapsed());
    answers(&cluster.outside(), cluster.node("n1")?.v4(bed.port)).await;

    let began = Instant::now();
    power_on(cluster, &n2).await?;
    ensure!(!has_table(n2.netns())?, "its kernel is empty");
    wait_for("its agent to run again", LONGER, || async {
        let pod = agent_pod(cluster, "n2").await?;
        ensure!(restarts(&pod)? > restarts(&before)?, "{:?}", pod.status);
        anyhow::Ok(Container::of(cluster, &pod)?)
    })
    .await;
    println!("booted, its agent runs after {:.1?}", began.elapsed());
    // Without kube-proxy it reaches no ClusterIP, not even the API server's. What it said
    // before the power cut must not count.
    let listed = bed.service.ingress_ips().await?;
    ensure!(listed == ["192.0.2.11", "2001:db8:1::11"], "{listed:?}");

    let began = Instant::now();
    cluster.unit("kube-proxy-n2").start_again()?;
    for to in [n2.v4(bed.port), n2.v6(bed.port)] {
        wait_for("an answer", LONGER, || async {
            cluster.outside().http_get(to, SHORT)
        })
        .await;
    }
    println!("kube-proxy started, answers after {:.1?}", began.elapsed());
    bed.is_advertised().await;
    installed::agents_ready(cluster).await?;
    installed::controllers_ready(cluster).await
}
