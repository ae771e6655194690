//! What the agent knows: from each source to a fact, with its own test whether that has
//! changed. Nothing is decided here.

pub mod addresses;
pub mod endpoints;
pub mod host;
pub mod listener_history;
pub mod listeners;
pub mod node;
pub mod pods;
pub mod service_proxy;
pub mod services;
pub mod sysctls;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use highwire_api::{PortKey, ServiceKey, node::ProxyMode};
use highwire_runtime::mirror::Mirror;
use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::runtime::watcher::Event;
use tracing::info;

use self::{
    addresses::HostAddress,
    endpoints::{Kept, Slice},
    host::Host,
    listener_history::Listeners,
    node::NodeFacts,
    pods::LocalPod,
    service_proxy::ServiceProxy,
    services::{ServiceFacts, Services},
    sysctls::Sysctls,
};
use crate::config::Policy;

/// All that a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The Services by `namespace/name`.
    pub services: &'a BTreeMap<String, ServiceFacts>,
    /// This node as the API server knows it.
    pub node: &'a NodeFacts,
    /// The addresses the kernel has.
    pub addresses: &'a [HostAddress],
    /// The Pods on this node.
    pub pods: &'a BTreeMap<String, LocalPod>,
    /// Sockets that wait for clients, and those that did until just now.
    pub listeners: &'a Listeners,
    /// What the sysctls say.
    pub sysctls: &'a Sysctls,
    /// What is known of kube-proxy here.
    pub proxy: &'a ServiceProxy,
    /// The EndpointSlices by `namespace/name`, if there is no kube-proxy to follow them.
    pub slices: Option<&'a BTreeMap<String, Slice>>,
    /// What the admin has decided.
    pub policy: &'a Policy,
    /// The Services that are left out because nft refuses them, each with the text of its conflict.
    pub left_out: &'a BTreeMap<ServiceKey, String>,
}

/// News from a source.
#[derive(Debug)]
pub enum News {
    /// A Service changed.
    Service(Box<Event<Service>>),
    /// The agent's own Node; `None` while there is none.
    Node(Option<Box<Node>>),
    /// A Pod on this node changed.
    Pod(Box<Event<Pod>>),
    /// The host's addresses are now these.
    Addresses(Vec<HostAddress>),
    /// This is now known of kube-proxy.
    Proxy(ServiceProxy),
    /// An EndpointSlice changed. They count while there is no kube-proxy.
    EndpointSlice(Box<Event<EndpointSlice>>),
}

/// The facts as far as they are known.
#[derive(Debug)]
pub struct Sources {
    node_name: String,
    policy: Policy,
    services: Services,
    node: Option<NodeFacts>,
    addresses: Option<Vec<HostAddress>>,
    pods: Mirror<LocalPod>,
    host: Host,
    /// `None` until it was searched for.
    proxy: Option<ServiceProxy>,
    slices: Mirror<Slice>,
}

impl Sources {
    /// Nothing is known yet, on the node of that name. A listener that is gone keeps its port
    /// for `hold_down`.
    #[must_use]
    pub fn new(node_name: String, policy: Policy, hold_down: Duration) -> Self {
        Self {
            node_name,
            services: Services::new(policy.class_policy),
            policy,
            node: None,
            addresses: None,
            pods: Mirror::default(),
            host: Host::new(hold_down),
            proxy: None,
            slices: Mirror::default(),
        }
    }

    /// Takes in news. Says whether a fact has changed.
    pub fn absorb(&mut self, news: News) -> bool {
        match news {
            News::Service(event) => self.services.absorb(*event),
            News::Pod(event) => self.pods.absorb(*event, LocalPod::of),
            News::Node(node) => {
                let now = match node {
                    Some(node) => Some(NodeFacts::of(&node)),
                    None => self.node.clone().map(NodeFacts::deleted),
                };
                replace(&mut self.node, now)
            }
            News::Addresses(addresses) => {
                info!(count = addresses.len(), "host addresses read");
                replace(&mut self.addresses, Some(addresses))
            }
            News::Proxy(proxy) => {
                if proxy.mode != Some(ProxyMode::Absent) {
                    self.slices = Mirror::default();
                }
                replace(&mut self.proxy, Some(proxy))
            }
            News::EndpointSlice(event) => {
                let node = &self.node_name;
                let read = |slice: &EndpointSlice| Slice::of(slice, node, Kept::All);
                self.slices.absorb(*event, read)
            }
        }
    }

    /// Reads what the kernel sends no news of, if it is time to. Says whether it has
    /// changed.
    pub fn read_host(&mut self, now: Instant) -> bool {
        self.host.read_if_due(self.services.revision(), now)
    }

    /// The Services, and how far they were read.
    #[must_use]
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// Takes in which Services are served on ports that have a listener: it is their own
    /// Pods'.
    pub fn served_beside(&mut self, beside: &BTreeMap<PortKey, BTreeSet<ServiceKey>>) {
        self.host.history.served_beside(beside);
    }

    /// All facts; `None` until there is one from every source.
    #[must_use]
    pub fn facts<'a>(&'a self, left_out: &'a BTreeMap<ServiceKey, String>) -> Option<Facts<'a>> {
        let proxy = self.proxy.as_ref()?;
        let slices = match proxy.mode {
            Some(ProxyMode::Absent) => Some(self.slices.known()?),
            _ => None,
        };
        Some(Facts {
            slices,
            services: self.services.known()?,
            node: self.node.as_ref()?,
            addresses: self.addresses.as_ref()?,
            pods: self.pods.known()?,
            listeners: &self.host.listeners,
            sysctls: &self.host.sysctls,
            proxy,
            policy: &self.policy,
            left_out,
        })
    }
}

fn replace<T: PartialEq>(known: &mut T, now: T) -> bool {
    let changed = *known != now;
    *known = now;
    changed
}

#[cfg(test)]
mod tests;
