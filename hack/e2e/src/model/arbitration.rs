//! Who gets a port on a node: design §5, word for word, however slow.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::world::{Node, Port, Protocol, Service, World};

/// A port in one family of one node: whether that is IPv6, the protocol, the number.
pub type Slot = (bool, Protocol, u16);

/// Why a slot is refused: each of these words is right.
pub type Reasons = BTreeSet<&'static str>;

/// What becomes of a Service on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The node serves it with all of its slots.
    Served,
    /// The node refuses it, for the slots named.
    Refused(BTreeMap<Slot, Reasons>),
}

/// TCP ports that no Service gets (`--reserved-ports`).
const RESERVED: [(u16, u16); 7] = [
    (22, 22),
    (179, 179),
    (2379, 2380),
    (6443, 6443),
    (9807, 9807),
    (9808, 9808),
    (10248, 10259),
];
/// UDP sockets at these ports may be clients' (`net.ipv4.ip_local_port_range`).
const EPHEMERAL: std::ops::RangeInclusive<u16> = 32_768..=60_999;

/// What becomes of each Service of ours that this node is meant to serve and has an address
/// for.
pub fn verdicts(world: &World, node: &Node) -> BTreeMap<String, Verdict> {
    let ours = world.services.values().filter(|it| it.is_ours());
    let mut claims: Vec<Claim<'_>> = ours
        .filter(|service| !service.is_unsupported() && service.selects_node(node))
        .map(|service| Claim::new(world, node, service))
        .filter(|claim| !claim.slots.is_empty())
        .collect();
    claims.sort_by_key(|claim| (claim.service.created, &claim.service.key));

    // What the host refuses takes nothing from others.
    let (mut undecided, mut refused): (Vec<_>, Vec<_>) =
        claims.iter().partition(|claim| claim.taken.is_empty());
    let mut served: Vec<&Claim<'_>> = Vec::new();
    while !undecided.is_empty() {
        // Who is first wherever it wants to be; else, in a circle, the oldest.
        let is_first = |claim: &&&Claim<'_>| {
            let mut slots = claim.slots.iter();
            slots.all(|(slot, rank)| {
                let mut rivals = undecided.iter().filter_map(|other| {
                    let rank = other.slots.get(slot)?;
                    Some((*rank, other.service.created, &other.service.key))
                });
                let own = (*rank, claim.service.created, &claim.service.key);
                rivals.all(|rival| own <= rival)
            })
        };
        let winner = *undecided.iter().find(is_first).unwrap_or(&undecided[0]);
        served.push(winner);
        let (losers, rest): (Vec<&Claim<'_>>, Vec<&Claim<'_>>) = undecided
            .into_iter()
            .filter(|claim| claim.service.key != winner.service.key)
            .partition(|claim| claim.slots.keys().any(|it| winner.slots.contains_key(it)));
        refused.extend(losers);
        undecided = rest;
    }

    let mut verdicts: BTreeMap<String, Verdict> = BTreeMap::new();
    for claim in &served {
        verdicts.insert(claim.service.key.clone(), Verdict::Served);
    }
    for claim in refused {
        let mut reasons = claim.taken.clone();
        for slot in claim.slots.keys() {
            if !reasons.contains_key(slot) && served.iter().any(|it| it.slots.contains_key(slot)) {
                reasons.insert(*slot, Reasons::from(["HeldByService"]));
            }
        }
        verdicts.insert(claim.service.key.clone(), Verdict::Refused(reasons));
    }
    verdicts
}

/// What a Service wants of the node.
struct Claim<'a> {
    service: &'a Service,
    /// Its slots, and how it ranks for each: 0 advertised here, 1 elsewhere, 2 not at all.
    slots: BTreeMap<Slot, u8>,
    /// Those that the host has.
    taken: BTreeMap<Slot, Reasons>,
}

