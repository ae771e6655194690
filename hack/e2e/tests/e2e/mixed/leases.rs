//! The agents' Leases: what a renewal costs, what a stop leaves, and that nothing is
//! written for a Node that does not exist. Each test on a cluster of its own.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{BOTH, LONG, ingress_is, web_pods, web_service};
use highwire_e2e::{Cluster, IpFamily, Kubelet, PrivateCluster, Scope, highwire, nodes, wait_for};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::Api;
use macro_rules_attribute::apply;

async fn lease(cluster: &Cluster, node: &str) -> Result<LeaseSpec> {
    let leases: Api<Lease> = Api::namespaced(cluster.client(), "highwire-system");
    let lease = leases.get(&format!("agent-{node}")).await?;
    lease.spec.context("a Lease without a spec")
}

/// Waits until the node's Lease has been renewed for so long: its clock is the test's.
async fn renewed_for(cluster: &Cluster, node: &str, time: Duration) -> Result<()> {
    let renewed = async || {
        let time = lease(cluster, node).await?.renew_time;
        Ok::<_, anyhow::Error>(time.context("never renewed")?.0)
    };
    let start = renewed().await?;
    let what = format!("{node} to renew its Lease for {time:?}");
    wait_for(&what, time + LONG, || async {
        let so_far = renewed().await?.duration_since(start);
        ensure!(so_far.unsigned_abs() >= time, "{so_far:?}");
        Ok(())
    })
    .await;
    Ok(())
}

/// How many requests of that kind the API server has answered.
fn requests(cluster: &Cluster, resource: &str, verb: &str) -> Result<f64> {
    let metrics = cluster.kubectl(&["get", "--raw", "/metrics"])?;
    let (resource, verb) = (
        format!("resource=\"{resource}\""),
        format!("verb=\"{verb}\""),
    );
    let counts = metrics
        .lines()
        .filter(|line| line.starts_with("apiserver_request_total"))
        .filter(|line| line.contains(&resource) && line.contains(&verb))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(counts.sum())
}

#[apply(cluster_test)]
async fn a_renewal_is_one_put_at_a_third_of_the_duration() -> Result<()> {
    let cluster = PrivateCluster::up("put", 2).await?;
    highwire::start_with(&cluster, &["--lease-duration=3"], &[]).await?;
    for node in highwire::SERVING {
        wait_for("a Lease", LONG, || lease(&cluster, node)).await;
    }
    ensure!(lease(&cluster, "n1").await?.lease_duration_seconds == Some(3));
    renewed_for(&cluster, "n1", Duration::from_secs(2)).await?;
    let count = |verb| requests(&cluster, "leases", verb);
    let before = (count("PUT")?, count("PATCH")?);
    renewed_for(&cluster, "n1", Duration::from_secs(6)).await?;
    let after = (count("PUT")?, count("PATCH")?);
    let (puts, patches) = (after.0 - before.0, after.1 - before.1);
    ensure!(puts >= 10.0, "two agents renew every second: {puts} PUTs");
    // The election's, every two seconds.
    ensure!(
        patches <= puts / 2.0,
        "{patches} PATCHes beside {puts} PUTs"
    );
    Ok(())
}

#[apply(cluster_test)]
async fn an_agent_that_is_replaced_leaves_a_lease_of_two_minutes() -> Result<()> {
    let cluster = PrivateCluster::up("gap", 2).await?;
    highwire::start(&cluster).await?;
    let scope = Scope::new(&cluster, "gap").await?;
    web_pods(&scope).await?;
    let service = web_service(&scope, "web", scope.free_port()?).await?;
    ingress_is(&service, &BOTH).await;
    let version = service.get().await?.metadata.resource_version;

    // The process alone is stopped, as by a node's shutdown.
    let agent = cluster.agent("n2")?;
    agent.stop()?;
    ensure!(lease(&cluster, "n2").await?.lease_duration_seconds == Some(12));
    agent.start(&[]).await?;
    agent.wait_ready(LONG).await?;

    // Its Pod is deleted to be replaced, and the image takes its time.
    {
        let _kubelet = Kubelet::of(&cluster, vec![agent.clone()]);
        let pod = agent.workload().pod_name();
        cluster.kubectl(&["delete", "pod", &pod, "-nhighwire-system", "--wait=false"])?;
        wait_for("the agent to end", LONG, || async { !agent.is_running() }).await;
    }
    ensure!(lease(&cluster, "n2").await?.lease_duration_seconds == Some(120));
    renewed_for(&cluster, "n1", Duration::from_secs(20)).await?;
    ensure!(
        service.get().await?.metadata.resource_version == version,
        "its status was rewritten"
    );

    agent.start(&[]).await?;
    wait_for("the usual duration", LONG, || async {
        let spec = lease(&cluster, "n2").await?;
        ensure!(spec.lease_duration_seconds == Some(12), "{spec:?}");
        Ok(())
    })
    .await;
    agent.kill()?;
    ingress_is(&service, &["192.0.2.11"]).await;
    Ok(())
}

#[apply(cluster_test)]
async fn for_a_deleted_node_nothing_is_written_until_it_is_back() -> Result<()> {
    let cluster = PrivateCluster::up("del", 2).await?;
    highwire::start(&cluster).await?;
    let reports = |cluster: &Cluster| cluster.kubectl(&["get", "lbn", "-oname"]);
    wait_for("both reports and Leases", LONG, || async {
        lease(&cluster, "n2").await?;
        let reports = reports(&cluster)?;
        ensure!(reports.lines().count() == 2, "{reports}");
        Ok(())
    })
    .await;
    let creations = |resource| requests(&cluster, resource, "POST");
    let before = (creations("loadbalancernodes")?, creations("leases")?);
    cluster.kubectl(&["delete", "node", "n2"])?;
    // It discovers new kinds of objects every 30 s.
    wait_for("the garbage collector", LONG * 3, || async {
        let reports = reports(&cluster)?;
        ensure!(!reports.contains("/n2"), "{reports}");
        ensure!(lease(&cluster, "n2").await.is_err(), "the Lease is there");
        Ok(())
    })
    .await;
    renewed_for(&cluster, "n1", Duration::from_secs(10)).await?;
    let after = (creations("loadbalancernodes")?, creations("leases")?);
    ensure!(
        after == before,
        "creations: {before:?} before, {after:?} after"
    );

    nodes::register(&cluster.client(), 2, IpFamily::Dual).await?;
    cluster.opt_in("n2").await?;
    wait_for("its report", LONG, || async {
        lease(&cluster, "n2").await?;
        ensure!(reports(&cluster)?.contains("/n2"));
        Ok(())
    })
    .await;
    Ok(())
}
