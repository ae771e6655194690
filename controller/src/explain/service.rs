//! Why each node is listed for a Service, or not. Pure.

use std::{collections::BTreeSet, net::IpAddr};

use highwire_api::{Interpretation, ServiceKey};

use super::{
    ServiceExplanation, Verdict,
    gather::{line, other_nodes},
    names,
};
use crate::{
    decision::{
        addresses::why_not_listed,
        conditions::Difference,
        decide::{Cluster, asked, decide},
        eligibility::{Asked, Eligible, Ineligible, Node, Silence},
    },
    facts::ingress::{Host, Ingress},
    history::History,
    liveness::Now,
};

/// Why a node is not listed that could be.
const NOT_CHOSEN: &str = "it is ready, but others are listed (the annotations \
    highwire.dev/max-addresses and highwire.dev/address-type), or the status is about to be \
    written";

/// Explains a Service, in the words that its conditions would have now. `None` if it is no more
/// concern of ours.
#[must_use]
pub fn explain(
    key: &ServiceKey,
    service: &History,
    cluster: &Cluster<'_>,
    now: Now,
) -> Option<ServiceExplanation> {
    let decision = decide(key, service, cluster, Silence::ProvesNothing);
    let facts = &service.facts;
    let difference = Difference::between(facts, &decision, now.wall);
    let mut status = difference.applied_to(&facts.status);
    // What is listed is a fact; what will be is not.
    status.listed = facts.status.listed.clone();
    let is_at_nodes = !facts.is_external() && !matches!(facts.asks, Interpretation::NotOurs);
    let spec = service.spec().filter(|_| is_at_nodes);
    let asked = spec.map(|spec| asked(key, service, spec, cluster));
    let nodes = asked.iter().flat_map(|asked| {
        let nodes = cluster.nodes.iter();
        nodes.map(move |(name, node)| verdict(asked, name, node, &facts.status.listed.ingress))
    });
    Some(ServiceExplanation {
        line: line(key, service, &status)?,
        nodes: nodes.collect(),
        other_nodes: other_nodes(cluster),
    })
}

fn verdict(asked: &Asked<'_>, name: &str, node: &Node, listed: &Ingress) -> Verdict {
    let own: BTreeSet<&IpAddr> = node.facts.external.union(&node.facts.internal).collect();
    let hosts = listed.hosts();
    let there = hosts.filter(|host| matches!(host, Host::Ip(ip) if own.contains(ip)));
    let there: BTreeSet<&Host> = there.collect();
    let reason = why_not_listed(asked, name, node);
    let why = match asked.eligibility(name, node, Silence::IsAbsence) {
        Ok(Eligible::AllPorts) if !there.is_empty() => None,
        Ok(Eligible::AllPorts) if reason != Ineligible::NoAddress => Some(NOT_CHOSEN.to_owned()),
        _ => Some(reason.to_string()),
    };
    Verdict {
        node: name.to_owned(),
        listed: names(&there),
        why,
    }
}
