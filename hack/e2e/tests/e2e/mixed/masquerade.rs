//! kube-proxy without a cluster CIDR does not masquerade traffic to ClusterIPs; then
//! our own masquerade is what brings replies back.

use std::net::SocketAddr;

use anyhow::Result;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{SHORT, all_answer, ingress_is, web_pods};
use highwire_e2e::{Pod, PrivateCluster, Scope, highwire};
use macro_rules_attribute::apply;

#[apply(cluster_test)]
async fn pods_of_other_nodes_answer_though_kube_proxy_does_not_masquerade() -> Result<()> {
    let cluster =
        PrivateCluster::up_with("msq", 2, |config| config.proxy_knows_pods = false).await?;
    highwire::start(&cluster).await?;
    let scope = Scope::new(&cluster, "msq").await?;
    web_pods(&scope).await?;
    let (tcp, udp) = (scope.free_port()?, scope.free_port()?);
    let service = scope.service("web").load_balancer().dual_stack();
    let service = service.tcp(tcp, 8080).udp(udp, 5353).create().await?;
    let all = [
        "192.0.2.11",
        "192.0.2.12",
        "2001:db8:1::11",
        "2001:db8:1::12",
    ];
    ingress_is(&service, &all).await;
    let pod = Pod::find(&cluster, scope.namespace(), "web-2")?;
    let clients = [
        cluster.outside(),
        pod.netns(),
        cluster.node("n2")?.netns().clone(),
    ];
    for from in clients {
        for address in all {
            let at = |port| SocketAddr::new(address.parse().unwrap(), port);
            let both = ["web-1", "web-2"];
            all_answer(&both, || from.http_get(at(tcp), SHORT)).await;
            all_answer(&both, || from.udp_ask(at(udp), SHORT)).await;
        }
    }
    Ok(())
}
