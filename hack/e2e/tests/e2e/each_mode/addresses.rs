//! At which of a node's addresses Services answer.
//!
//! Addresses: nodes 192.0.2.11 (n1) and .12 (n2) serve; they get others meanwhile.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{LONG, SHORT, Served, Undo, all_answer, answers, refuses, served};
use highwire_e2e::{Cluster, wait_for};
use macro_rules_attribute::apply;

#[apply(cluster_test)]
async fn an_address_that_moves_between_nodes_is_served_where_it_is() -> Result<()> {
    let Served {
        cluster,
        scope: _scope,
        service: _,
        port,
    } = served("vip").await?;
    let client = cluster.outside();
    answers(&client, cluster.node("n1")?.v4(port)).await;
    let (vip, fabric) = ("192.0.2.200", cluster.netns("fabric")?);
    let to: SocketAddr = format!("{vip}:{port}").parse()?;
    // As keepalived does: from n1 to n2 and back.
    for (here, there) in [("n1", "n2"), ("n2", "n1"), ("n1", "n2")] {
        let node = cluster.node(here)?;
        let _vip = Undo::after(
            node.netns(),
            &format!("addr add {vip}/24 dev eth0"),
            format!("addr del {vip}/24 dev eth0"),
        )?;
        // What its gratuitous ARP does: the router forgets where the address was.
        fabric.ip_batch("neigh flush dev br0")?;
        answers(&client, to).await;
        is_served(&cluster, here, vip, true).await;
        is_served(&cluster, there, vip, false).await;
        // It is this node that answers, and all Pods are behind it.
        all_answer(&["web-1", "web-2"], || client.http_get(to, SHORT)).await;
        let forwarded = ["conntrack", "-L", "-p", "tcp", "--orig-dst", vip];
        ensure!(
            node.netns()
                .check(&forwarded)?
                .contains(&format!("dport={port}"))
        );
    }
    is_served(&cluster, "n1", vip, false).await;
    fabric.ip_batch("neigh flush dev br0")?;
    let gone = client.http_get(to, SHORT);
    ensure!(gone.is_err(), "nobody has the address: {gone:?}");
    Ok(())
}

/// Waits until the node reports that it serves this address, or that it does not.
async fn is_served(cluster: &Cluster, node: &str, address: &str, wanted: bool) {
    wait_for(&format!("{address} on {node}: {wanted}"), LONG, || async {
        let path = "-o=jsonpath={.status.addresses}";
        let addresses = cluster.kubectl(&["get", "lbn", node, path])?;
        ensure!(
            addresses.contains(&format!("\"{address}\"")) == wanted,
            "{addresses}"
        );
        Ok(())
    })
    .await;
}

#[apply(cluster_test)]
async fn of_several_interfaces_those_with_a_default_route_serve() -> Result<()> {
    let Served {
        cluster,
        scope: _scope,
        service: _,
        port,
    } = served("links").await?;
    let (client, n1) = (cluster.outside(), cluster.node("n1")?);
    answers(&client, n1.v4(port)).await;
    // A CNI bridge, and a second uplink that has no default route yet. Both are
    // reached through the first.
    let links = "link add cni9 type bridge\n\
                 addr add 198.18.1.1/24 dev cni9\n\
                 link set cni9 up\n\
                 link add up9 type bridge\n\
                 addr add 198.18.2.1/24 dev up9\n\
                 link set up9 up";
    let _links = Undo::after(n1.netns(), links, "link del cni9\nlink del up9".into())?;
    let routes = |verb: &str| {
        format!(
            "route {verb} 198.18.1.0/24 via 192.0.2.11\nroute {verb} 198.18.2.0/24 via 192.0.2.11"
        )
    };
    let _routes = Undo::after(&cluster.netns("fabric")?, &routes("add"), routes("del"))?;
    let (bridge, uplink): (SocketAddr, SocketAddr) = (
        format!("198.18.1.1:{port}").parse()?,
        format!("198.18.2.1:{port}").parse()?,
    );
    refuses(&client, uplink).await;
    n1.netns()
        .ip_batch("route add default via 198.18.2.2 dev up9 metric 900")?;
    answers(&client, uplink).await;
    is_served(&cluster, "n1", "198.18.2.1", true).await;
    refuses(&client, bridge).await;
    is_served(&cluster, "n1", "198.18.1.1", false).await;
    n1.netns()
        .ip_batch("route del default via 198.18.2.2 dev up9 metric 900")?;
    refuses(&client, uplink).await;
    is_served(&cluster, "n1", "198.18.2.1", false).await;
    Ok(())
}
