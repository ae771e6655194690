//! Ingress controllers that take the Service's own port on the node: they answer, and the
//! node is advertised.

use anyhow::{Result, ensure};
use highwire_e2e::bed::workload::{HostPort, daemon_set};
use highwire_e2e::expect::{ALL, LONG, answers, ingress_is};
use highwire_e2e::reported::described;
use highwire_e2e::{cluster_test, wait_for};
use macro_rules_attribute::apply;

use super::bed::{service, together};

async fn serves_its_own_port(name: &str, host: HostPort) -> Result<()> {
    let (cluster, scope) = together(name).await?;
    let port = scope.free_port()?;
    let service = service(&scope, name, port, port).await?;
    daemon_set(&scope, name, port, host).await?;
    ingress_is(&service, &ALL).await;
    for node in cluster.nodes() {
        for to in [node.v4(port), node.v6(port)] {
            let reply = answers(&cluster.outside(), to).await;
            ensure!(reply.pod.starts_with(name), "{reply:?}");
        }
        wait_for("no conflict to be left", LONG, || async {
            let conflicts = described(&cluster, &node.name)?;
            ensure!(!conflicts.contains(scope.namespace()), "{conflicts}");
            anyhow::Ok(())
        })
        .await;
    }
    Ok(())
}

#[apply(cluster_test)]
async fn an_ingress_in_the_hosts_network_answers_at_the_services_port() -> Result<()> {
    serves_its_own_port("hostnet", HostPort::HostNetwork).await
}

#[apply(cluster_test)]
async fn an_ingress_with_a_host_port_answers_at_the_services_port() -> Result<()> {
    serves_its_own_port("portmap", HostPort::Portmap).await
}
