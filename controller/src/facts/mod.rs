//! What the watches say, each object pruned to the facts that matter: no policy, no text.

pub mod endpoints;
pub mod ingress;
pub mod lease;
pub mod load_balancer;
pub mod node;
pub mod service;

use std::sync::Arc;

use highwire_api::{
    ClassPolicy, LoadBalancerNode, ResourceVersion, ServiceKey,
    external::{ExternalLoadBalancer, LoadBalancer},
};
use highwire_runtime::mirror::{Change, Mirror, key};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::{Resource, ResourceExt, core::DeserializeGuard, runtime::watcher::Event};
use tracing::warn;

use endpoints::Endpoints;
use lease::LeaseFacts;
use node::{NodeFacts, Report};
use service::ServiceFacts;

/// An event of one of the watches.
#[derive(Debug)]
pub enum Input {
    /// Of the Services, of every type.
    Service(Box<Event<Service>>),
    /// Of the Nodes.
    Node(Box<Event<Node>>),
    /// Of the LoadBalancerNodes.
    Report(Box<Event<DeserializeGuard<LoadBalancerNode>>>),
    /// Of the Leases in the controller's namespace: the agents' and the controllers' own.
    Lease(Box<Event<Lease>>),
    /// Of the EndpointSlices that kube-proxy follows.
    Endpoints(Box<Event<EndpointSlice>>),
    /// Of the ExternalLoadBalancers.
    External(Box<Event<DeserializeGuard<ExternalLoadBalancer>>>),
    /// Of the LoadBalancers.
    LoadBalancer(Box<Event<DeserializeGuard<LoadBalancer>>>),
}

/// A fact that changed.
#[derive(Debug)]
pub enum Changed {
    /// A Service.
    Service(ServiceKey),
    /// A Node or its LoadBalancerNode, by name.
    Node(String),
    /// A Lease, by name, as it is now.
    Lease(String, Option<LeaseFacts>),
    /// The nodes with ready endpoints of a Service.
    Endpoints(ServiceKey),
    /// An ExternalLoadBalancer.
    External,
    /// The LoadBalancer of a Service.
    LoadBalancer(ServiceKey),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Facts {
    services: Mirror<Arc<ServiceFacts>>,
    nodes: Mirror<Arc<NodeFacts>>,
    reports: Mirror<Arc<Report>>,
    leases: Mirror<LeaseFacts>,
    endpoints: Endpoints,
    externals: Mirror<Arc<ExternalLoadBalancer>>,
    load_balancers: Mirror<Arc<LoadBalancer>>,
    class_policy: ClassPolicy,
}

impl Facts {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(class_policy: ClassPolicy) -> Self {
        Self {
            class_policy,
            ..Self::default()
        }
    }

    /// Takes in an event.
    pub fn apply(&mut self, input: Input) -> Vec<Changed> {
        match input {
            Input::Service(event) => self.apply_service(*event),
            Input::Node(event) => {
                let view = |node: &Node| Some(Arc::new(NodeFacts::of(node)));
                each(self.nodes.changes(*event, view), Changed::Node)
            }
            Input::Report(event) => {
                let view = |object: &_| Some(Arc::new(Report::of(object)));
                each(self.reports.changes(*event, view), Changed::Node)
            }
            Input::Lease(event) => {
                let view = |lease: &Lease| Some(LeaseFacts::of(lease));
                let changes = self.leases.changes(*event, view).into_iter();
                let now = changes
                    .map(|change| (short(&change.key).to_owned(), self.leases.get(&change.key)));
                now.map(|(name, lease)| Changed::Lease(name, lease.cloned()))
                    .collect()
            }
            Input::Endpoints(event) => {
                let services = self.endpoints.apply(*event).into_iter();
                services.map(Changed::Endpoints).collect()
            }
            Input::External(event) => each(self.externals.changes(*event, readable), |_| {
                Changed::External
            }),
            Input::LoadBalancer(event) => {
                let changes = self.load_balancers.changes(*event, readable).into_iter();
                changes
                    .filter_map(|change| Some(Changed::LoadBalancer(change.key.parse().ok()?)))
                    .collect()
            }
        }
    }

