//! The overview. Pure, and no dearer than what it shows: nothing is decided anew.

use std::collections::BTreeMap;

use highwire_api::{
    Interpretation, PortKey, Problem, ServiceKey, names::CONTROLLER_LEASE, ownership::IngressAuthor,
};

use highwire_runtime::printable::printable;

use super::{NodeLine, NodeState, Overview, PortLine, ServiceLine, State, port_names};
use crate::{
    decision::{
        decide::Cluster,
        eligibility::{Node, Readiness},
        text,
    },
    facts::service::{ServiceFacts, ServiceStatus, is_true},
    history::History,
};

/// Everything.
#[must_use]
pub fn overview(services: &BTreeMap<ServiceKey, History>, cluster: &Cluster<'_>) -> Overview {
    let lines = services
        .iter()
        .filter_map(|(key, service)| line(key, service, &service.facts.status));
    let nodes = cluster.nodes.iter();
    Overview {
        leader: leader(cluster),
        incomplete: cluster.facts.missing(),
        services: lines.collect(),
        nodes: nodes.map(|(name, node)| node_line(name, node)).collect(),
        other_nodes: other_nodes(cluster),
        ports: ports(services, cluster),
    }
}

fn leader(cluster: &Cluster<'_>) -> Option<String> {
    let holder = &cluster.facts.lease(CONTROLLER_LEASE)?.holder;
    holder.as_deref().map(printable)
}

pub(super) fn other_nodes(cluster: &Cluster<'_>) -> usize {
    let all = cluster.facts.node_count();
    all.saturating_sub(cluster.nodes.len())
}

/// A Service whose status says this; `None` if it is no more concern of ours.
pub(super) fn line(
    key: &ServiceKey,
    service: &History,
    status: &ServiceStatus,
) -> Option<ServiceLine> {
    let facts = &service.facts;
    let state = state(facts, status)?;
    let listed = &status.listed.ingress;
    let ports = service.spec().map(|spec| spec.port_keys());
    Some(ServiceLine {
        service: key.clone(),
        state,
        ports: port_names(ports.unwrap_or_default()),
        addresses: listed.hosts().map(ToString::to_string).collect(),
        why: why(facts, status, state)
            .iter()
            .map(|it| printable(it))
            .collect(),
    })
}

fn state(facts: &ServiceFacts, status: &ServiceStatus) -> Option<State> {
    let is_ours = facts.has_our_conditions || facts.author == IngressAuthor::Highwire;
    Some(match &facts.asks {
        Interpretation::Serve(_) if is_true(status.ports_error.as_ref()) => State::Conflict,
        Interpretation::Serve(_) if status.listed.ingress.is_empty() => State::Pending,
        Interpretation::Serve(_) => State::Served,
        Interpretation::Invalid(_) => State::Invalid,
        Interpretation::Unsupported(_) => State::Unsupported,
        Interpretation::Pending => State::Pending,
        Interpretation::NotOurs if is_ours => State::Abandoned,
        Interpretation::NotOurs => return None,
        Interpretation::ManagedElsewhere(_) => State::Foreign,
    })
}

fn why(facts: &ServiceFacts, status: &ServiceStatus, state: State) -> Vec<String> {
    match &facts.asks {
        Interpretation::ManagedElsewhere(manager) => {
            let manager = manager.clone();
            return vec![Problem::ManagedElsewhere { manager }.to_string()];
        }
        Interpretation::Invalid(problems) | Interpretation::Unsupported(problems) => {
            return vec![text::problems(problems)];
        }
        Interpretation::Pending => {
            return vec!["the API server has given it no ClusterIP yet".to_owned()];
        }
        Interpretation::Serve(_) | Interpretation::NotOurs => {}
    }
    let ports_error = status.ports_error.iter().filter(|it| is_true(Some(it)));
    let says_why = |reason: &str| !["Serving", "PortConflict"].contains(&reason);
    let serving = status.serving.iter().filter(|it| says_why(&it.reason));
    let mut why: Vec<String> = ports_error
        .chain(serving)
        .map(|condition| condition.message.clone())
        .collect();
    if why.is_empty() && state == State::Pending {
        why.push("it is new: nothing is known yet of any node that serves it".to_owned());
    }
    why
}

fn node_line(name: &str, node: &Node) -> NodeLine {
    let shown = node.report.as_ref().map(|report| report.shown.clone());
    let shown = shown.unwrap_or_default();
    let (state, why) = match &node.readiness {
        Readiness::Ready => (NodeState::Ready, shown.message),
        Readiness::Unknown => (
            NodeState::Unknown,
            "its agent is silent or its kube-proxy fails: it stays listed where it is".to_owned(),
        ),
        Readiness::NotReady(reason) if shown.message.is_empty() => {
            (NodeState::NotReady, reason.to_string())
        }
        Readiness::NotReady(reason) => (
            NodeState::NotReady,
            format!("{reason}; it says: {}", shown.message),
        ),
    };
    let refused = node.report.iter().flat_map(|report| &report.refused);
    let refused = refused.flat_map(|(service, conflicts)| {
        conflicts
            .iter()
            .map(move |one| format!("{} of {service} is held by {}", one.port, one.held_by))
    });
    let addresses = node.facts.external.union(&node.facts.internal);
    NodeLine {
        node: name.to_owned(),
        state,
        why: printable(&why),
        proxy_mode: shown.proxy_mode.map(|mode| mode.as_str()),
        addresses: addresses.map(ToString::to_string).collect(),
        services: shown.services,
        ports: shown.ports,
        refused: refused.collect(),
    }
}

/// By port, then by Service.
type Counts = BTreeMap<PortKey, [BTreeMap<ServiceKey, usize>; 2]>;

fn ports(services: &BTreeMap<ServiceKey, History>, cluster: &Cluster<'_>) -> Vec<PortLine> {
    let mut counts = Counts::new();
    for (key, service) in services {
        let is_ours = service.facts.author == IngressAuthor::Highwire;
        let listed = &service.facts.status.listed.ingress;
        for (_, ports) in listed.entries().filter(|_| is_ours) {
            for port in ports.iter() {
                let [held, _] = counts.entry(*port).or_default();
                *held.entry(key.clone()).or_default() += 1;
            }
        }
    }
    let reports = cluster
        .nodes
        .values()
        .filter_map(|node| node.report.as_ref());
    for (service, conflicts) in reports.flat_map(|report| &report.refused) {
        for one in conflicts {
            let [_, refused] = counts.entry(one.port).or_default();
            *refused.entry(service.clone()).or_default() += 1;
        }
    }
    let line = |(port, [held_by, refused]): (PortKey, [BTreeMap<_, _>; 2])| PortLine {
        port: port.to_string(),
        held_by: held_by.into_iter().collect(),
        refused: refused.into_iter().collect(),
    };
    let mut lines: Vec<_> = counts.into_iter().collect();
    lines.sort_by_key(|(port, _)| (port.port, port.protocol));
    lines.into_iter().map(line).collect()
}
