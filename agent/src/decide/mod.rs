//! From the facts to what the kernel should do and what is refused. Pure.
//!
//! This only gathers what each Service asks of the node; who gets a port is decided by
//! [`highwire_api::arbitration`].

mod addresses;
mod backends;
mod conflicts;
mod forward;
mod host_holders;
mod readiness;
mod source_ranges;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use highwire_api::{
    Family, PortKey, ServiceKey,
    arbitration::{Claim, Holder, Slot, arbitrate, contested},
    node::{Conflict, ConflictReason},
};

pub(crate) use self::{addresses::served_addresses, host_holders::slots};
pub use self::{
    backends::{Answering, Backends, Choice, Memory},
    conflicts::for_report,
    forward::{Forward, Plan, Target, sockets},
    readiness::Readiness,
};
use self::{
    forward::{Picker, forwards},
    host_holders::HostHolders,
    source_ranges::{MOST_ON_NODE, without_room},
};
use crate::facts::{Facts, services::OurService};

/// What the node does, and what it refuses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// What the kernel should do.
    pub plan: Plan,
    /// The Services it does it for.
    pub served: BTreeSet<ServiceKey>,
    /// The ports it refuses, sorted.
    pub conflicts: Vec<Conflict>,
    /// The served Services whose ports have a listener, by port: it is their own Pods'.
    pub beside: BTreeMap<PortKey, BTreeSet<ServiceKey>>,
    /// The served slots of Services whose endpoints, where our rules pick them, are not known
    /// yet: no EndpointSlice of that family has come.
    pub unheard: BTreeSet<(Slot, ServiceKey)>,
    /// All addresses of this node, served or not.
    pub own_addresses: BTreeSet<IpAddr>,
    /// What that makes of the node once the kernel follows.
    pub readiness: Readiness,
}

/// A Service of ours that this node is meant to serve, and what it asks of it.
struct Candidate<'a> {
    ours: &'a OurService,
    /// By slot, in order; never empty.
    forwards: Vec<(Slot, Forward)>,
}

impl Candidate<'_> {
    fn key(&self) -> &ServiceKey {
        &self.ours.spec.key
    }

    fn slots(&self) -> impl Iterator<Item = Slot> {
        self.forwards.iter().map(|(slot, _)| *slot)
    }

    /// What it asks for, with what it holds already at these addresses of the node.
    fn claim(&self, own: &BTreeSet<IpAddr>, host: &HostHolders<'_>, has_room: bool) -> Claim {
        let OurService { spec, advertised } = self.ours;
        let taken = self
            .slots()
            .filter_map(|slot| Some((slot, host.holder(slot, spec)?)));
        let most = MOST_ON_NODE;
        let first = self.slots().take(usize::from(!has_room));
        let no_room = first.map(|slot| (slot, Holder::SourceRanges { most }));
        Claim {
            service: spec.key.clone(),
            created: spec.created,
            taken: taken.chain(no_room).collect(),
            slots: self
                .slots()
                .map(|slot| (slot, advertised.rank(slot.port, own)))
                .collect(),
        }
    }
}

/// Decides what this node forwards. The same facts give the same decision.
#[must_use]
pub fn decide(facts: &Facts<'_>) -> Decision {
    let node = facts.node;
    if !node.enabled {
        return Decision::default();
    }
    let addresses = served_addresses(facts.addresses, &node.addresses, &facts.policy.address_cidr);
    let own: BTreeSet<IpAddr> = addresses.union(&node.addresses).copied().collect();
    let families: BTreeSet<Family> = addresses.iter().map(|ip| Family::of(*ip)).collect();
    let host = HostHolders::new(facts, &addresses);
    let picker = match facts.slices {
        Some(slices) => Picker::Rules(Answering::new(slices.values(), &node.labels)),
        None => Picker::ServiceProxy(&node.primary),
    };
    let ours = facts.services.values().filter_map(|it| it.ours.as_deref());
    let (left_out, candidates): (Vec<_>, Vec<_>) = ours
        .filter(|ours| ours.spec.node_selector.matches(&node.labels))
        .map(|ours| Candidate {
            forwards: forwards(&ours.spec, &families, &picker),
            ours,
        })
        .filter(|candidate| !candidate.forwards.is_empty())
        .partition(|candidate| facts.left_out.contains_key(candidate.key()));
    let without_room = without_room(candidates.iter().map(|it| it.ours), &own);
    let has_room = |it: &Candidate<'_>| !without_room.contains(it.key());
    let contested = contested(candidates.iter().flat_map(Candidate::slots));
    // Nearly all Services are: there is nothing to arbitrate about them.
    let is_alone = |it: &Candidate<'_>| {
        let free = |slot| !contested.contains(&slot) && host.holder(slot, &it.ours.spec).is_none();
        has_room(it) && it.slots().all(free)
    };
    let (mut winners, rivals): (Vec<_>, Vec<_>) = candidates.into_iter().partition(is_alone);
    let claims = rivals.iter().map(|it| it.claim(&own, &host, has_room(it)));
    let verdict = arbitrate(&claims.collect::<Vec<_>>());
    winners.extend(
        rivals
            .into_iter()
            .filter(|it| verdict.served.contains(it.key())),
    );

    let refused = verdict.refused.into_iter().flat_map(|(service, refusals)| {
        refusals.into_iter().map(move |refusal| {
            let (reason, held_by) = (refusal.holder.reason(), refusal.holder.to_string());
            conflict(&service, refusal.slot, reason, held_by)
        })
    });
    let left_out = left_out.iter().flat_map(|candidate| {
        let (key, reason) = (candidate.key(), ConflictReason::RefusedByNft);
        let slots = candidate.slots();
        slots.map(move |slot| conflict(key, slot, reason, facts.left_out[key].clone()))
    });
    let conflicts: BTreeSet<Conflict> = refused.chain(left_out).collect();

    let mut beside: BTreeMap<PortKey, BTreeSet<ServiceKey>> = BTreeMap::new();
    for candidate in &winners {
        for slot in candidate.slots().filter(|it| host.has_listener(*it)) {
            let services = beside.entry(slot.port).or_default();
            services.insert(candidate.key().clone());
        }
    }
    let unheard = match &picker {
        Picker::Rules(answering) => unheard(&winners, answering),
        Picker::ServiceProxy(_) => BTreeSet::new(),
    };
    let mut decision = Decision {
        served: winners.iter().map(|it| it.key().clone()).collect(),
        plan: Plan {
            addresses,
            forwards: winners.into_iter().flat_map(|it| it.forwards).collect(),
        },
        conflicts: conflicts.into_iter().collect(),
        beside,
        unheard,
        own_addresses: own,
        readiness: Readiness::default(),
    };
    decision.readiness = Readiness::of(facts, &decision.plan, &decision.conflicts);
    decision
}

fn unheard(served: &[Candidate<'_>], answering: &Answering<'_>) -> BTreeSet<(Slot, ServiceKey)> {
    let slots = served
        .iter()
        .flat_map(|it| it.slots().map(|slot| (slot, it.key())));
    let unheard = slots.filter(|(slot, service)| !answering.knows(service, slot.family));
    unheard
        .map(|(slot, service)| (slot, service.clone()))
        .collect()
}

fn conflict(service: &ServiceKey, slot: Slot, reason: ConflictReason, held_by: String) -> Conflict {
    Conflict {
        service: service.clone(),
        protocol: slot.port.protocol,
        port: slot.port.port.get(),
        reason,
        held_by,
    }
}

#[cfg(test)]
mod tests;
