//! What matters of one EndpointSlice.

use std::{net::IpAddr, num::NonZeroU16, sync::Arc};

use highwire_api::{Family, Protocol, ServiceKey, names::SERVICE_NAME_LABEL};
use k8s_openapi::api::discovery::v1::{self as api, EndpointSlice};
use kube::ResourceExt;

/// Which ports are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Those of UDP.
    Udp,
    /// Those of every protocol that a Service can have.
    All,
}

/// What matters of one EndpointSlice.
#[derive(Debug, PartialEq, Eq)]
pub struct Slice {
    /// The Service that it is of.
    pub service: ServiceKey,
    /// The family of its addresses; `None` if they are names.
    pub family: Option<Family>,
    /// Every endpoint has them all. Empty where there is no endpoint: Kubernetes makes such a
    /// slice for each Service with a selector (its endpointslice controller, "placeholder").
    pub ports: Box<[Port]>,
    /// Those that clients may get, now or while they terminate.
    pub endpoints: Box<[Endpoint]>,
}

/// A port of all endpoints of a slice.
#[derive(Debug, PartialEq, Eq)]
pub struct Port {
    /// The name of the Service's port; empty if it has none.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The number that the endpoints have.
    pub number: NonZeroU16,
}

/// An address that answers.
#[derive(Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub address: IpAddr,
    /// What clients it is for.
    pub state: State,
    /// Whether it is on this node.
    pub is_here: bool,
    /// The zones whose clients it is meant for (`hints.forZones`).
    pub zones: Box<[Box<str>]>,
    /// Whether it is meant for this node's clients.
    pub node: NodeHint,
}

/// What clients an endpoint is for. What neither is ready nor serves is for none, and is not
/// kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// For new ones.
    Ready,
    /// It terminates but still serves: for new ones while nothing is ready (KEP-1669).
    Terminating,
    /// It serves, but is not ready: for those it has.
    Serving,
}

/// Whose clients an endpoint is meant for, by `hints.forNodes` (KEP-3015).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeHint {
    /// It has no such hint.
    None,
    /// Those of this node among others.
    Here,
    /// Those of other nodes.
    Elsewhere,
}

impl Slice {
    /// Reads it on the node of that name; `None` if nothing of it matters.
    #[must_use]
    pub fn of(slice: &EndpointSlice, node: &str, kept: Kept) -> Option<Self> {
        let ports = slice.ports.iter().flatten();
        let ports = ports.filter_map(|port| {
            let protocol = Protocol::from_service(port.protocol.as_deref())?;
            let number = u16::try_from(port.port?).ok().and_then(NonZeroU16::new)?;
            let name = port.name.as_deref().unwrap_or_default().into();
            (kept == Kept::All || protocol == Protocol::Udp).then_some(Port {
                name,
                protocol,
                number,
            })
        });
        let ports: Box<[Port]> = ports.collect();
        if ports.is_empty() && kept == Kept::Udp {
            return None;
        }
        let service = ServiceKey {
            namespace: slice.namespace()?.into(),
            name: slice.labels().get(SERVICE_NAME_LABEL)?.as_str().into(),
        };
        let endpoints = slice.endpoints.iter().flat_map(|it| endpoints(it, node));
        let reachable = endpoints.filter(|_| !ports.is_empty());
        Some(Self {
            service,
            family: match slice.address_type.as_str() {
                "IPv4" => Some(Family::V4),
                "IPv6" => Some(Family::V6),
                _ => None,
            },
            endpoints: reachable.collect(),
            ports,
        })
    }
}

/// One for each address; none if no client may get it.
fn endpoints(endpoint: &api::Endpoint, node: &str) -> Vec<Endpoint> {
    let Some(state) = State::of(endpoint) else {
        return Vec::new();
    };
    let hints = endpoint.hints.as_ref();
    let zones = hints.and_then(|hints| hints.for_zones.as_deref());
    let nodes = hints.and_then(|hints| hints.for_nodes.as_deref());
    let node_hint = match nodes.unwrap_or_default() {
        [] => NodeHint::None,
        nodes if nodes.iter().any(|it| it.name == node) => NodeHint::Here,
        _ => NodeHint::Elsewhere,
    };
    let zones = zones.unwrap_or_default().iter();
    let zones = || {
        zones
            .clone()
            .map(|zone| zone.name.as_str().into())
            .collect()
    };
    // The API server lets none of another type than the slice's in, and names (type FQDN)
    // are nothing that kube-proxy sends to.
    let addresses = endpoint.addresses.iter();
    let addresses = addresses.filter_map(|ip| ip.parse::<IpAddr>().ok());
    addresses
        .map(|address| Endpoint {
            address,
            state,
            is_here: endpoint.node_name.as_deref() == Some(node),
            zones: zones(),
            node: node_hint,
        })
        .collect()
}

impl State {
    /// An absent condition means that it is ready and serves, as for kube-proxy
    /// (pkg/proxy/endpointslicecache.go). With `publishNotReadyAddresses` what does not serve
    /// is ready too.
    fn of(endpoint: &api::Endpoint) -> Option<Self> {
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        if conditions.ready.unwrap_or(true) {
            Some(Self::Ready)
        } else if !conditions.serving.unwrap_or(true) {
            None
        } else if conditions.terminating.unwrap_or(false) {
            Some(Self::Terminating)
        } else {
            Some(Self::Serving)
        }
    }
}
