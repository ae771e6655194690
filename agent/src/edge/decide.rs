//! From LoadBalancers and the host's own facts to what the box forwards. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
};

use highwire_api::{
    Family, PortKey, ServiceKey,
    arbitration::{Holder, Slot},
    external::{LoadBalancerSpec, SessionAffinity, Trouble},
    service::AFFINITY_TIMEOUT,
};
use ipnet::IpNet;

use crate::{
    decide::{Backends, Choice, Forward, Memory, Plan, Target, served_addresses, slots},
    facts::{
        addresses::HostAddress,
        endpoints::ServicePortName,
        listener_history::Listeners,
        listeners::Listener,
        sysctls::{Sysctls, forwarding},
    },
    port_ranges::PortRanges,
};

/// All that a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct BoxFacts<'a> {
    /// What each Service asks of this box.
    pub services: &'a BTreeMap<ServiceKey, Arc<LoadBalancerSpec>>,
    /// The addresses that Services list.
    pub advertised: &'a BTreeSet<IpAddr>,
    /// The addresses that the kernel has.
    pub addresses: &'a [HostAddress],
    /// Sockets that wait for clients, and those that did until just now.
    pub listeners: &'a Listeners,
    /// What the sysctls say.
    pub sysctls: &'a Sysctls,
    /// What the admin has decided.
    pub policy: &'a BoxPolicy,
}

/// What the admin of the box has decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BoxPolicy {
    /// The networks of the addresses at which the box answers; empty for those that are
    /// advertised or on an interface with a default route.
    pub address_cidr: Vec<IpNet>,
    /// The ports that no Service gets.
    pub reserved_ports: PortRanges,
    /// Whether the nodes see the clients' addresses.
    pub keeps_client: bool,
}

/// What the box does, and what it refuses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BoxDecision {
    /// What the kernel should do.
    pub plan: Plan,
    /// What becomes of each Service once it does.
    pub verdicts: BTreeMap<ServiceKey, Verdict>,
}

/// What becomes of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The box sends its traffic to its targets.
    Served,
    /// It does not, for this reason and in these words.
    Refused(Trouble, String),
}

/// Decides. A Service is served with all of its ports, or not at all.
#[must_use]
pub fn decide(facts: &BoxFacts<'_>) -> BoxDecision {
    let policy = facts.policy;
    let addresses = served_addresses(facts.addresses, facts.advertised, &policy.address_cidr);
    let families: BTreeSet<Family> = addresses.iter().map(|ip| Family::of(*ip)).collect();
    let held = holders(facts, &addresses);
    let mut decision = BoxDecision::default();
    for (key, spec) in facts.services {
        let forwards = forwards(key, spec, &families, policy.keeps_client);
        let verdict = match refusal(&forwards, facts, &families, &held) {
            Some((trouble, message)) => Verdict::Refused(trouble, message),
            None => {
                decision.plan.forwards.extend(forwards);
                Verdict::Served
            }
        };
        decision.verdicts.insert(key.clone(), verdict);
    }
    decision.plan.addresses = addresses;
    decision
}

/// What the host has on the box's addresses.
fn holders(facts: &BoxFacts<'_>, addresses: &BTreeSet<IpAddr>) -> BTreeMap<Slot, Holder> {
    let served = facts.addresses.iter();
    let served: Vec<_> = served
        .filter(|it| addresses.contains(&it.address))
        .collect();
    let of = |listener: &Listener, holder: fn(SocketAddr, u32) -> Holder| {
        let (bound, uid) = (listener.bound, listener.uid);
        let slots = slots(listener, &served).into_iter();
        slots
            .map(|slot| (slot, holder(bound, uid)))
            .collect::<Vec<_>>()
    };
    let held = facts.listeners.held.iter();
    let left = held.flat_map(|it| of(&it.listener, |bound, uid| Holder::Left { bound, uid }));
    let open = facts.listeners.open.iter();
    let open = open.flat_map(|it| of(it, |bound, uid| Holder::Socket { bound, uid }));
    left.chain(open).collect()
}

/// What the Service asks for, in the families that the box has an address of.
fn forwards(
    key: &ServiceKey,
    spec: &LoadBalancerSpec,
    families: &BTreeSet<Family>,
    keeps_client: bool,
) -> BTreeMap<Slot, Forward> {
    let mut forwards = BTreeMap::new();
    for port in &spec.ports {
        let Some(number) = NonZeroU16::new(port.box_port) else {
            continue;
        };
        for family in families {
            let targets = port.targets.iter();
            let targets = targets.map(|it| SocketAddr::new(it.address, it.port));
            let targets: BTreeSet<_> = targets
                .filter(|it| Family::of(it.ip()) == *family)
                .collect();
            if targets.is_empty() {
                continue;
            }
            let networks = spec.source_ranges.iter();
            let networks = networks
                .filter(|it| Family::of(it.addr()) == *family)
                .copied();
            let slot = Slot {
                family: *family,
                port: PortKey {
                    protocol: port.protocol,
                    port: number,
                },
            };
            let forward = Forward {
                target: Target::Backends(Backends {
                    targets,
                    draining: BTreeSet::new(),
                    choice: match spec.session_affinity {
                        SessionAffinity::None => Choice::Random,
                        SessionAffinity::ClientIp => {
                            Choice::ByClient(Memory::at_least(AFFINITY_TIMEOUT))
                        }
                    },
                    keeps_client,
                }),
                clients: (!spec.source_ranges.is_empty()).then(|| networks.collect()),
                port_name: ServicePortName {
                    service: key.clone(),
                    port: "".into(),
                },
            };
            forwards.insert(slot, forward);
        }
    }
    forwards
}

fn refusal(
    forwards: &BTreeMap<Slot, Forward>,
    facts: &BoxFacts<'_>,
    families: &BTreeSet<Family>,
    held: &BTreeMap<Slot, Holder>,
) -> Option<(Trouble, String)> {
    if families.is_empty() {
        let message = "the box has no address to serve: none of spec.addresses, and none on an \
                       interface with a default route; name its networks with --address-cidr";
        return Some((Trouble::EdgeFailing, message.to_owned()));
    }
    if forwards.is_empty() {
        let message = "none of its targets is of an IP family that the box has an address of";
        return Some((Trouble::NoTargets, message.to_owned()));
    }
    let needed: BTreeSet<Family> = forwards.keys().map(|slot| slot.family).collect();
    if let Some(off) = needed.difference(&facts.sysctls.forwarding).next() {
        let message = format!(
            "the box forwards nothing: run `sysctl -w {}=1` there",
            forwarding(*off)
        );
        return Some((Trouble::EdgeFailing, message));
    }
    let reserved = |slot: &Slot| {
        let is_reserved = facts.policy.reserved_ports.contains(slot.port.port.get());
        is_reserved.then_some(Holder::Reserved)
    };
    let conflicts = forwards.keys().filter_map(|slot| {
        let holder = reserved(slot).or_else(|| held.get(slot).cloned())?;
        Some(format!("{} is held by {holder} on the box", slot.port))
    });
    let conflicts: BTreeSet<String> = conflicts.collect();
    (!conflicts.is_empty()).then(|| {
        let sentences: Vec<String> = conflicts.into_iter().collect();
        (Trouble::PortConflict, sentences.join("; "))
    })
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