    fn apply_service(&mut self, event: Event<Service>) -> Vec<Changed> {
        if let Event::Apply(service) = &event
            && let Some(known) = self.services.get(&key(service))
            && known.uid == service.metadata.uid.clone().unwrap_or_default()
            && ResourceVersion::of(&service.metadata) < Some(known.version)
        {
            // The answer to our own write came before this event.
            return Vec::new();
        }
        let policy = self.class_policy;
        let view = |service: &Service| ServiceFacts::of(service, policy).map(Arc::new);
        let changes = self.services.changes(event, view).into_iter();
        changes
            .filter_map(|change| Some(Changed::Service(change.key.parse().ok()?)))
            .collect()
    }

    /// Takes in the API server's answer to a write: the Service as it is now. The watch
    /// brings it too, but later, and may already have said that the Service is gone.
    pub fn answered(&mut self, service: Service) -> Vec<Changed> {
        let known = self.services.get(&key(&service));
        if known.is_some_and(|known| Some(&known.uid) == service.metadata.uid.as_ref()) {
            self.apply_service(Event::Apply(service))
        } else {
            Vec::new()
        }
    }

    /// The watches whose first list is not complete yet.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        [
            ("Services", self.services.known().is_some()),
            ("Nodes", self.nodes.known().is_some()),
            ("LoadBalancerNodes", self.reports.known().is_some()),
            ("Leases", self.leases.known().is_some()),
            ("EndpointSlices", self.endpoints.is_complete()),
        ]
        .into_iter()
        .filter_map(|(kind, complete)| (!complete).then_some(kind))
        .collect()
    }

    /// A Service that may concern us.
    #[must_use]
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<ServiceFacts>> {
        self.services.get(&key.to_string())
    }

    /// A Node.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Arc<NodeFacts>> {
        self.nodes.get(&format!("/{name}"))
    }

    /// How many Nodes there are.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.nodes.known().map_or(0, |all| all.len())
    }

    /// What the agent on a node reports.
    #[must_use]
    pub fn report(&self, node: &str) -> Option<&Arc<Report>> {
        self.reports.get(&format!("/{node}"))
    }

    /// A Lease.
    #[must_use]
    pub fn lease(&self, name: &str) -> Option<&LeaseFacts> {
        let known = self.leases.known().into_iter().flatten();
        let mut found = known.filter(|(key, _)| short(key) == name);
        found.next().map(|(_, lease)| lease)
    }

    /// Every Node.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Arc<NodeFacts>)> {
        let known = self.nodes.known().into_iter().flatten();
        known.map(|(key, node)| (short(key), node))
    }

    /// Every ExternalLoadBalancer.
    pub fn externals(&self) -> impl Iterator<Item = (&str, &Arc<ExternalLoadBalancer>)> {
        let known = self.externals.known().into_iter().flatten();
        known.map(|(key, object)| (short(key), object))
    }

    /// Every LoadBalancer, by the Service that it is for.
    pub fn load_balancers(&self) -> impl Iterator<Item = (ServiceKey, &Arc<LoadBalancer>)> {
        let known = self.load_balancers.known().into_iter().flatten();
        known.filter_map(|(key, object)| Some((key.parse().ok()?, object)))
    }

    /// The LoadBalancer of a Service.
    #[must_use]
    pub fn load_balancer(&self, key: &ServiceKey) -> Option<&Arc<LoadBalancer>> {
        self.load_balancers.get(&key.to_string())
    }

    /// Whether all is known that decisions about boxes outside the cluster need.
    #[must_use]
    pub fn knows_externals(&self) -> bool {
        self.missing().is_empty()
            && self.externals.known().is_some()
            && self.load_balancers.known().is_some()
    }

    /// Where Services have ready endpoints.
    #[must_use]
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }
}

/// The object, unless it cannot be read.
fn readable<K>(object: &DeserializeGuard<K>) -> Option<Arc<K>>
where
    K: Resource<DynamicType = ()> + Clone,
{
    match &object.0 {
        Ok(object) => {
            let mut object = object.clone();
            object.meta_mut().managed_fields = None;
            Some(Arc::new(object))
        }
        Err(invalid) => {
            let (kind, name, error) = (K::kind(&()), object.name_any(), &invalid.error);
            warn!(
                name,
                "the {kind} cannot be read, so it does not count: {error}"
            );
            None
        }
    }
}

fn each<V>(changes: Vec<Change<V>>, as_fact: impl Fn(String) -> Changed) -> Vec<Changed> {
    let names = changes
        .into_iter()
        .map(|change| short(&change.key).to_owned());
    names.map(as_fact).collect()
}

/// The name in the key of a [`Mirror`].
fn short(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}
