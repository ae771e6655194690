//! SCTP, which few kernels have: `hack/test vm` runs these tests, elsewhere they are ignored.
//!
//! Addresses: nodes 192.0.2.11 and 2001:db8:1::11 (n1), .12 and ::12 (n2) serve; the client is
//! outside the cluster.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{ALL, AMPLE, LONG, SHORT, all_answer, at_both_addresses, ingress_is};
use highwire_e2e::reported::{bind_sctp, ports_error};
use highwire_e2e::{Cluster, ConnectError, Netns, Pod, Scope, Svc, highwire, wait_for};
use macro_rules_attribute::apply;

/// The shared cluster, and Pods web-1 on n1 and web-2 on n2 that serve SCTP.
async fn sctp_pods(prefix: &str) -> Result<(Cluster, Scope)> {
    let cluster = Cluster::attach().await?;
    highwire::require(&cluster)?;
    let scope = Scope::new(&cluster, prefix).await?;
    for (pod, node) in [("web-1", "n1"), ("web-2", "n2")] {
        let pod = scope.pod(pod).on(node).label("app", "web");
        pod.sctp(9090).start().await?;
    }
    Ok((cluster, scope))
}

async fn dual_service(scope: &Scope, port: u16) -> Result<Svc> {
    let service = scope.service("web").load_balancer().sctp(port, 9090);
    let service = service.dual_stack().create().await?;
    ingress_is(&service, &ALL).await;
    Ok(service)
}

/// Waits until associations are refused, which a timeout is not.
async fn refuses(from: &Netns, to: SocketAddr) {
    wait_for(&format!("{to} to refuse"), LONG, || async {
        match from.sctp_get(to, SHORT) {
            Err(ConnectError::Refused) => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

#[apply(cluster_test)]
#[ignore = "needs a kernel with SCTP: hack/test vm"]
async fn every_node_answers_by_sctp_for_pods_on_every_node() -> Result<()> {
    let (cluster, scope) = sctp_pods("sctp").await?;
    let port = scope.free_port()?;
    dual_service(&scope, port).await?;
    let pod = Pod::find(&cluster, scope.namespace(), "web-1")?;
    let clients = [
        cluster.outside(),
        cluster.node("n1")?.netns().clone(),
        pod.netns(),
    ];
    for node in ["n1", "n2"] {
        for to in at_both_addresses(&cluster, node, port)? {
            for from in &clients {
                all_answer(&["web-1", "web-2"], || from.sctp_get(to, SHORT)).await;
            }
            // An association stays with its Pod.
            let mut stream = cluster.outside().sctp_connect(to, AMPLE)?;
            let pod = stream.say("one")?;
            for line in ["two", "three"] {
                let next = stream.say(line)?;
                ensure!(next == pod, "{to}: from {pod} to {next}");
            }
        }
    }
    Ok(())
}

#[apply(cluster_test)]
#[ignore = "needs a kernel with SCTP: hack/test vm"]
async fn with_the_policy_local_the_pod_sees_the_sctp_client() -> Result<()> {
    let (cluster, scope) = sctp_pods("sctplocal").await?;
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer().external_local();
    let service = service.dual_stack().sctp(port, 9090).create().await?;
    ingress_is(&service, &ALL).await;
    for (node, pod) in [("n1", "web-1"), ("n2", "web-2")] {
        for to in at_both_addresses(&cluster, node, port)? {
            let own = cluster.outside_address(to.ip());
            let reply = wait_for(&format!("an answer from {to}"), LONG, || async {
                cluster.outside().sctp_get(to, SHORT)
            })
            .await;
            ensure!(reply.pod == pod && reply.client.ip() == own, "{reply:?}");
        }
    }
    Ok(())
}

#[apply(cluster_test)]
#[ignore = "needs a kernel with SCTP: hack/test vm"]
async fn sctp_clients_are_refused_once_the_service_is_gone() -> Result<()> {
    let (cluster, scope) = sctp_pods("sctpgone").await?;
    let port = scope.free_port()?;
    let service = dual_service(&scope, port).await?;
    let (client, to) = (cluster.outside(), cluster.node("n1")?.v4(port));
    all_answer(&["web-1", "web-2"], || client.sctp_get(to, SHORT)).await;
    let mut stream = client.sctp_connect(to, AMPLE)?;
    let pod = stream.say("before")?;
    service.delete().await?;
    refuses(&client, to).await;
    ensure!(stream.say("after")? == pod, "the association goes on");
    Ok(())
}

#[apply(cluster_test)]
#[ignore = "needs a kernel with SCTP: hack/test vm"]
async fn an_sctp_listener_of_the_host_keeps_its_port() -> Result<()> {
    let (cluster, scope) = sctp_pods("sctphost").await?;
    let port = scope.free_port()?;
    let _listener = bind_sctp(cluster.node("n1")?.netns(), "0.0.0.0", port)?;
    let service = scope.service("web").load_balancer().sctp(port, 9090);
    let service = service.create().await?;
    ingress_is(&service, &[ALL[1]]).await;
    let message = ports_error(&service, "True").await;
    ensure!(
        message.contains(&format!("{port}/SCTP")),
        "it names the port: {message}"
    );
    let (client, n2) = (cluster.outside(), cluster.node("n2")?.v4(port));
    all_answer(&["web-1", "web-2"], || client.sctp_get(n2, SHORT)).await;
    Ok(())
}
