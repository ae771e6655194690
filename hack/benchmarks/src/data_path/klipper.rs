//! What K3s ServiceLB (klipper-lb), and Akrobateo before it, put on a node for a Service: a
//! hostPort, which the CNI plugin portmap forwards to a Pod, in whose network namespace
//! iptables forwards to the ClusterIP. The rules are those of both projects.

use std::net::IpAddr;

use anyhow::{Context, Result};
use highwire_e2e::{Netns, Pod, Scope};

/// A port of a Service and the hostPort that leads to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forward {
    pub(crate) protocol: &'static str,
    pub(crate) host_port: u16,
    pub(crate) cluster_ip: IpAddr,
    pub(crate) port: u16,
}

/// Starts such a Pod for all these ports; ServiceLB would start one for each Service. Its
/// rules on the nodes stay when it goes: the first has the Pod, and the others are made alike.
pub(crate) async fn start(scope: &Scope, nodes: &[&Netns], forwards: &[Forward]) -> Result<Pod> {
    let pod = scope.pod("klipper-lb").tcp(8079).start().await?;
    let address = pod.addresses().first().context("a Pod without address")?;
    let inside = pod.netns();
    inside.sysctl(&[("net/ipv4/ip_forward", "1")])?;
    restore(&inside, &in_the_pod(forwards))?;
    for node in nodes {
        restore(node, &on_the_node(*address, forwards))?;
    }
    Ok(pod)
}

/// The rules of klipper-lb's `entry`.
fn in_the_pod(forwards: &[Forward]) -> String {
    let (mut filter, mut nat) = (String::new(), String::new());
    for forward in forwards {
        let Forward {
            protocol,
            cluster_ip,
            port,
            ..
        } = forward;
        filter += &format!("-I FORWARD -s 0.0.0.0/0 -p {protocol} --dport {port} -j ACCEPT\n");
        filter += &format!("-A FORWARD -d {cluster_ip}/32 -p {protocol} --dport {port} -j DROP\n");
        nat += &format!(
            "-I PREROUTING -p {protocol} --dport {port} -j DNAT --to-destination {cluster_ip}:{port}\n\
             -I POSTROUTING -d {cluster_ip}/32 -p {protocol} -j MASQUERADE\n"
        );
    }
    format!("*filter\n{filter}COMMIT\n*nat\n{nat}COMMIT\n")
}

/// The rules of portmap for one Pod.
fn on_the_node(pod: IpAddr, forwards: &[Forward]) -> String {
    let mut rules = ":CNI-HOSTPORT-SETMARK -\n:CNI-HOSTPORT-MASQ -\n:CNI-HOSTPORT-DNAT -\n\
                     :CNI-DN-klipper -\n\
                     -A CNI-HOSTPORT-SETMARK -j MARK --set-xmark 0x2000/0x2000\n\
                     -A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE\n\
                     -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n\
                     -A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n\
                     -A POSTROUTING -j CNI-HOSTPORT-MASQ\n"
        .to_owned();
    for protocol in ["tcp", "udp"] {
        let of_it = forwards.iter().filter(|it| it.protocol == protocol);
        let ports: Vec<String> = of_it.map(|it| it.host_port.to_string()).collect();
        if !ports.is_empty() {
            let ports = ports.join(",");
            rules += &format!(
                "-A CNI-HOSTPORT-DNAT -p {protocol} -m multiport --destination-ports {ports} -j CNI-DN-klipper\n"
            );
        }
    }
    for forward in forwards {
        let Forward {
            protocol,
            host_port,
            port,
            ..
        } = forward;
        for source in ["10.244.0.0/16", "127.0.0.1/32"] {
            rules += &format!(
                "-A CNI-DN-klipper -s {source} -p {protocol} --dport {host_port} -j CNI-HOSTPORT-SETMARK\n"
            );
        }
        rules += &format!(
            "-A CNI-DN-klipper -p {protocol} --dport {host_port} -j DNAT --to-destination {pod}:{port}\n"
        );
    }
    format!("*nat\n{rules}COMMIT\n")
}

fn restore(netns: &Netns, rules: &str) -> Result<()> {
    // `check` gives a command no input.
    let script = format!("iptables-restore --noflush <<'RULES'\n{rules}RULES\n");
    netns.check(&["sh", "-ec", &script]).map(drop)
}
