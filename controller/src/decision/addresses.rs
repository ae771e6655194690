//! Which addresses to list, with which ports.
//!
//! A node that has observed the Service as it is now is listed with all of its ports. One
//! that has not, but is listed, stays listed with those of its listed ports that are still
//! wanted. So a change of ports neither makes addresses come and go nor claims a port
//! before a node serves it, and a controller that has just started, and cannot know since
//! when the Service is as it is, changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU16,
    sync::Arc,
};

use highwire_api::{Family, PortKey};

use super::{
    eligibility::{Asked, Eligible, Ineligible, Node, Nodes, Silence},
    rendezvous::choose,
};
use crate::facts::{
    ingress::Ingress,
    node::{AgentReady, OfType, address_types},
};

/// That not all nodes are listed that could be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limited {
    /// How many nodes are listed.
    pub advertised: usize,
    /// How many could be.
    pub ready: usize,
}

fn of_family(all: &BTreeSet<IpAddr>, family: Family) -> impl Iterator<Item = IpAddr> {
    let all = all.iter().copied();
    all.filter(move |address| Family::of(*address) == family)
}

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
        Some((name.as_str(), node, eligible))
    });
    let eligible: Vec<_> = eligible.collect();
    let mut by_node = BTreeMap::<&str, Vec<(IpAddr, Arc<_>)>>::new();
    for family in asked.spec.cluster_ips.families() {
        let of_type = |of_type: &OfType| {
            let nodes = eligible.iter();
            let entries = nodes.flat_map(|(name, node, eligible)| {
                let addresses = of_family(of_type(&node.facts), family);
                addresses.map(|address| (*name, address, ports(asked, address, *eligible)))
            });
            let some = entries
                .filter(|(name, _, ports)| !ports.is_empty() && asked.has_endpoint(name, family));
            some.collect::<Vec<_>>()
        };
        let mut chosen = address_types(asked.spec.address_type).iter().map(of_type);
        let chosen = chosen.find(|entries| !entries.is_empty());
        for (name, address, ports) in chosen.into_iter().flatten() {
            by_node.entry(name).or_default().push((address, ports));
        }
    }
    let ready = by_node.len();
    let mut listed: Vec<_> = by_node.into_iter().collect();
    if let Some(most) = most {
        choose(&asked.spec.uid, most.get().into(), &mut listed, |it| it.0);
    }
    let advertised = listed.len();
    let mut ingress = Ingress::default();
    for (address, ports) in listed.into_iter().flat_map(|(_, entries)| entries) {
        ingress.add(address, &ports);
    }
    let limited = (advertised < ready).then_some(Limited { advertised, ready });
    (ingress, limited)
}

/// The ports to list an address of an eligible node with.
fn ports(asked: &Asked<'_>, address: IpAddr, eligible: Eligible) -> Arc<BTreeSet<PortKey>> {
    match (eligible, asked.listed.ports(address)) {
        (Eligible::AllPorts, _) => Arc::clone(&asked.ports),
        (Eligible::Retained, None) => Arc::default(),
        (Eligible::Retained, Some(listed)) => Arc::new(&**listed & &*asked.ports),
    }
}

/// Why a node that is not listed is not.
#[must_use]
pub fn why_not_listed(asked: &Asked<'_>, name: &str, node: &Node) -> Ineligible {
    let has_address = |family| {
        let mut types = address_types(asked.spec.address_type).iter();
        types.any(|of_type| of_family(of_type(&node.facts), family).next().is_some())
    };
    let mut families = asked.spec.cluster_ips.families();
    match asked.eligibility(name, node, Silence::IsAbsence) {
        Err(reason) => reason,
        Ok(_) if !families.any(|it| asked.has_endpoint(name, it) && has_address(it)) => {
            Ineligible::NoAddress
        }
        Ok(Eligible::Retained) if !node.is_alive() => Ineligible::Silent,
        Ok(_) if node.agent() == Some(&AgentReady::ServiceProxyFailing) => {
            Ineligible::AgentNotReady(AgentReady::ServiceProxyFailing)
        }
        Ok(_) => Ineligible::CatchingUp,
    }
}
