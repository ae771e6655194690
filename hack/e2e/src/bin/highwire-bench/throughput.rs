//! Requests and connections per second through Highwire, beside the same Service's
//! NodePort and beside the path of K3s ServiceLB (klipper-lb), in turns.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use highwire_e2e::load::{Exchange, Rate, load};
use highwire_e2e::{Cluster, Netns, Pod, Scope, Svc, highwire};

use crate::create;

const CLIENTS: usize = 8;
const ROUNDS: usize = 9;
/// Requests of one client in a round.
const REQUESTS: usize = 4000;
/// Connections of one client in a round. A path has as many source ports as a client
/// has, less those of the last minute: more connections would measure that.
const CONNECTIONS: usize = 200;

/// A path to the Service.
struct Path {
    name: &'static str,
    to: SocketAddr,
}

/// Measures and prints.
pub(crate) async fn throughput(cluster: &Cluster, scope: &Scope) -> Result<()> {
    let (port, service) = create(scope, "throughput").await?;
    crate::advertised(&service).await?;
    let node = cluster.node(highwire::SERVING[0])?;
    let host_port = scope.free_port()?;
    let paths = [
        Path {
            name: "Highwire",
            to: node.v4(port),
        },
        Path {
            name: "NodePort",
            to: node.v4(service.node_port(port)?),
        },
        Path {
            name: "klipper-lb",
            to: node.v4(host_port),
        },
    ];
    let _balancer = klipper_lb(scope, node.netns(), &service, port, paths[2].to).await?;
    for (what, exchange, times) in [
        ("requests", Exchange::Request, REQUESTS),
        ("connections", Exchange::Connection, CONNECTIONS),
    ] {
        compare(&cluster.outside(), &paths, what, exchange, times)?;
    }
    service.delete().await
}

fn compare(
    from: &Netns,
    paths: &[Path; 3],
    what: &str,
    exchange: Exchange,
    times: usize,
) -> Result<()> {
    let mut rates: [Vec<Rate>; 3] = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        for (path, rates) in paths.iter().zip(&mut rates) {
            let rate = load(from, path.to, exchange, CLIENTS, times);
            rates.push(rate.with_context(|| format!("{what} by {}", path.name))?);
        }
    }
    println!(
        "{what}, {CLIENTS} clients, median of {ROUNDS} rounds in turns     per second   p99 ms"
    );
    let mut medians = Vec::new();
    for (path, rates) in paths.iter().zip(&rates) {
        let per_second = median(rates.iter().map(|rate| rate.per_second));
        let p99 = median(rates.iter().map(|rate| rate.p99.as_secs_f64() * 1000.0));
        println!("  {:<60}{per_second:10.0} {p99:8.2}", path.name);
        medians.push((per_second, p99));
    }
    let ours = medians[0];
    for (path, theirs) in paths[1..].iter().zip(&medians[1..]) {
        println!(
            "  Highwire ÷ {}: {:.2} per second, {:.2} p99",
            path.name,
            ours.0 / theirs.0,
            ours.1 / theirs.1
        );
    }
    println!();
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What klipper-lb does for a Service on a node: a hostPort that the CNI plugin
/// portmap sends to a Pod, in whose network namespace iptables sends it to the
/// ClusterIP. Gone with the Pod, but for one rule on the node.
async fn klipper_lb(
    scope: &Scope,
    node: &Netns,
    service: &Svc,
    port: u16,
    host: SocketAddr,
) -> Result<Pod> {
    let pod = scope.pod("klipper-lb").on(highwire::SERVING[0]);
    let pod = pod.tcp(8081).start().await?;
    let (address, cluster_ip) = (pod.addresses()[0], service.cluster_ip()?);
    let inside = pod.netns();
    inside.sysctl(&[("net/ipv4/ip_forward", "1")])?;
    let (port, host_port) = (port.to_string(), host.port().to_string());
    let to_service = format!("{cluster_ip}:{port}");
    let to_pod = format!("{address}:{port}");
    let cluster_ip = cluster_ip.to_string();
    let nat =
        |netns: &Netns, rule: &[&str]| netns.check(&[&["iptables", "-t", "nat"], rule].concat());
    nat(
        &inside,
        &[
            "-I",
            "PREROUTING",
            "-p",
            "tcp",
            "--dport",
            &port,
            "-j",
            "DNAT",
            "--to-destination",
            &to_service,
        ],
    )?;
    nat(
        &inside,
        &[
            "-I",
            "POSTROUTING",
            "-d",
            &cluster_ip,
            "-p",
            "tcp",
            "-j",
            "MASQUERADE",
        ],
    )?;
    nat(
        node,
        &[
            "-I",
            "PREROUTING",
            "-m",
            "addrtype",
            "--dst-type",
            "LOCAL",
            "-p",
            "tcp",
            "--dport",
            &host_port,
            "-j",
            "DNAT",
            "--to-destination",
            &to_pod,
        ],
    )?;
    Ok(pod)
}
