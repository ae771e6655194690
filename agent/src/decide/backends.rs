//! Targets that a nat rule of ours chooses from, and which of a Service's endpoints are
//! targets where no kube-proxy picks them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use highwire_api::{
    Family, PortKey, ServiceKey, ServiceSpec,
    service::{Affinity, ServicePort, TrafficPolicy},
};

use crate::facts::endpoints::{Endpoint, NodeHint, Slice, State};

/// Where connections to a slot end, without a kube-proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backends {
    /// Each gets as many connections as any other; if there is none, clients are refused.
    /// They are of the slot's family.
    pub targets: BTreeSet<SocketAddr>,
    /// Who gets no new connection, but whose UDP flows may stay.
    pub draining: BTreeSet<SocketAddr>,
    /// Which of the targets a connection gets.
    pub choice: Choice,
    /// Whether a target sees the client's own address; else this node's. It has to send its
    /// answers by way of this node.
    pub keeps_client: bool,
}

/// How a connection's target is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// At random.
    Random,
    /// By the client's address (`sessionAffinity: ClientIP`): a client keeps its target while
    /// that is one, and for so long without a connection.
    ByClient(Memory),
}

/// For how long the kernel remembers a client's target. A rule has one time, so there are some
/// times only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory(u64);

impl Memory {
    /// The times there are, in seconds, from 10 s to the day that is the most for Kubernetes.
    pub const SECONDS: [u64; 8] = [10, 60, 300, 600, 1800, 3600, 10_800, 86_400];

    /// The shortest that is not shorter than this.
    #[must_use]
    pub fn at_least(timeout: Duration) -> Self {
        let mut long_enough = Self::SECONDS.into_iter();
        let long_enough = long_enough.find(|seconds| Duration::from_secs(*seconds) >= timeout);
        Self(long_enough.unwrap_or(Self::SECONDS[Self::SECONDS.len() - 1]))
    }

    /// In seconds: one of [`Self::SECONDS`].
    #[must_use]
    pub fn seconds(self) -> u64 {
        self.0
    }
}

/// The label of a Node that names its zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Who can answer for the Services, as this node sees it.
#[derive(Debug)]
pub struct Answering<'a> {
    slices: BTreeMap<&'a ServiceKey, Vec<&'a Slice>>,
    zone: Option<&'a str>,
}

impl<'a> Answering<'a> {
    /// By these EndpointSlices, on a node with these labels.
    #[must_use]
    pub fn new(
        slices: impl IntoIterator<Item = &'a Slice>,
        node_labels: &'a BTreeMap<String, String>,
    ) -> Self {
        let mut by_service: BTreeMap<&ServiceKey, Vec<&Slice>> = BTreeMap::new();
        for slice in slices {
            by_service.entry(&slice.service).or_default().push(slice);
        }
        Self {
            slices: by_service,
            zone: node_labels.get(ZONE_LABEL).map(String::as_str),
        }
    }

    /// Whether anything is known of the endpoints that the Service has in this family: also
    /// that there is none.
    #[must_use]
    pub fn knows(&self, service: &ServiceKey, family: Family) -> bool {
        let mut slices = self.slices.get(service).into_iter().flatten();
        slices.any(|slice| slice.family == Some(family))
    }

    /// The targets of a port of a Service in one family, for clients from outside, as
    /// kube-proxy picks them (pkg/proxy/topology.go, `CategorizeEndpoints`). There
    /// `internalTrafficPolicy` does not count.
    #[must_use]
    pub fn backends(
        &self,
        spec: &ServiceSpec,
        key: PortKey,
        port: &ServicePort,
        family: Family,
    ) -> Backends {
        let slices = self.slices.get(&spec.key).into_iter().flatten();
        let known: Vec<(&Endpoint, SocketAddr)> = slices
            .flat_map(|slice| {
                let ports = slice.ports.iter();
                let own = ports.filter(|it| it.name == port.name && it.protocol == key.protocol);
                own.flat_map(|port| {
                    let endpoints = slice.endpoints.iter();
                    let of_family = endpoints.filter(|it| Family::of(it.address) == family);
                    of_family.map(|it| (it, SocketAddr::new(it.address, port.number.get())))
                })
            })
            .collect();
        let is_local = spec.external_policy == TrafficPolicy::Local;
        let near = Near::of(&known, self.zone);
        let is_reachable = |endpoint: &Endpoint| match spec.external_policy {
            TrafficPolicy::Cluster => near.has(endpoint, self.zone),
            TrafficPolicy::Local => endpoint.is_here,
        };
        let in_state = |state: State, reachable: &dyn Fn(&Endpoint) -> bool| {
            let of_state = known
                .iter()
                .filter(|(endpoint, _)| endpoint.state == state && reachable(endpoint));
            of_state.map(|(_, socket)| *socket).collect::<BTreeSet<_>>()
        };
        let mut targets = in_state(State::Ready, &is_reachable);
        if targets.is_empty() {
            // Hints count for what is ready only.
            targets = in_state(State::Terminating, &|it| !is_local || it.is_here);
        }
        let others = known.iter().map(|(_, socket)| *socket);
        Backends {
            draining: others.filter(|it| !targets.contains(it)).collect(),
            targets,
            choice: match spec.affinity {
                Affinity::None => Choice::Random,
                Affinity::Client { timeout } => Choice::ByClient(Memory::at_least(timeout)),
            },
            keeps_client: is_local,
        }
    }
}

/// Which endpoints are near enough, by their hints. As for kube-proxy, hints count only if all
/// that is ready has them and some are for this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Near {
    Everywhere,
    Zone,
    Node,
}

impl Near {
    fn of(known: &[(&Endpoint, SocketAddr)], zone: Option<&str>) -> Self {
        let ready = || {
            let ready = known.iter().filter(|(it, _)| it.state == State::Ready);
            ready.map(|(endpoint, _)| *endpoint)
        };
        let counts = |has_hint: &dyn Fn(&Endpoint) -> bool, near: Self| {
            ready().all(has_hint) && ready().any(|it| near.has(it, zone))
        };
        if counts(&|it| it.node != NodeHint::None, Self::Node) {
            Self::Node
        } else if counts(&|it| !it.zones.is_empty(), Self::Zone) {
            Self::Zone
        } else {
            Self::Everywhere
        }
    }

    fn has(self, endpoint: &Endpoint, zone: Option<&str>) -> bool {
        match self {
            Self::Everywhere => true,
            Self::Zone => endpoint.zones.iter().any(|it| Some(&**it) == zone),
            Self::Node => endpoint.node == NodeHint::Here,
        }
    }
}

#[cfg(test)]
#[path = "backends_tests.rs"]
mod tests;
