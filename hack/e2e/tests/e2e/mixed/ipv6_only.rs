//! A cluster that has no IPv4 at all.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{LONG, SHORT, all_answer, ingress_is, web_pods, web_service};
use highwire_e2e::lab::http::http_text;
use highwire_e2e::layout::{AGENT_PORT, IpFamily};
use highwire_e2e::{PrivateCluster, Scope, highwire, wait_for};
use macro_rules_attribute::apply;

#[apply(cluster_test)]
async fn a_cluster_without_ipv4_is_served_and_its_agents_listen_where_they_are_probed() -> Result<()>
{
    let cluster = PrivateCluster::up_with("six", 2, |config| config.ip_family = IpFamily::Ipv6);
    let cluster = cluster.await?;
    highwire::start(&cluster).await?;
    let scope = Scope::new(&cluster, "six").await?;
    web_pods(&scope).await?;
    let (port, client) = (scope.free_port()?, cluster.outside());
    let service = web_service(&scope, "web", port).await?;
    ingress_is(&service, &["2001:db8:1::11", "2001:db8:1::12"]).await;
    for node in ["n1", "n2"] {
        let to = cluster.node(node)?.at(port);
        all_answer(&["web-1", "web-2"], || client.http_get(to, SHORT)).await;
    }

    let n1 = cluster.node("n1")?;
    let probed: SocketAddr = n1.at(AGENT_PORT);
    let elsewhere = cluster.node("n2")?;
    wait_for("the probe's answer", LONG, || async {
        let asked = elsewhere.netns();
        asked.run(|| http_text(probed, "/readyz", SHORT))
    })
    .await;
    let filter = format!("sport = :{AGENT_PORT}");
    let sockets = n1.netns().check(&["ss", "-Hltn", &filter])?;
    let mut bound: Vec<&str> = sockets
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3))
        .collect();
    bound.sort_unstable();
    let own = format!("[2001:db8:1::11]:{AGENT_PORT}");
    let loopback = format!("[::1]:{AGENT_PORT}");
    ensure!(bound == [own, loopback], "not at every address: {bound:?}");
    Ok(())
}
