//! From what is known about Services and this node to what the kernel should do.
//!
//! This only gathers the claims and hands them to [`highwire_api::arbitration`],
//! which decides who gets a port.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use highwire_api::{
    Family, PortKey, Protocol, ServiceKey, ServiceSpec,
    arbitration::{Claim, Holder, Slot, Verdict, arbitrate},
    clients::Clients,
    holdings::{Holdings, Tenure},
    node::{Conflict, ConflictReason},
    service::{Entrance, ServicePort},
};
use ipnet::IpNet;

use crate::{
    claims::{HostClaims, HostFacts, ServedAddresses},
    host::addresses::{AddressPolicy, HostAddress, served_addresses},
    node::NodeFacts,
    plan::{Plan, Target},
    range_bound::{MOST_ON_NODE, without_room},
    udp::{Behind, Frontends, ServicePortName},
};

/// A Service of ours as last understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What it asks for.
    pub spec: ServiceSpec,
    /// What its status says it holds already.
    pub holdings: Holdings,
}

/// All that a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The Services of ours, by key.
    pub services: &'a BTreeMap<ServiceKey, Wanted>,
    /// This node as the API server knows it.
    pub node: &'a NodeFacts,
    /// The addresses the kernel has.
    pub host_addresses: &'a [HostAddress],
    /// Which of them are served.
    pub address_policy: &'a AddressPolicy,
    /// What else the host has ports for.
    pub host: HostFacts<'a>,
    /// The Services that are left out because nft refuses them, each with who has their
    /// ports instead, in words.
    pub left_out: &'a BTreeMap<ServiceKey, String>,
}

/// What the node does, and what it refuses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// What the kernel should do.
    pub plan: Plan,
    /// The Services it does it for.
    pub served: BTreeSet<ServiceKey>,
    /// The ports it refuses, sorted.
    pub conflicts: Vec<Conflict>,
    /// Where it takes UDP, and for which Service port.
    pub udp: Frontends,
    /// The served Services whose ports have a listener, by port: it is their own Pods'.
    pub beside: BTreeMap<PortKey, BTreeSet<ServiceKey>>,
}

/// Decides what this node forwards. Pure: the same facts give the same decision.
#[must_use]
pub fn decide(facts: &Facts<'_>) -> Decision {
    if !facts.node.enabled {
        return Decision::default();
    }
    let addresses = served_addresses(
        facts.host_addresses,
        &facts.node.addresses,
        facts.address_policy,
    );
    let own: BTreeSet<IpAddr> = addresses.union(&facts.node.addresses).copied().collect();
    let families: BTreeSet<Family> = addresses.iter().map(|ip| Family::of(*ip)).collect();
    let primary = &facts.node.primary;
    let host = HostClaims::new(&facts.host, &with_devices(&addresses, facts.host_addresses));
    let selected = facts
        .services
        .values()
        .filter(|wanted| wanted.spec.node_selector.matches(&facts.node.labels))
        .filter(|wanted| !facts.left_out.contains_key(&wanted.spec.key));
    let without_room = without_room(selected.clone(), &own);
    let claims: Vec<Claim> = selected
        .map(|wanted| {
            let mut claim = claim(wanted, &families, primary, &own, &host);
            if without_room.contains(&claim.service) {
                let most = MOST_ON_NODE;
                let first = claim.slots.keys().next().copied();
                claim
                    .taken
                    .extend(first.map(|slot| (slot, Holder::SourceRanges { most })));
            }
            claim
        })
        .filter(|claim| !claim.slots.is_empty())
        .collect();
    let Verdict { served, refused } = arbitrate(&claims);
    let forwards = served
        .iter()
        .filter_map(|key| facts.services.get(key))
        .flat_map(|wanted| forwards(&wanted.spec, &families, primary))
        .collect();
    let guards = served
        .iter()
        .filter_map(|key| facts.services.get(key))
        .flat_map(|wanted| guards(&wanted.spec, &families, primary))
        .collect();
    let udp_ports = served
        .iter()
        .filter_map(|key| facts.services.get(key))
        .flat_map(|wanted| udp_ports(&wanted.spec, &families, primary));
    let udp = Frontends::new(&addresses, udp_ports, own);
    let left_out = facts.left_out.iter().filter_map(|(key, words)| {
        let wanted = facts.services.get(key)?;
        let here = wanted.spec.node_selector.matches(&facts.node.labels);
        here.then(|| left_out(&wanted.spec, words, &families, primary))
    });
    let left_out: Vec<Conflict> = left_out.flatten().collect();
    let beside = beside(
        &host,
        served.iter().filter_map(|key| facts.services.get(key)),
    );
    let conflicts: BTreeSet<Conflict> = refused
        .into_iter()
        .flat_map(|(service, refusals)| {
            refusals.into_iter().map(move |refusal| Conflict {
                service: service.clone(),
                protocol: refusal.slot.port.protocol,
                port: refusal.slot.port.port.get(),
                reason: refusal.holder.reason(),
                held_by: refusal.holder.to_string(),
            })
        })
        .chain(left_out)
        .collect();
    Decision {
        plan: Plan {
            addresses,
            forwards,
            guards,
        },
        served,
        conflicts: conflicts.into_iter().collect(),
        udp,
        beside,
    }
}

