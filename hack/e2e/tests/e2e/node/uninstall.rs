//! Highwire goes: from a node by its label, and from the cluster by both procedures of
//! docs/operations.md. Kubelets end the Pods.

use anyhow::{Result, ensure};
use highwire_e2e::expect::{ALL, LONG, ingress_is, refuses};
use highwire_e2e::highwire::{documented, installed};
use highwire_e2e::{Cluster, Programs as _, cluster_test, wait_for};
use macro_rules_attribute::apply;

use super::bed::{Bed, alone, has_table, kubectl, no_table, nothing_in_the_cluster, service};

/// Clients are refused by both nodes, as if there had never been a Highwire.
async fn nobody_answers(bed: &Bed) -> Result<()> {
    for node in bed.cluster.nodes() {
        no_table(&bed.cluster, &node.name).await?;
        refuses(&bed.cluster.outside(), node.v4(bed.port)).await;
    }
    Ok(())
}

#[apply(cluster_test)]
async fn a_node_without_its_label_keeps_no_trace() -> Result<()> {
    let bed = alone("label").await?;
    let (cluster, n2) = (&bed.cluster, bed.cluster.node("n2")?);
    let began = std::time::Instant::now();
    cluster.opt_out("n2").await?;
    no_table(cluster, "n2").await?;
    refuses(&cluster.outside(), n2.v4(bed.port)).await;
    println!("label removed, refused after {:.2?}", began.elapsed());
    ingress_is(&bed.service, &["192.0.2.11", "2001:db8:1::11"]).await;
    wait_for("report, Lease and Pod to go", LONG, || async {
        let left = kubectl(
            cluster,
            "get lbn,leases,pods -n highwire-system -owide --no-headers",
        )?;
        let mut lines = left.lines();
        let of_n2 = lines.find(|line| line.contains("agent") && line.contains("n2"));
        ensure!(of_n2.is_none() && !left.contains("/n2 "), "{left}");
        anyhow::Ok(())
    })
    .await;
    ensure!(has_table(cluster.node("n1")?.netns())?);
    cluster.opt_in("n2").await?;
    installed::agents_ready(cluster).await?;
    bed.answers().await?;
    bed.is_advertised().await;
    Ok(())
}

#[apply(cluster_test)]
async fn the_documented_commands_leave_nothing() -> Result<()> {
    let bed = alone("off").await?;
    let [stop, check, delete] = documented::uninstall()?;
    kubectl_for_long(&bed.cluster, &stop)?;
    let left = kubectl(&bed.cluster, &check)?;
    ensure!(left.is_empty(), "before the last command: {left}");
    ingress_is(&bed.service, &[]).await;
    nobody_answers(&bed).await?;
    kubectl_for_long(&bed.cluster, &delete)?;
    nothing_in_the_cluster(&bed.cluster)
}

#[apply(cluster_test)]
async fn the_plain_delete_takes_the_rules_and_a_new_installation_takes_over() -> Result<()> {
    let bed = alone("plain").await?;
    kubectl_for_long(&bed.cluster, "delete -f deploy")?;
    nobody_answers(&bed).await?;
    nothing_in_the_cluster(&bed.cluster)?;
    // Whether the statuses were cleared is a race, as docs/operations.md says.
    println!("left in the status: {:?}", bed.service.ingress_ips().await?);
    installed::install(&bed.cluster).await?;
    bed.answers().await?;
    bed.is_advertised().await;

    // The remedy there goes on with its commands.
    for command in documented::uninstall()? {
        kubectl_for_long(&bed.cluster, &command)?;
    }
    ingress_is(&bed.service, &[]).await;
    nobody_answers(&bed).await?;
    nothing_in_the_cluster(&bed.cluster)
}

/// kubectl, whose wait for Pods to end is not a request's.
fn kubectl_for_long(cluster: &Cluster, command: &str) -> Result<String> {
    kubectl(cluster, &format!("--request-timeout=0 {command}"))
}

#[apply(cluster_test)]
async fn rules_that_nobody_removed_are_taken_over_by_a_new_installation() -> Result<()> {
    let bed = alone("over").await?;
    let cluster = &bed.cluster;
    let old_port = bed.scope.free_port()?;
    let old = service(&bed.scope, "web2", old_port, 8080).await?;
    ingress_is(&old, &ALL).await;
    for command in [
        "-n highwire-system delete daemonset,deployment --all --cascade=orphan",
        "-n highwire-system delete pods --all",
    ] {
        kubectl_for_long(cluster, command)?;
    }
    for node in cluster.nodes() {
        ensure!(has_table(node.netns())?, "the table of {} went", node.name);
    }
    bed.answers().await?;
    // Nobody sees it go.
    old.delete().await?;
    installed::install(cluster).await?;
    for node in cluster.nodes() {
        let table = ["nft", "list", "table", "inet", "highwire"];
        wait_for("the rules of before to go", LONG, || async {
            let table = node.netns().check(&table)?;
            ensure!(!table.contains(&old_port.to_string()), "{table}");
            anyhow::Ok(())
        })
        .await;
    }
    bed.answers().await?;
    bed.is_advertised().await;
    Ok(())
}
