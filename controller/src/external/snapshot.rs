//! Everything that plans for boxes outside the cluster depend on, at one moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use highwire_api::{
    Family, Interpretation, ServiceKey,
    external::{ExternalLoadBalancer, LoadBalancer},
    names::edge_lease,
    service::Entrance,
};

use crate::{
    decision::eligibility::{Asked, Eligible, Node, Nodes, Silence},
    facts::{
        Facts, endpoints::Endpoints, lease::LeaseFacts, node::NodeFacts, service::ServiceFacts,
        service::needs_endpoints,
    },
    history::History,
    liveness::Liveness,
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
    /// For the Services that enter at the nodes' own ports, the nodes that serve them.
    pub serving: BTreeMap<ServiceKey, BTreeMap<String, Eligible>>,
    /// Where those Services have ready endpoints that need them on the node itself.
    pub ready_nodes: BTreeMap<(ServiceKey, Family), BTreeSet<String>>,
    /// Every ExternalLoadBalancer.
    pub externals: BTreeMap<String, Arc<ExternalLoadBalancer>>,
    /// Every LoadBalancer, by the Service that it is for.
    pub load_balancers: BTreeMap<ServiceKey, Arc<LoadBalancer>>,
    /// The Leases of the agents that run on boxes, by ExternalLoadBalancer.
    pub edges: BTreeMap<String, LeaseFacts>,
}

/// What agents say of their nodes.
#[derive(Clone, Debug, Default)]
pub struct NodesNow {
    /// See [`Snapshot::silent`].
    pub silent: BTreeSet<String>,
    /// See [`Snapshot::serving`].
    pub serving: BTreeMap<ServiceKey, BTreeMap<String, Eligible>>,
}

impl NodesNow {
    /// What they say of these Services.
    #[must_use]
    pub fn of<'a>(
        services: impl Iterator<Item = (&'a ServiceKey, &'a History)>,
        nodes: &Nodes,
        endpoints: &Endpoints,
    ) -> Self {
        let serving = services.filter_map(|(key, service)| {
            let spec = service
                .spec()
                .filter(|spec| spec.entrance == Entrance::ClusterIp)?;
            let asked = Asked {
                key,
                spec,
                ports: Arc::default(),
                is_outdated: false,
                changed: service.changed,
                listed: &service.facts.status.listed.ingress,
                endpoints,
            };
            let serving = nodes.iter().filter_map(|(name, node)| {
                let eligible = asked.eligibility(name, node, Silence::ProvesNothing);
                Some((name.clone(), eligible.ok()?))
            });
            Some((key.clone(), serving.collect()))
        });
        let is_silent = |(_, node): &(&String, &Node)| node.liveness == Some(Liveness::Silent);
        let silent = nodes.iter().filter(is_silent);
        Self {
            serving: serving.collect(),
            silent: silent.map(|(name, _)| name.clone()).collect(),
        }
    }
}

impl Snapshot {
    /// What matters to these Services.
    #[must_use]
    pub fn of(facts: &Facts, services: &BTreeSet<ServiceKey>, nodes: NodesNow) -> Self {
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
        let known = facts.nodes();
        let externals = facts.externals();
        let load_balancers = facts.load_balancers();
        let edges = facts.externals().filter_map(|(name, _)| {
            let lease = facts.lease(&edge_lease(name))?;
            Some((name.to_owned(), lease.clone()))
        });
        Self {
            edges: edges.collect(),
            silent: nodes.silent,
            serving: nodes.serving,
            ready_nodes: ready_nodes.collect(),
            nodes: known
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
