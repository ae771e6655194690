//! What the agent of a node knows and decided. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use highwire_api::{PortKey, Problem, ServiceKey, ServiceSpec, node::Conflict};

use super::{Explanation, LeftAlone, Place, Port, Row, State, Table};
use crate::{
    decide::{Decision, Plan, Target},
    facts::{node::NodeFacts, services::ServiceFacts},
    report::Report,
};

/// Explains what was decided for a node.
#[must_use]
pub fn explain(
    node_name: &str,
    node: &NodeFacts,
    services: &BTreeMap<String, ServiceFacts>,
    report: &Report,
) -> Explanation {
    let (decision, readiness) = (&report.decision, report.readiness());
    let ours = services.values().filter_map(|it| it.ours.as_ref());
    let goes_to = by_port(&decision.plan);
    let rows = ours.flat_map(|ours| {
        let spec = &ours.spec;
        let ports = spec.ports.keys();
        let row = |port: &PortKey| Row {
            port: Port::from(*port),
            service: spec.key.clone(),
            state: state(*port, spec, node, decision, &goes_to),
        };
        ports.map(row).collect::<Vec<_>>()
    });
    let mut ports: Vec<Row> = rows.collect();
    ports.sort_by(|a, b| (a.port, &a.service).cmp(&(b.port, &b.service)));
    Explanation {
        place: Place::Node(node_name.to_owned()),
        ready: readiness.is_ready(),
        reason: readiness.reason().to_owned(),
        message: readiness.to_string(),
        proxy_mode: report.proxy_mode,
        addresses: decision.plan.addresses.clone(),
        awaited_ports: report.awaited,
        table: Table::NotCompared,
        ports,
        left_alone: services.values().filter_map(left_alone).collect(),
    }
}

/// Where connections to each port of each Service are sent.
pub(crate) type GoesTo<'a> = BTreeMap<(PortKey, &'a ServiceKey), BTreeSet<SocketAddr>>;

/// Where a plan sends connections.
pub(crate) fn by_port(plan: &Plan) -> GoesTo<'_> {
    let mut all = GoesTo::new();
    for (slot, forward) in &plan.forwards {
        let known = all
            .entry((slot.port, &forward.port_name.service))
            .or_default();
        match &forward.target {
            Target::Backends(backends) => known.extend(&backends.targets),
            Target::ClusterIp(_) | Target::NodePort { .. } => known.extend(forward.entrance(*slot)),
        }
    }
    all
}

fn state(
    port: PortKey,
    spec: &ServiceSpec,
    node: &NodeFacts,
    decision: &Decision,
    goes_to: &GoesTo<'_>,
) -> State {
    let key = &spec.key;
    if decision.served.contains(key) {
        let goes_to = goes_to.get(&(port, key)).cloned();
        return State::Served {
            goes_to: goes_to.unwrap_or_default(),
            kernel: None,
        };
    }
    let refused = || decision.conflicts.iter().filter(|it| it.service == *key);
    let here = |it: &&Conflict| (it.protocol, it.port) == (port.protocol, port.port.get());
    if let Some(conflict) = refused().find(here) {
        return State::Refused {
            reason: conflict.reason.as_str(),
            held_by: conflict.held_by.clone(),
        };
    }
    let why = if let Some(other) = refused().next() {
        format!(
            "all or nothing: {}/{} is refused",
            other.port, other.protocol
        )
    } else if !node.enabled {
        "the node has not opted in".to_owned()
    } else if !spec.node_selector.matches(&node.labels) {
        format!(
            "the node-selector \"{}\" does not match",
            spec.node_selector
        )
    } else {
        "the node has no address of its IP family, or the agent has not programmed it yet"
            .to_owned()
    };
    State::NotServed { why }
}

fn left_alone(service: &ServiceFacts) -> Option<LeftAlone> {
    let manager = service.managed_elsewhere.clone()?;
    Some(LeftAlone {
        service: service.key.clone(),
        why: Problem::ManagedElsewhere { manager }.to_string(),
    })
}
