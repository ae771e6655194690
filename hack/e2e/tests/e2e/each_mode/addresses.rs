//! At which of a node's addresses Services answer.
//!
//! Addresses: nodes 192.0.2.11 (n1) and .12 (n2) serve; n1 gets others meanwhile.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{LONG, Served, Undo, answers, refuses, served};
use highwire_e2e::{Cluster, wait_for};
use macro_rules_attribute::apply;

#[apply(cluster_test)]
async fn an_address_that_moves_in_is_served_and_one_that_moves_out_is_not() -> Result<()> {
    let Served {
        cluster,
        scope: _scope,
        service: _,
        port,
    } = served("vip").await?;
    let (client, n1) = (cluster.outside(), cluster.node("n1")?);
    answers(&client, n1.v4(port)).await;
    let links = n1
        .netns()
        .check(&["ip", "-o", "route", "show", "default"])?;
    let link = links
        .split_whitespace()
        .skip_while(|word| *word != "dev")
        .nth(1)
        .unwrap_or("eth0");
    // As keepalived moves one.
    n1.netns()
        .check(&["ip", "address", "add", "192.0.2.200/24", "dev", link])?;
    let vip = SocketAddr::from(([192, 0, 2, 200], port));
    answers(&client, vip).await;
    n1.netns()
        .check(&["ip", "address", "del", "192.0.2.200/24", "dev", link])?;
    wait_for("the address to leave the report", LONG, || async {
        let addresses =
            cluster.kubectl(&["get", "lbn", "n1", "-o=jsonpath={.status.addresses}"])?;
        ensure!(!addresses.contains("192.0.2.200"), "{addresses}");
        Ok(())
    })
    .await;
    answers(&client, n1.v4(port)).await;
    Ok(())
}

/// Waits until n1 reports that it serves this address, or that it does not.
async fn is_served(cluster: &Cluster, address: &str, wanted: bool) {
    wait_for(&format!("{address} served: {wanted}"), LONG, || async {
        let path = "-o=jsonpath={.status.addresses}";
        let addresses = cluster.kubectl(&["get", "lbn", "n1", path])?;
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
    is_served(&cluster, "198.18.2.1", true).await;
    refuses(&client, bridge).await;
    is_served(&cluster, "198.18.1.1", false).await;
    n1.netns()
        .ip_batch("route del default via 198.18.2.2 dev up9 metric 900")?;
    refuses(&client, uplink).await;
    is_served(&cluster, "198.18.2.1", false).await;
    Ok(())
}
