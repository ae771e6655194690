//! The UDP endpoints of all Services.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use highwire_api::ServiceKey;
use highwire_runtime::mirror::Mirror;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::Event;

use super::{Kept, ServicePortName, Slice};

/// Who answers one port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// On whatever node.
    pub all: BTreeSet<SocketAddr>,
    /// Those of them on this node.
    pub here: BTreeSet<SocketAddr>,
}

/// The usable UDP endpoints of all Services, of both families: a flow to one may stay,
/// because it serves (one that terminates does, until its Pod says otherwise), or would be
/// made again, because it is ready.
///
/// kube-proxy sends new clients to what is ready, and leaves UDP flows to what serves
/// (pkg/proxy/conntrack/cleanup.go since Kubernetes 1.32).
///
/// Of all Services, and not only of those that are served here: one that is served later needs
/// its endpoints then, and a watch brings them once. Only slices with UDP ports are kept.
#[derive(Debug)]
pub struct EndpointIndex {
    node: String,
    slices: Mirror<Slice>,
}

impl EndpointIndex {
    /// An index that knows nothing yet, on the node of that name.
    #[must_use]
    pub fn new(node: String) -> Self {
        let slices = Mirror::default();
        Self { node, slices }
    }

    /// Who answers each port of the `wanted` Services that anybody answers; `None` until
    /// the first list is complete.
    #[must_use]
    pub fn of(
        &self,
        wanted: &BTreeSet<ServiceKey>,
    ) -> Option<BTreeMap<ServicePortName, Endpoints>> {
        let mut found: BTreeMap<ServicePortName, Endpoints> = BTreeMap::new();
        let slices = self.slices.known()?.values();
        for slice in slices.filter(|slice| wanted.contains(&slice.service)) {
            for port in &slice.ports {
                let name = ServicePortName {
                    service: slice.service.clone(),
                    port: port.name.clone(),
                };
                let known = found.entry(name).or_default();
                for endpoint in &slice.endpoints {
                    let socket = SocketAddr::new(endpoint.address, port.number.get());
                    known.all.insert(socket);
                    if endpoint.is_here {
                        known.here.insert(socket);
                    }
                }
            }
        }
        Some(found)
    }

    /// Takes in one watch event. Says whether it changed anything about a Service that
    /// is `wanted`, or completes the first list.
    pub fn absorb(&mut self, event: Event<EndpointSlice>, wanted: &BTreeSet<ServiceKey>) -> bool {
        let (node, first) = (&self.node, self.slices.known().is_none());
        let read = |slice: &EndpointSlice| Slice::of(slice, node, Kept::Udp);
        let changes = self.slices.changes(event, read);
        let concerns = |slice: Option<&Slice>| slice.is_some_and(|it| wanted.contains(&it.service));
        let concerned = changes.iter().any(|change| {
            concerns(change.before.as_ref()) || concerns(self.slices.get(&change.key))
        });
        concerned || first && self.slices.known().is_some()
    }
}

#[cfg(test)]
#[path = "udp_tests.rs"]
mod tests;
