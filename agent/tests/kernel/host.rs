//! What the kernel tells of the host's addresses and sockets, on a busy host too.
//!
//! Addresses: the node 192.0.2.11, Pods 10.101.0.0/16 to 10.104.0.0/16.

use std::{
    io::Write,
    net::{IpAddr, TcpListener},
    process::{Child, Command, Stdio},
};

use highwire_agent::facts::{
    addresses::{self, HostAddress},
    listeners,
};
use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::{command, in_new_namespace, until};

const NODE: &str = "192.0.2.11";

/// eth0 with the node's address and the default route, its other end is eth1.
fn network() {
    command("ip link set lo up");
    command("ip link add eth0 type veth peer name eth1");
    command("ip link set eth0 up");
    command("ip link set eth1 up");
    command("ip address add 192.0.2.11/24 dev eth0");
    command("ip route add default via 192.0.2.1 dev eth0");
}

/// A routing daemon: takes a default route of a high metric, and a thousand Pod routes,
/// away and back until it is stopped.
struct RoutingDaemon {
    program: Child,
    _directory: TempDir,
}

impl RoutingDaemon {
    /// One of several, distinguished by `number`.
    fn start(number: u8) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut daemon = Command::new("sh")
            .args(["-c", "cat > batch; while ip -batch batch; do :; done"])
            .current_dir(&directory)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut batch = daemon.stdin.take().unwrap();
        for route in 0..1000 {
            let to = format!(
                "10.{}.{}.{}/32 via 192.0.2.2",
                100 + number,
                route / 250,
                route % 250
            );
            writeln!(batch, "route add {to}\nroute del {to}").unwrap();
            let to = format!("default via 192.0.2.3 metric {}", 1000 + u16::from(number));
            writeln!(batch, "route add {to}\nroute del {to}").unwrap();
        }
        drop(batch);
        Self {
            program: daemon,
            _directory: directory,
        }
    }
}

impl Drop for RoutingDaemon {
    fn drop(&mut self) {
        self.program.kill().unwrap();
        self.program.wait().unwrap();
    }
}

fn has(addresses: &[HostAddress], ip: &str) -> bool {
    let ip: IpAddr = ip.parse().unwrap();
    addresses.iter().any(|own| own.address == ip)
}

#[test]
fn a_busy_routing_daemon_keeps_no_address_from_being_seen() {
    in_new_namespace(async || {
        network();
        // Several, since one pauses between its rounds.
        let _daemons = [1, 2, 3, 4].map(RoutingDaemon::start);
        let (sender, mut found) = mpsc::channel(1);
        let _follower = tokio::spawn(addresses::follow(sender, |found| found));
        until(&mut found, |addresses| has(addresses, NODE)).await;
        for change in ["add", "del", "add"] {
            command(&format!("ip address {change} 203.0.113.5/32 dev eth0"));
            until(&mut found, |addresses| {
                has(addresses, "203.0.113.5") == (change == "add")
            })
            .await;
        }
    });
}

#[test]
fn a_default_route_of_another_table_is_nobodys_business() {
    in_new_namespace(async || {
        network();
        command("ip link add vpn type veth peer name vpn1");
        command("ip link set vpn up");
        command("ip address add 10.9.0.2/24 dev vpn");
        command("ip route add default dev vpn table 51820");
        command("ip route add default dev vpn table 51");
        let (sender, mut found) = mpsc::channel(1);
        let _follower = tokio::spawn(addresses::follow(sender, |found| found));
        let first = found.recv().await.unwrap();
        let on_default: Vec<&str> = first
            .iter()
            .filter(|own| own.global && own.on_default_route)
            .map(|own| own.interface.as_str())
            .collect();
        assert_eq!(on_default, ["eth0"]);
        assert!(has(&first, "10.9.0.2"));
    });
}

#[test]
fn an_interface_set_down_does_not_serve_and_one_without_carrier_does() {
    in_new_namespace(async || {
        network();
        let (sender, mut found) = mpsc::channel(1);
        let _follower = tokio::spawn(addresses::follow(sender, |found| found));
        until(&mut found, |addresses| has(addresses, NODE)).await;
        // The cable is pulled. What is seen next has come after it.
        command("ip link set eth1 down");
        command("ip address add 203.0.113.5/32 dev eth0");
        let seen = until(&mut found, |addresses| has(addresses, "203.0.113.5")).await;
        assert!(has(&seen, NODE));
        command("ip link set eth1 up");
        command("ip link set eth0 down");
        until(&mut found, |addresses| !has(addresses, NODE)).await;
        command("ip link set eth0 up");
        until(&mut found, |addresses| has(addresses, NODE)).await;
    });
}

#[test]
fn a_listener_bound_to_a_device_is_one_there_only() {
    in_new_namespace(async || {
        network();
        let everywhere = TcpListener::bind("0.0.0.0:80").unwrap();
        let bound = TcpListener::bind("0.0.0.0:81").unwrap();
        setsockopt(&bound, BindToDevice, &"eth0".into()).unwrap();
        let (sender, mut found) = mpsc::channel(1);
        let _follower = tokio::spawn(addresses::follow(sender, |found| found));
        let host = found.recv().await.unwrap();
        let node = host.iter().find(|own| has(&[(*own).clone()], NODE));
        let node = node.unwrap();
        let listeners = listeners::scan().unwrap();
        let covers = |devices| -> Vec<u16> {
            let covering = listeners.iter().filter(|l| l.covers(node.address, devices));
            covering.map(|l| l.bound.port()).collect()
        };
        assert_eq!(covers(&node.devices), [80, 81]);
        assert_eq!(covers(&[99].into()), [80]);
        drop((everywhere, bound));
    });
}
