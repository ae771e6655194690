//! What the agent of a box knows and decided. Pure.

use std::collections::BTreeMap;

use highwire_api::{PortKey, ServiceKey};

use super::{
    asked::Asked,
    decide::{BoxDecision, Verdict},
};
use crate::explain::{Explanation, Place, Port, Row, State, Table, node::by_port};

/// Explains what was decided for the box of that name; `problem` is what keeps it from being
/// ready.
pub(super) fn explain(
    name: &str,
    asked: &BTreeMap<ServiceKey, &Asked>,
    decision: &BoxDecision,
    problem: Option<&str>,
) -> Explanation {
    let goes_to = by_port(&decision.plan);
    let state = |key: &ServiceKey, port: PortKey| match decision.verdicts.get(key) {
        Some(Verdict::Served) => State::Served {
            goes_to: goes_to.get(&(port, key)).cloned().unwrap_or_default(),
            kernel: None,
        },
        Some(Verdict::Refused(trouble, message)) => State::Refused {
            reason: trouble.as_str(),
            held_by: message.clone(),
        },
        None => State::NotServed {
            why: "the agent has not decided about it yet".to_owned(),
        },
    };
    let rows = asked.iter().flat_map(|(key, asked)| {
        let ports = asked.spec.ports.iter();
        let ports = ports.filter_map(|it| PortKey::new(it.protocol, it.box_port.into()));
        ports.map(|port| Row {
            port: Port::from(port),
            service: key.clone(),
            state: state(key, port),
        })
    });
    let mut ports: Vec<Row> = rows.collect();
    ports.sort_by(|a, b| (a.port, &a.service).cmp(&(b.port, &b.service)));
    Explanation {
        place: Place::ExternalLoadBalancer(name.to_owned()),
        ready: problem.is_none(),
        reason: if problem.is_none() {
            "Programmed"
        } else {
            "NotReady"
        }
        .to_owned(),
        message: problem
            .unwrap_or("the box sends what comes for its Services to the nodes")
            .to_owned(),
        proxy_mode: None,
        addresses: decision.plan.addresses.clone(),
        awaited_ports: 0,
        table: Table::NotCompared,
        ports,
        left_alone: Vec::new(),
    }
}
