//! The UDP endpoints of all Services, kept up to date from EndpointSlices.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use highwire_api::{ServiceKey, names::SERVICE_NAME_LABEL};
use highwire_runtime::mirror::Mirror;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::{ResourceExt, runtime::watcher::Event};

/// A port of a Service, by the name that EndpointSlices use too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePortName {
    /// The Service.
    pub service: ServiceKey,
    /// The port's name; empty if it has none.
    pub port: Arc<str>,
}

/// Who answers one port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// On whatever node.
    pub all: BTreeSet<SocketAddr>,
    /// Those of them on this node.
    pub here: BTreeSet<SocketAddr>,
}

/// What matters of one EndpointSlice.
#[derive(Debug, PartialEq, Eq)]
struct Slice {
    service: ServiceKey,
    /// By name, its UDP ports. Never empty.
    ports: BTreeMap<String, Endpoints>,
}

/// The usable UDP endpoints of all Services, of both families.
///
/// Of all, and not only of those that are served here: one that is served later needs
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
            for (port, endpoints) in &slice.ports {
                let port = ServicePortName {
                    service: slice.service.clone(),
                    port: port.as_str().into(),
                };
                let known = found.entry(port).or_default();
                known.all.extend(&endpoints.all);
                known.here.extend(&endpoints.here);
            }
        }
        Some(found)
    }

    /// Takes in one watch event. Says whether it changed anything about a Service that
    /// is `wanted`, or completes the first list.
    pub fn absorb(&mut self, event: Event<EndpointSlice>, wanted: &BTreeSet<ServiceKey>) -> bool {
        let (node, first) = (&self.node, self.slices.known().is_none());
        let changes = self.slices.changes(event, |slice| read(slice, node));
        let concerns = |slice: Option<&Slice>| slice.is_some_and(|it| wanted.contains(&it.service));
        let concerned = changes.iter().any(|change| {
            concerns(change.before.as_ref()) || concerns(self.slices.get(&change.key))
        });
        concerned || first && self.slices.known().is_some()
    }
}

fn service(slice: &EndpointSlice) -> Option<ServiceKey> {
    Some(ServiceKey {
        namespace: slice.namespace()?.into(),
        name: slice.labels().get(SERVICE_NAME_LABEL)?.as_str().into(),
    })
}

fn read(slice: &EndpointSlice, node: &str) -> Option<Slice> {
    let mut ports: BTreeMap<String, Endpoints> = BTreeMap::new();
    let udp = slice
        .ports
        .iter()
        .flatten()
        .filter(|port| port.protocol.as_deref() == Some("UDP"));
    for port in udp {
        let Some(number) = port.port.and_then(|number| u16::try_from(number).ok()) else {
            continue;
        };
        let known = ports
            .entry(port.name.clone().unwrap_or_default())
            .or_default();
        for endpoint in slice.endpoints.iter().filter(|e| is_usable(e)) {
            // The API server lets none of another type than the slice's in, and
            // names (type FQDN) are nothing that kube-proxy sends to.
            let addresses = endpoint.addresses.iter();
            let parsed = addresses.filter_map(|ip| ip.parse::<IpAddr>().ok());
            let sockets = parsed.map(|ip| SocketAddr::new(ip, number));
            if endpoint.node_name.as_deref() == Some(node) {
                known.here.extend(sockets.clone());
            }
            known.all.extend(sockets);
        }
    }
    let service = service(slice)?;
    (!ports.is_empty()).then_some(Slice { service, ports })
}

/// Whether a flow to it may stay, because it serves (one that terminates does, until
/// its Pod says otherwise), or would be made again, because it is ready, as with
/// `publishNotReadyAddresses` a Pod is that does not serve.
///
/// kube-proxy sends new clients to what is ready, and leaves UDP flows to what serves
/// (pkg/proxy/conntrack/cleanup.go since Kubernetes 1.32). An absent condition means
/// yes, as for kube-proxy (pkg/proxy/endpointslicecache.go).
fn is_usable(endpoint: &Endpoint) -> bool {
    let conditions = endpoint.conditions.as_ref();
    conditions.is_none_or(|c| c.serving.unwrap_or(true) || c.ready.unwrap_or(true))
}

#[cfg(test)]
#[path = "endpoints_tests.rs"]
mod tests;