impl<'a> Claim<'a> {
    fn new(world: &World, node: &Node, service: &'a Service) -> Self {
        let mut claim = Self {
            service,
            slots: BTreeMap::new(),
            taken: BTreeMap::new(),
        };
        for v6 in [false, true] {
            let served: Vec<IpAddr> = served_at(node, v6);
            if !service.families.contains(&v6) || served.is_empty() {
                continue;
            }
            for port in &service.ports {
                let slot = (v6, port.protocol, port.port);
                claim.slots.insert(slot, rank(service, node, port));
                let reasons = host(world, node, service, port, &served);
                if !reasons.is_empty() {
                    claim.taken.insert(slot, reasons);
                }
            }
        }
        claim
    }
}

/// The addresses of a family at which the node serves.
fn served_at(node: &Node, v6: bool) -> Vec<IpAddr> {
    let addresses = node.host_addresses.iter().copied();
    addresses
        .filter(|address| address.is_ipv6() == v6)
        .collect()
}

fn rank(service: &Service, node: &Node, port: &Port) -> u8 {
    let own = node.own_addresses();
    let wanted = (port.protocol, port.port);
    let listed = service
        .ingress
        .iter()
        .filter(|it| it.ports.contains(&wanted));
    let ranks = listed.map(|entry| if own.contains(&entry.ip) { 0 } else { 1 });
    ranks.min().unwrap_or(2)
}

/// Rule 1 and 5: everything on the host that has the port, the Service's own doing left out.
fn host(world: &World, node: &Node, service: &Service, port: &Port, at: &[IpAddr]) -> Reasons {
    let mut reasons = Reasons::new();
    let wanted = (port.protocol, port.port);
    let is_reserved = |(low, high): &(u16, u16)| (*low..=*high).contains(&port.port);
    if port.protocol == Protocol::Tcp && RESERVED.iter().any(is_reserved) {
        reasons.insert("ReservedPort");
    }
    // Its own Pod in the host's network, ready, at the same port.
    let own_pods: Vec<_> = world
        .pods
        .iter()
        .filter(|pod| pod.node == node.name && pod.ready && pod.is_selected_by(service))
        .filter(|pod| port.target == port.port && pod.host_ports.contains(&wanted))
        .collect();
    let counts = |port: u16| wanted.0 == Protocol::Tcp || !EPHEMERAL.contains(&port);
    let listens = node.listeners.iter().any(|listener| {
        let mut at = at.iter();
        counts(listener.port) && at.any(|at| listener.covers(*at, port.protocol, port.port))
    });
    if listens {
        match own_pods.iter().any(|pod| pod.host_network) {
            false => drop(reasons.insert("HostListener")),
            true if !service.ranges.is_empty() => {
                reasons.insert("SourceRangesNotEnforced");
            }
            true => {}
        }
    }
    for pod in world.pods.iter().filter(|pod| pod.node == node.name) {
        let is_own = own_pods.iter().any(|own| own.name == pod.name);
        if pod.host_ports.contains(&wanted) && !is_own {
            reasons.insert("HostPort");
        }
    }
    for other in world.services.values() {
        let is_own = other.key == service.key;
        for its in &other.ports {
            let leads_here = is_own && its.port == port.port;
            if (its.protocol, its.node_port) == (port.protocol, Some(port.port)) && !leads_here {
                reasons.insert("NodePort");
            }
            let here = other.external_ips.iter().any(|ip| at.contains(ip));
            if here && !is_own && (its.protocol, its.port) == wanted {
                reasons.insert("ExternalIP");
            }
        }
        let is_listed = |at: &IpAddr| {
            let mut ingress = other.ingress.iter();
            ingress.any(|entry| entry.is_vip && entry.ip == *at)
        };
        let mut ports = other.ports.iter();
        if !is_own
            && at.iter().any(is_listed)
            && ports.any(|its| (its.protocol, its.port) == wanted)
        {
            reasons.insert("LoadBalancerAddress");
        }
        if port.protocol == Protocol::Tcp && other.health_check_node_port == Some(port.port) {
            reasons.insert("HealthCheckNodePort");
        }
    }
    reasons
}
