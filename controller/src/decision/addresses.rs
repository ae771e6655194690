//! Which addresses to list, with which ports.
//!
//! A node that has observed the Service as it is now is listed with all of its ports. One
//! that has not, but is listed, stays listed with those of its listed ports that are still
//! wanted. So a change of ports neither makes addresses come and go nor claims a port
//! before a node serves it, and a controller that has just started, and cannot know since
//! when the Service is as it is, changes nothing.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU16,
};

use highwire_api::{Family, PortKey, service::AddressType};

use super::{
    eligibility::{Asked, Eligible, Ineligible, Node, Nodes, Silence},
    rendezvous::choose,
};
use crate::facts::{ingress::Ingress, node::NodeFacts};

/// That not all nodes are listed that could be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limited {
    /// How many nodes are listed.
    pub advertised: usize,
    /// How many could be.
    pub ready: usize,
}

/// The addresses of one type of a node.
type OfType = fn(&NodeFacts) -> &BTreeSet<IpAddr>;

/// An address and the ports to list it with.
type Entry<'a> = (IpAddr, Cow<'a, BTreeSet<PortKey>>);

/// The addresses of at most `most` nodes, and how many there would be if that is fewer than
/// all.
#[must_use]
pub fn addresses(
    asked: &Asked<'_>,
    nodes: &Nodes,
    silence: Silence,
    most: Option<NonZeroU16>,
) -> (Ingress, Option<Limited>) {
    let eligible = nodes.iter().filter_map(|(name, node)| {
        let eligible = asked.eligibility(name, node, silence).ok()?;
        Some((name, node, eligible))
    });
    let eligible: Vec<_> = eligible.collect();
    let entries_of = |of_type: OfType, family| {
        let all = eligible.iter().map(move |(name, node, eligible)| {
            (
                *name,
                entries(asked, name, node, *eligible, of_type, family),
            )
        });
        let some = all.filter(|(_, entries)| !entries.is_empty());
        some.collect::<Vec<(&String, Vec<Entry<'_>>)>>()
    };
    let (external, internal): (OfType, OfType) = (|node| &node.external, |node| &node.internal);
    let mut by_node = BTreeMap::<&String, Vec<Entry<'_>>>::new();
    for family in asked.spec.cluster_ips.families() {
        let chosen = match asked.spec.address_type {
            AddressType::ExternalIp => entries_of(external, family),
            AddressType::InternalIp => entries_of(internal, family),
            // A family's ExternalIPs if any eligible node has one.
            AddressType::Auto => match entries_of(external, family) {
                none if none.is_empty() => entries_of(internal, family),
                some => some,
            },
        };
        for (name, entries) in chosen {
            by_node.entry(name).or_default().extend(entries);
        }
    }
    let ready = by_node.len();
    let mut listed: Vec<_> = by_node.into_iter().collect();
    if let Some(most) = most {
        choose(
            &asked.spec.uid,
            most.get().into(),
            &mut listed,
            |(name, _)| name.as_str(),
        );
    }
    let advertised = listed.len();
    let mut ingress = Ingress::default();
    for (address, ports) in listed.into_iter().flat_map(|(_, entries)| entries) {
        ingress.add(address, &ports);
    }
    (
        ingress,
        (advertised < ready).then_some(Limited { advertised, ready }),
    )
}

/// A node's addresses of one type and family with the ports to list them with.
fn entries<'a>(
    asked: &'a Asked<'_>,
    name: &str,
    node: &Node,
    eligible: Eligible,
    of_type: OfType,
    family: Family,
) -> Vec<Entry<'a>> {
    if !asked.has_endpoint(name, family) {
        return Vec::new();
    }
    let addresses = of_type(&node.facts).iter().copied();
    let of_family = addresses.filter(|address| Family::of(*address) == family);
    let with_ports = of_family.map(|address| match eligible {
        Eligible::AllPorts => (address, Cow::Borrowed(&asked.ports)),
        Eligible::Retained => {
            let listed = asked.listed.ports(address);
            let kept = listed.map(|listed| listed & &asked.ports);
            (address, Cow::Owned(kept.unwrap_or_default()))
        }
    });
    with_ports.filter(|(_, ports)| !ports.is_empty()).collect()
}

/// Why a node that is not listed is not.
#[must_use]
pub fn why_not_listed(asked: &Asked<'_>, name: &str, node: &Node) -> Ineligible {
    let (external, internal) = (&node.facts.external, &node.facts.internal);
    let has_address = |family: Family| {
        let of_family = |all: &BTreeSet<IpAddr>| all.iter().any(|ip| Family::of(*ip) == family);
        match asked.spec.address_type {
            AddressType::Auto => of_family(external) || of_family(internal),
            AddressType::ExternalIp => of_family(external),
            AddressType::InternalIp => of_family(internal),
        }
    };
    let mut families = asked.spec.cluster_ips.families();
    match asked.eligibility(name, node, Silence::IsAbsence) {
        Err(reason) => reason,
        Ok(_) if !families.any(|it| asked.has_endpoint(name, it) && has_address(it)) => {
            Ineligible::NoAddress
        }
        Ok(Eligible::Retained) if !node.is_alive() => Ineligible::Silent,
        Ok(_) => Ineligible::CatchingUp,
    }
}