/// The addresses, each with the devices of the host that have it.
fn with_devices(addresses: &BTreeSet<IpAddr>, host: &[HostAddress]) -> ServedAddresses {
    let of = |address: &IpAddr| {
        let own = host.iter().filter(|own| own.address == *address);
        own.flat_map(|own| own.devices.iter().copied()).collect()
    };
    addresses.iter().map(|ip| (*ip, of(ip))).collect()
}

/// Which of the served Services have a port on which something listens.
fn beside<'a>(
    host: &HostClaims<'_>,
    served: impl Iterator<Item = &'a Wanted>,
) -> BTreeMap<PortKey, BTreeSet<ServiceKey>> {
    let listened: BTreeSet<PortKey> = host.listened().collect();
    let mut beside: BTreeMap<PortKey, BTreeSet<ServiceKey>> = BTreeMap::new();
    for Wanted { spec, .. } in served {
        for port in spec.ports.keys().filter(|port| listened.contains(port)) {
            beside.entry(*port).or_default().insert(spec.key.clone());
        }
    }
    beside
}

/// The slots a Service needs here: its ports in those of its families in which
/// this node has an address.
fn claim(
    wanted: &Wanted,
    families: &BTreeSet<Family>,
    primary: &BTreeMap<Family, IpAddr>,
    own: &BTreeSet<IpAddr>,
    host: &HostClaims<'_>,
) -> Claim {
    let spec = &wanted.spec;
    let slots: BTreeMap<Slot, Tenure> = forwards(spec, families, primary)
        .map(|(slot, _)| (slot, wanted.holdings.tenure(slot.port, own)))
        .collect();
    let taken = slots
        .keys()
        .filter_map(|slot| Some((*slot, host.holder(*slot, spec)?)))
        .collect();
    Claim {
        service: spec.key.clone(),
        created: spec.created,
        slots,
        taken,
    }
}

/// What to say of the ports of a Service that nft refuses.
fn left_out<'a>(
    spec: &'a ServiceSpec,
    words: &'a str,
    families: &'a BTreeSet<Family>,
    primary: &'a BTreeMap<Family, IpAddr>,
) -> impl Iterator<Item = Conflict> + 'a {
    forwards(spec, families, primary).map(|(slot, _)| Conflict {
        service: spec.key.clone(),
        protocol: slot.port.protocol,
        port: slot.port.port.get(),
        reason: ConflictReason::RefusedByNft,
        held_by: words.to_owned(),
    })
}

/// The networks that may use each port, of each port's own family. Ranges of one
/// family only let nobody of the other in.
fn guards<'a>(
    spec: &'a ServiceSpec,
    families: &'a BTreeSet<Family>,
    primary: &'a BTreeMap<Family, IpAddr>,
) -> impl Iterator<Item = (Slot, BTreeSet<IpNet>)> + 'a {
    let networks = match &spec.clients {
        Clients::Any => None,
        Clients::Within(networks) => Some(networks),
    };
    networks.into_iter().flat_map(move |networks| {
        forwards(spec, families, primary).map(|(slot, _)| {
            let own = networks
                .iter()
                .filter(|net| Family::of(net.addr()) == slot.family);
            (slot, own.copied().collect())
        })
    })
}

/// The Service's UDP ports on this node.
fn udp_ports<'a>(
    spec: &'a ServiceSpec,
    families: &'a BTreeSet<Family>,
    primary: &'a BTreeMap<Family, IpAddr>,
) -> impl Iterator<Item = (Slot, Behind)> + 'a {
    forwards(spec, families, primary)
        .filter(|(slot, _)| slot.port.protocol == Protocol::Udp)
        .filter_map(|(slot, target)| {
            let port = ServicePortName {
                service: spec.key.clone(),
                port: spec.ports.get(&slot.port)?.name.clone(),
            };
            let entrance = match target {
                Target::ClusterIp(ip) => SocketAddr::new(ip, slot.port.port.get()),
                Target::NodePort { address, port, .. } => SocketAddr::new(address, port.get()),
            };
            let policy = spec.external_policy;
            Some((
                slot,
                Behind {
                    port,
                    entrance,
                    policy,
                },
            ))
        })
}

/// Where each of the Service's ports goes on this node.
fn forwards<'a>(
    spec: &'a ServiceSpec,
    families: &'a BTreeSet<Family>,
    primary: &'a BTreeMap<Family, IpAddr>,
) -> impl Iterator<Item = (Slot, Target)> + 'a {
    let target = |family: Family, cluster_ip, port: &ServicePort| match spec.entrance {
        Entrance::ClusterIp => Some(Target::ClusterIp(cluster_ip)),
        Entrance::NodePort => Some(Target::NodePort {
            address: *primary.get(&family)?,
            port: port.node_port?,
            policy: spec.external_policy,
        }),
    };
    families
        .iter()
        .filter_map(|family| Some((*family, spec.cluster_ips.get(*family)?)))
        .flat_map(move |(family, cluster_ip)| {
            spec.ports.iter().filter_map(move |(key, port)| {
                Some((
                    Slot { family, port: *key },
                    target(family, cluster_ip, port)?,
                ))
            })
        })
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
