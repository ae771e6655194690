//! The tokens that kubelets give: what one is good for, and that a new one is used.

use anyhow::{Result, ensure};
use highwire_e2e::cluster::pki;
use highwire_e2e::expect::{ALL, answers};
use highwire_e2e::highwire::installed::{self, agent_pod};
use highwire_e2e::{Cluster, Container, cluster_test, wait_for};
use http::Request;
use kube::client::Body;
use macro_rules_attribute::apply;

use super::bed::{LONGER, alone, restarts, together};

const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const POLICY: &str = "ValidatingAdmissionPolicy 'highwire-agent'";

/// The answer to a change of a report by whoever has the token; nothing of it is kept.
async fn change_report(cluster: &Cluster, token: &str, node: &str) -> Result<(u16, String)> {
    let path = format!("/apis/highwire.dev/v1alpha1/loadbalancernodes/{node}/status?dryRun=All");
    let change = r#"{"status":{"observedResourceVersion":"9"}}"#;
    let request = Request::patch(path)
        .header("Content-Type", "application/merge-patch+json")
        .body(Body::from(change.as_bytes().to_vec()))?;
    let answer = cluster.client_with(token).await?.send(request).await?;
    let status = answer.status().as_u16();
    let body = answer.into_body().collect_bytes().await?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

#[apply(cluster_test)]
async fn a_kubelets_token_writes_its_own_nodes_report_only() -> Result<()> {
    let (cluster, _scope) = together("tokens").await?;
    for (own, other) in [("n1", "n2"), ("n2", "n1")] {
        let agent = Container::of(&cluster, &agent_pod(&cluster, own).await?)?;
        let token = agent.file(TOKEN)?;
        let (status, said) = change_report(&cluster, &token, own).await?;
        ensure!(status == 200, "{status}: {said}");
        let (status, said) = change_report(&cluster, &token, other).await?;
        ensure!(status == 403 && said.contains(POLICY), "{status}: {said}");
    }
    Ok(())
}

#[apply(cluster_test)]
async fn tokens_that_kubelets_replace_are_used_by_the_programs_that_run() -> Result<()> {
    let bed = alone("rotate").await?;
    let cluster = &bed.cluster;
    let agents = [
        agent_pod(cluster, "n1").await?,
        agent_pod(cluster, "n2").await?,
    ];
    let n1 = Container::of(cluster, &agents[0])?;
    let old = n1.file(TOKEN)?;

    // No token of before is good for anything from now on.
    pki::token_key(cluster.state())?;
    let apiserver = cluster.unit("kube-apiserver");
    apiserver.kill()?;
    apiserver.start_again()?;
    wait_for("the API server to refuse the token", LONGER, || async {
        let (status, said) = change_report(cluster, &old, "n1").await?;
        ensure!(status == 401, "{status}: {said}");
        anyhow::Ok(())
    })
    .await;
    // A kubelet asks for others when it starts, or after 80 % of an hour.
    for node in cluster.nodes() {
        let kubelet = cluster.unit(&format!("kubelet-{}", node.name));
        kubelet.kill()?;
        kubelet.start_again()?;
    }
    wait_for("a new token", LONGER, || async {
        ensure!(n1.file(TOKEN)? != old);
        anyhow::Ok(())
    })
    .await;

    let port = bed.scope.free_port()?;
    let later = bed.scope.service("later").load_balancer().dual_stack();
    let later = later.select("app", "web").tcp(port, 8080).create().await?;
    wait_for("all addresses in the status", LONGER, || async {
        let listed = later.ingress_ips().await?;
        ensure!(listed == ALL, "{listed:?}");
        anyhow::Ok(())
    })
    .await;
    for (before, node) in agents.iter().zip(cluster.nodes()) {
        answers(&cluster.outside(), node.v4(port)).await;
        let now = agent_pod(cluster, &node.name).await?;
        let same = now.metadata.uid == before.metadata.uid;
        ensure!(same && restarts(&now)? == restarts(before)?, "{now:?}");
    }
    installed::agents_ready(cluster).await?;
    installed::controllers_ready(cluster).await
}
