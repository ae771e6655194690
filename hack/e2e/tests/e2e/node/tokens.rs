//! The tokens that kubelets give: what one is good for, and that a new one is used.

use anyhow::{Result, ensure};
use highwire_e2e::highwire::installed::agent_pod;
use highwire_e2e::{Cluster, Container, Scope, cluster_test};
use http::Request;
use kube::client::Body;
use macro_rules_attribute::apply;

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
    let cluster = Cluster::attach().await?;
    let _scope = Scope::new(&cluster, "tokens").await?;
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
