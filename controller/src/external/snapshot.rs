//! Everything that plans for boxes outside the cluster depend on, at one moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use highwire_api::{
    Family, Interpretation, ServiceKey,
    external::{ExternalLoadBalancer, LoadBalancer},
    names::edge_lease,
};

use crate::facts::{
    Facts, lease::LeaseFacts, node::NodeFacts, service::ServiceFacts, service::needs_endpoints,
};

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The Services of class `highwire.dev/external`.
    pub services: BTreeMap<ServiceKey, Arc<ServiceFacts>>,
    /// Every Node.
    pub nodes: BTreeMap<String, Arc<NodeFacts>>,
    /// The nodes with an agent that has fallen silent.
    pub silent: BTreeSet<String>,
    /// Where those Services have ready endpoints that need them on the node itself.
    pub ready_nodes: BTreeMap<(ServiceKey, Family), BTreeSet<String>>,
    /// Every ExternalLoadBalancer.
    pub externals: BTreeMap<String, Arc<ExternalLoadBalancer>>,
    /// Every LoadBalancer, by the Service that it is for.
    pub load_balancers: BTreeMap<ServiceKey, Arc<LoadBalancer>>,
    /// The Leases of the agents that run on boxes, by ExternalLoadBalancer.
    pub edges: BTreeMap<String, LeaseFacts>,
}

impl Snapshot {
    /// What matters to these Services.
    #[must_use]
    pub fn of(facts: &Facts, services: &BTreeSet<ServiceKey>, silent: BTreeSet<String>) -> Self {
        let found = services
            .iter()
            .filter_map(|key| Some((key.clone(), facts.service(key)?.clone())));
        let services: BTreeMap<_, _> = found.collect();
        let local = services.iter().filter(|(_, service)| match &service.asks {
            Interpretation::Serve(spec) => needs_endpoints(spec),
            _ => false,
        });
        let ready_nodes = local.flat_map(|(key, _)| {
            Family::ALL.map(|family| {
                let nodes = facts.endpoints().ready_nodes(key, family);
                ((key.clone(), family), nodes)
            })
        });
        let nodes = facts.nodes();
        let externals = facts.externals();
        let load_balancers = facts.load_balancers();
        let edges = facts.externals().filter_map(|(name, _)| {
            let lease = facts.lease(&edge_lease(name))?;
            Some((name.to_owned(), lease.clone()))
        });
        Self {
            edges: edges.collect(),
            silent,
            ready_nodes: ready_nodes.collect(),
            nodes: nodes
                .map(|(name, it)| (name.to_owned(), it.clone()))
                .collect(),
            externals: externals
                .map(|(name, it)| (name.to_owned(), it.clone()))
                .collect(),
            load_balancers: load_balancers.map(|(key, it)| (key, it.clone())).collect(),
            services,
        }
    }

    /// Whether Pods on that node answer clients of that family.
    #[must_use]
    pub fn answers(&self, service: &ServiceKey, family: Family, node: &str) -> bool {
        let ready = self.ready_nodes.get(&(service.clone(), family));
        ready.is_none_or(|nodes| nodes.contains(node))
    }
}
