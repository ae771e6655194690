//! What a client outside has to get at an address and port of a node.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use super::arbitration::{Verdict, verdicts};
use super::endpoints::{Answers, Client, answers};
use super::world::{AgentState, Node, Port, Protocol, Service, World};

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// An address of the node.
    pub address: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// What has to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// One of these Pods answers.
    Served {
        /// For this Service.
        service: String,
        /// The Pods.
        by: BTreeSet<String>,
    },
    /// One of these Pods answers, or it is refused: an endpoint listens at other ports.
    Perhaps {
        /// The Pods.
        by: BTreeSet<String>,
    },
    /// A program of the host answers, and no Pod that is not in its network.
    HostListener {
        /// The Pods in the node's network.
        pods: BTreeSet<String>,
        /// Whether the answer may come from another address, which the client does not take:
        /// a UDP server that is bound to all addresses answers from the one that the kernel
        /// takes, of IPv6 mostly the newest.
        from_elsewhere: bool,
    },
    /// Nobody answers.
    Closed {
        /// Why not.
        why: String,
        /// Whether TCP clients have to be refused at once.
        at_once: bool,
    },
    /// Nothing is said about it.
    Unspecified,
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Served { service, by } => write!(f, "an answer of {by:?} for {service}"),
            Self::Perhaps { by } => write!(f, "a refusal, or an answer of {by:?}"),
            Self::HostListener { pods, .. } => {
                write!(f, "an answer of the host's own, or of {pods:?}")
            }
            Self::Closed { why, at_once: true } => write!(f, "a refusal at once, for {why}"),
            Self::Closed { why, .. } => write!(f, "no answer, for {why}"),
            Self::Unspecified => f.write_str("anything"),
        }
    }
}

/// What the client has to get there.
pub fn expectation(world: &World, node: &Node, client: &Client, at: Endpoint) -> Expectation {
    let v6 = at.address.is_ipv6();
    let mut entrances = kube_proxy_entrances(world, node, at);
    if let Some((service, port)) = entrances.pop() {
        // The rules of an agent that is frozen may be older than the entrance.
        if !node.is_active() && node.has_table {
            return Expectation::Unspecified;
        }
        let mut found = answers(world, service, port, v6, node);
        // Which of several gets it is kube-proxy's affair.
        for (other, port) in entrances {
            let more = answers(world, other, port, v6, node);
            found.some_refuse |= more.some_refuse || more.pods.is_empty();
            found.pods.extend(more.pods);
        }
        return of_answers(service, found, false);
    }
    if is_heard(node, at) {
        let pods = world.pods.iter();
        let pods = pods.filter(|pod| pod.host_network && pod.node == node.name);
        let own = node.own_addresses();
        let of_family = own.iter().filter(|address| address.is_ipv6() == v6);
        return Expectation::HostListener {
            pods: pods.map(|pod| pod.name.clone()).collect(),
            from_elsewhere: at.protocol == Protocol::Udp && of_family.count() > 1,
        };
    }
    if !node.is_active() {
        return match (node.is_enabled(), node.agent) {
            (false, AgentState::None) => closed("nobody serves on this node"),
            _ => Expectation::Unspecified,
        };
    }
    if !node.host_addresses.contains(&at.address) {
        return Expectation::Unspecified;
    }
    let verdicts = verdicts(world, node);
    let mut wanted = Vec::new();
    for service in world
        .services
        .values()
        .filter(|it| it.families.contains(&v6))
    {
        let ports = service.ports.iter();
        let found = ports
            .clone()
            .find(|it| (it.protocol, it.port) == (at.protocol, at.port));
        let (Some(port), Some(verdict)) = (found, verdicts.get(&service.key)) else {
            continue;
        };
        if *verdict != Verdict::Served {
            wanted.push(service.key.as_str());
            continue;
        }
        if !client.may_enter(service, v6) {
            return Expectation::Closed {
                why: format!("the source ranges of {}", service.key),
                at_once: false,
            };
        }
        let found = answers(world, service, port, v6, node);
        return of_answers(service, found, !service.external_local);
    }
    match wanted.is_empty() {
        true => closed("no Service asks for it here"),
        false => closed(&format!("it is refused to {}", wanted.join(", "))),
    }
}

fn closed(why: &str) -> Expectation {
    Expectation::Closed {
        why: why.to_owned(),
        at_once: true,
    }
}

fn of_answers(service: &Service, found: Answers, at_once: bool) -> Expectation {
    match (found.pods.is_empty(), found.some_refuse) {
        (true, _) => Expectation::Closed {
            why: format!("{} has no endpoint for it", service.key),
            at_once,
        },
        (false, true) => Expectation::Perhaps { by: found.pods },
        (false, false) => Expectation::Served {
            service: service.key.clone(),
            by: found.pods,
        },
    }
}

/// The ports of Services that kube-proxy itself serves there: NodePorts, externalIPs, and
/// addresses that another load balancer has written.
fn kube_proxy_entrances<'a>(
    world: &'a World,
    node: &Node,
    at: Endpoint,
) -> Vec<(&'a Service, &'a Port)> {
    if node.proxy_mode == "none" {
        return Vec::new();
    }
    let v6 = at.address.is_ipv6();
    // In nftables mode it serves NodePorts at the primary address only.
    let has_node_ports = node.proxy_mode != "nftables" || node.primary(v6) == Some(at.address);
    let mut found = Vec::new();
    for service in world
        .services
        .values()
        .filter(|it| it.families.contains(&v6))
    {
        let is_external = service.external_ips.contains(&at.address);
        let is_vip = service.is_load_balancer
            && service
                .ingress
                .iter()
                .any(|it| it.is_vip && it.ip == at.address);
        for port in service.ports.iter().filter(|it| it.protocol == at.protocol) {
            let by_node_port = has_node_ports && port.node_port == Some(at.port);
            if by_node_port || ((is_external || is_vip) && port.port == at.port) {
                found.push((service, port));
            }
        }
    }
    found
}

/// Whether a socket of the host takes it.
fn is_heard(node: &Node, at: Endpoint) -> bool {
    let mut listeners = node.listeners.iter();
    listeners.any(|listener| listener.covers(at.address, at.protocol, at.port))
}
