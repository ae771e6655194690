//! Everything that replaces Highwire's Pods, and a drain, while clients connect.

use anyhow::{Result, ensure};
use highwire_e2e::bed::workload;
use highwire_e2e::expect::{ALL, answers, ingress_is};
use highwire_e2e::highwire::installed::{self, agent_pod};
use highwire_e2e::{Clients, Container, cluster_test, highwire, wait_for};
use macro_rules_attribute::apply;

use super::bed::{LONGER, alone, kubectl, restarts, service};

#[apply(cluster_test)]
async fn replacing_every_pod_and_draining_a_node_fails_no_connection() -> Result<()> {
    let bed = alone("rollout").await?;
    let cluster = &bed.cluster;
    workload::deployment(&bed.scope, "app", 2).await?;
    let app_port = bed.scope.free_port()?;
    let app = service(&bed.scope, "app", app_port, 8080).await?;
    ingress_is(&app, &ALL).await;
    for node in cluster.nodes() {
        answers(&cluster.outside(), node.v4(app_port)).await;
    }
    let staying = Clients::start(cluster, &[bed.port])?;
    let moving = Clients::start_connecting(cluster, &[app_port])?;

    for workload in ["daemonset/highwire-agent", "deployment/highwire-controller"] {
        kubectl(
            cluster,
            &format!("-n highwire-system rollout restart {workload}"),
        )?;
        kubectl(
            cluster,
            &format!("-n highwire-system rollout status {workload} --timeout=90s"),
        )?;
    }
    installed::controllers_ready(cluster).await?;

    let pod = agent_pod(cluster, "n1").await?;
    Container::of(cluster, &pod)?.signal("KILL")?;
    wait_for("a restart of the agent", LONGER, || async {
        let pod = agent_pod(cluster, "n1").await?;
        ensure!(restarts(&pod)? == 1, "{:?}", pod.status);
        anyhow::Ok(())
    })
    .await;
    installed::agents_ready(cluster).await?;

    let leader = highwire::leader(cluster).await?;
    let pods = installed::pods(cluster, installed::Component::Controller).await?;
    let names = pods.iter().filter_map(|pod| pod.metadata.name.as_deref());
    let mut leading = names.filter(|name| leader.contains(name));
    let leading = leading.next().unwrap_or(&leader);
    kubectl(cluster, &format!("-n highwire-system delete pod {leading}"))?;
    installed::controllers_ready(cluster).await?;
    ensure!(highwire::leader(cluster).await? != leader);

    // Cordons it first.
    kubectl(cluster, "drain n2 --ignore-daemonsets --timeout=25s")?;
    bed.answers().await?;
    bed.is_advertised().await;
    kubectl(cluster, "uncordon n2")?;
    installed::controllers_ready(cluster).await?;

    let made = [staying.stop().await?, moving.stop().await?].concat();
    println!("connections, of which none failed: {made:?}");
    ensure!(made.iter().all(|made| *made > 100), "too little load");
    bed.is_advertised().await;
    Ok(())
}
