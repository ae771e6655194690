//! `explain` and the status page as the documents say: by `kubectl exec` and `kubectl
//! port-forward`, without flags.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use highwire_e2e::cluster_test;
use macro_rules_attribute::apply;
use serde_json::Value;

use super::bed::{alone, kubectl};

const AGENT: &str = "exec -n highwire-system daemonset/highwire-agent -- highwire-agent explain";
const CONTROLLER: &str =
    "exec -n highwire-system deployment/highwire-controller -- highwire-controller explain";

#[apply(cluster_test)]
async fn programs_explain_themselves_in_their_pods() -> Result<()> {
    let bed = alone("explain").await?;
    let key = format!("{}/web", bed.scope.namespace());
    let agent = kubectl(&bed.cluster, AGENT)?;
    let row = format!("{}/TCP  {key} ", bed.port);
    let row = agent.lines().find(|line| line.starts_with(&row));
    let row = row.with_context(|| agent.clone())?;
    ensure!(row.contains("  served  as wanted  "), "{agent}");
    let agent: Value = serde_json::from_str(&kubectl(&bed.cluster, &format!("{AGENT} -o json"))?)?;
    ensure!(agent["table"]["state"] == "asWanted", "{agent}");
    let service = kubectl(&bed.cluster, &format!("{CONTROLLER} {key}"))?;
    for (node, address) in [("n1", "192.0.2.11"), ("n2", "192.0.2.12")] {
        let mut lines = service.lines();
        let line = lines.find(|line| line.starts_with(&format!("{node} ")));
        ensure!(line.is_some_and(|line| line.contains(address)), "{service}");
    }
    Ok(())
}

#[apply(cluster_test)]
async fn the_status_page_is_there_by_port_forward() -> Result<()> {
    let bed = alone("forward").await?;
    let cluster = &bed.cluster;
    // It runs until the page was read. The admin's kubeconfig is good on this host.
    let script = format!(
        "{} --kubeconfig {} -n highwire-system port-forward deployment/highwire-controller :9808 \
           > $0 &
         forward=$!
         trap 'kill $forward' EXIT
         until port=$(sed -n 's/^Forwarding from 127.0.0.1:\\([0-9]*\\) .*/\\1/p' $0); [ \"$port\" ]
         do
           kill -0 $forward
           sleep 0.1
         done
         curl --silent --show-error --fail --noproxy '*' --header 'Accept: text/html' \
           http://localhost:$port/",
        cluster.config().controlplane.join("kubectl").display(),
        cluster.kubeconfig().display(),
    );
    let said = tempfile::NamedTempFile::new()?;
    let mut command = Command::new("timeout");
    command.args(["60", "sh", "-ec", &script]).arg(said.path());
    let output = command.output()?;
    let page = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{output:?}");
    let row = format!("<th scope=\"row\">{}/web</th>", bed.scope.namespace());
    ensure!(page.contains(&row), "{page}");
    Ok(())
}
