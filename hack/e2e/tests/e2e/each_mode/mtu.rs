//! Links with a small MTU in the path: the router's ICMP error (IPv4 fragmentation
//! needed, ICMPv6 packet too big) must reach the end that sends, or large transfers
//! hang.
//!
//! A route with a locked MTU makes one direction of a link narrow. The clients have
//! addresses of their own, 198.51.100.9x and 2001:db8:2::9x, and each test a node of
//! its own: an MTU is learned per destination, and what a client has learned it tells
//! the other end, which then never sends too much.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{ALL, Undo, answers, ingress_is, web};
use highwire_e2e::{Cluster, Netns, Pod, Scope};
use macro_rules_attribute::apply;

/// More than one narrow packet and more than an initial congestion window.
const LARGE: usize = 100_000;
/// A transfer that hangs takes longer.
const TRANSFER: Duration = Duration::from_secs(10);
const NARROW: &str = "1300";

/// A dual-stack Service on a TCP port.
async fn served(cluster: &Cluster, scope: &Scope) -> Result<u16> {
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer().dual_stack();
    ingress_is(&service.tcp(port, 8080).create().await?, &ALL).await;
    for address in ALL {
        answers(&cluster.outside(), SocketAddr::new(address.parse()?, port)).await;
    }
    Ok(port)
}

/// Sends a long line from `from` to `to` and back, on new connections until `pod` has
/// answered one.
fn transfer(cluster: &Cluster, from: IpAddr, to: SocketAddr, pod: &str) -> Result<()> {
    let line = "x".repeat(LARGE);
    for _ in 0..50 {
        let client = cluster.outside();
        let mut stream = client.tcp_connect_from(SocketAddr::new(from, 0), to, TRANSFER)?;
        if stream.say("who?")? == pod {
            let answered = stream.say(&line);
            return answered
                .map(drop)
                .with_context(|| format!("{from} to {to}, {pod}"));
        }
    }
    anyhow::bail!("{pod} never answers at {to}")
}

/// Gives the client the addresses that end in `last`, for as long as the value lives. The
/// other tests' connections are not to come from there: of IPv6 the newest address would be
/// preferred.
fn client_addresses(client: &Netns, last: u8) -> Result<Undo> {
    let lines = |verb: &str| {
        format!(
            "addr {verb} 198.51.100.{last}/24 dev eth0\n\
             addr {verb} 2001:db8:2::{last}/64 dev eth0 nodad preferred_lft 0"
        )
    };
    Undo::after(client, &lines("add"), lines("del"))
}

/// The MTU that `netns` has learned for the path to `to`.
fn learned(netns: &Netns, to: IpAddr) -> Result<String> {
    netns.check(&["ip", "route", "get", &to.to_string()])
}

fn is_narrow(netns: &Netns, to: IpAddr) -> Result<()> {
    let route = learned(netns, to)?;
    ensure!(
        route.contains(&format!("mtu {NARROW}")),
        "no MTU was learned: {route}"
    );
    Ok(())
}

#[apply(cluster_test)]
async fn answers_fit_a_narrow_link_to_the_client() -> Result<()> {
    let (cluster, scope) = web("narrowdown").await?;
    let port = served(&cluster, &scope).await?;
    let (client, fabric) = (cluster.outside(), cluster.netns("fabric")?);
    let _added = client_addresses(&client, 91)?;
    let routes = |verb: &str| {
        format!(
            "route {verb} 198.51.100.91 dev client mtu lock {NARROW}\n\
             route {verb} 2001:db8:2::91 dev client mtu lock {NARROW}"
        )
    };
    let _narrow = Undo::after(&fabric, &routes("add"), routes("del"))?;
    for (own, node) in [("198.51.100.91", ALL[0]), ("2001:db8:2::91", ALL[2])] {
        let (own, node): (IpAddr, IpAddr) = (own.parse()?, node.parse()?);
        for pod in ["web-1", "web-2"] {
            transfer(&cluster, own, SocketAddr::new(node, port), pod)?;
            // A Pod sees either the client or, masqueraded, the node.
            let netns = Pod::find(&cluster, scope.namespace(), pod)?.netns();
            is_narrow(&netns, own).or_else(|_| is_narrow(&netns, node))?;
        }
    }
    Ok(())
}

#[apply(cluster_test)]
async fn requests_fit_a_narrow_link_to_the_pod() -> Result<()> {
    let (cluster, scope) = web("narrowup").await?;
    let port = served(&cluster, &scope).await?;
    let client = cluster.outside();
    for (name, last) in [("web-1", 92), ("web-2", 93)] {
        let pod = Pod::find(&cluster, scope.namespace(), name)?;
        let node = cluster.node(pod.node())?;
        for address in pod.addresses() {
            let route = learned(node.netns(), *address)?;
            let mut words = route.split_whitespace().skip_while(|word| *word != "dev");
            let device = words.nth(1).context("a route without a device")?;
            let narrow = format!("route replace {address} dev {device} mtu lock {NARROW}");
            node.netns().ip_batch(&narrow)?;
        }
        let _added = client_addresses(&client, last)?;
        for (own, node) in [
            (format!("198.51.100.{last}"), ALL[1]),
            (format!("2001:db8:2::{last}"), ALL[3]),
        ] {
            let (own, node) = (own.parse()?, node.parse()?);
            for family in ["-4", "-6"] {
                client.check(&["ip", family, "route", "flush", "cache"])?;
            }
            ensure!(
                is_narrow(&client, node).is_err(),
                "what was learned is forgotten"
            );
            transfer(&cluster, own, SocketAddr::new(node, port), name)?;
            is_narrow(&client, node)?;
        }
    }
    Ok(())
}
