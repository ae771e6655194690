//! What was right at the last check, and stays so as long as nothing else is asked for,
//! whoever can reach the API server.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::expectation::Expectation;
use super::probe::Probe;
use super::violation::Violation;
use super::world::{AgentState, World};

/// What was right.
#[derive(Default)]
pub(super) struct Kept {
    /// What a client got, wherever something is said about it.
    pub(super) probes: Vec<Probe>,
    /// Entries of Services' ingress whose node's agent worked: Service, address and node.
    listed: BTreeSet<(String, IpAddr, String)>,
}

impl Kept {
    pub(super) fn new(world: &World, probes: Vec<Probe>) -> Self {
        let is_said = |probe: &Probe| probe.expectation != Expectation::Unspecified;
        let mut listed = BTreeSet::new();
        for service in world.services.values().filter(|it| it.is_ours()) {
            for address in service.ingress.iter().map(|entry| entry.ip) {
                let nodes = world.nodes.values();
                let node = nodes
                    .filter(|node| node.agent == AgentState::Running)
                    .find(|node| node.own_addresses().contains(&address));
                if let Some(node) = node {
                    listed.insert((service.key.clone(), address, node.name.clone()));
                }
            }
        }
        Self {
            probes: probes.into_iter().filter(is_said).collect(),
            listed,
        }
    }

    /// Entries that are gone now. Nodes whose agents cannot renew their Leases may leave.
    pub(super) fn gone(&self, now: &World, may_leave: &BTreeSet<String>) -> Vec<Violation> {
        let has_to_stay = self.listed.iter();
        let gone = has_to_stay.filter(|(service, address, node)| {
            let service = now.services.get(service);
            let is_there = service.is_some_and(|it| it.ingress.iter().any(|it| it.ip == *address));
            !is_there && !may_leave.contains(node)
        });
        gone.map(|(service, address, node)| Violation::Status {
            service: service.clone(),
            what: format!("{address} of {node} is gone while an API server fails others"),
        })
        .collect()
    }
}
