//! What the kernel of this node forwards: derived once, for the rules, the report, the
//! clean-up of UDP and `explain`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
};

use highwire_api::{
    Family, Protocol, ServiceSpec,
    arbitration::Slot,
    clients::Clients,
    service::{Entrance, TrafficPolicy},
};
use ipnet::IpNet;

use super::backends::{Answering, Backends};
use crate::facts::endpoints::ServicePortName;

/// Where the first packet of a connection is sent, so that kube-proxy's own
/// rules take it from there, or where the connection ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To the Service's ClusterIP, the port unchanged (Cluster traffic policy).
    ClusterIp(IpAddr),
    /// To the Service's NodePort, at the one address where kube-proxy serves
    /// NodePorts in every mode: the node's primary one (a traffic policy Local).
    NodePort {
        /// The node's primary address.
        address: IpAddr,
        /// The NodePort.
        port: NonZeroU16,
        /// The external traffic policy, which kube-proxy follows there.
        policy: TrafficPolicy,
    },
    /// To one of these, where it ends: [`DataPath::Direct`](crate::table::DataPath::Direct).
    Backends(Backends),
}

/// What becomes of connections to one slot of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Where they are sent; of the slot's family.
    pub target: Target,
    /// The networks, of the slot's family, whose clients may connect; an empty set lets
    /// no client in. `None`: all may.
    pub clients: Option<BTreeSet<IpNet>>,
    /// The port of the Service.
    pub port_name: ServicePortName,
}

impl Forward {
    /// With `Local`, clients from outside get this node's endpoints only, and keep their
    /// addresses.
    #[must_use]
    pub fn policy(&self) -> TrafficPolicy {
        match &self.target {
            // A Service with a policy Local has NodePorts as targets.
            Target::ClusterIp(_) => TrafficPolicy::Cluster,
            Target::NodePort { policy, .. } => *policy,
            Target::Backends(backends) if backends.keeps_client => TrafficPolicy::Local,
            Target::Backends(_) => TrafficPolicy::Cluster,
        }
    }

    /// Where kube-proxy takes connections to this slot: the ClusterIP or the NodePort.
    /// `None` if they do not need it.
    #[must_use]
    pub fn entrance(&self, slot: Slot) -> Option<SocketAddr> {
        match self.target {
            Target::ClusterIp(ip) => Some(SocketAddr::new(ip, slot.port.port.get())),
            Target::NodePort { address, port, .. } => Some(SocketAddr::new(address, port.get())),
            Target::Backends(_) => None,
        }
    }
}

/// Everything about the node's table that is not the same on every node at all
/// times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The node's own addresses at which Services answer.
    pub addresses: BTreeSet<IpAddr>,
    /// The served slots and where each goes.
    pub forwards: BTreeMap<Slot, Forward>,
}

impl Plan {
    /// The sockets of this node at which UDP is taken, each with its slot and forward.
    pub fn udp(&self) -> impl Iterator<Item = (SocketAddr, Slot, &Forward)> {
        let udp = |slot: &Slot| slot.port.protocol == Protocol::Udp;
        let forwards = self.forwards.iter().filter(move |(slot, _)| udp(slot));
        forwards.flat_map(|(slot, forward)| {
            let sockets = sockets(*slot, &self.addresses);
            sockets.map(move |at| (at, *slot, forward))
        })
    }
}

/// Those of the addresses that are of the slot's family, with its port.
pub fn sockets(slot: Slot, addresses: &BTreeSet<IpAddr>) -> impl Iterator<Item = SocketAddr> {
    let of_family = addresses
        .iter()
        .filter(move |address| Family::of(**address) == slot.family);
    of_family.map(move |address| SocketAddr::new(*address, slot.port.port.get()))
}

/// Who picks the Pod of a connection.
pub(super) enum Picker<'a> {
    /// kube-proxy, on a node with these primary addresses.
    ServiceProxy(&'a BTreeMap<Family, IpAddr>),
    /// Our own rules, from these.
    Rules(Answering<'a>),
}

/// What a Service asks of this node, by slot in order: its ports in those of its families in
/// which the node has an address.
pub(super) fn forwards(
    spec: &ServiceSpec,
    families: &BTreeSet<Family>,
    picker: &Picker<'_>,
) -> Vec<(Slot, Forward)> {
    let mut forwards = Vec::new();
    for family in families {
        let Some(cluster_ip) = spec.cluster_ips.get(*family) else {
            continue;
        };
        for (key, port) in &spec.ports {
            let target = match (picker, spec.entrance) {
                (Picker::Rules(answering), _) => {
                    let backends = answering.backends(spec, *key, port, *family);
                    Some(Target::Backends(backends))
                }
                (Picker::ServiceProxy(_), Entrance::ClusterIp) => {
                    Some(Target::ClusterIp(cluster_ip))
                }
                (Picker::ServiceProxy(primary), Entrance::NodePort) => {
                    let node_port = primary.get(family).zip(port.node_port);
                    node_port.map(|(address, port)| Target::NodePort {
                        address: *address,
                        port,
                        policy: spec.external_policy,
                    })
                }
            };
            let Some(target) = target else { continue };
            let port_name = ServicePortName {
                service: spec.key.clone(),
                port: port.name.clone(),
            };
            let forward = Forward {
                target,
                clients: clients(spec, *family),
                port_name,
            };
            let slot = Slot {
                family: *family,
                port: *key,
            };
            forwards.push((slot, forward));
        }
    }
    forwards
}

/// Ranges of one family only let no client of the other in.
fn clients(spec: &ServiceSpec, family: Family) -> Option<BTreeSet<IpNet>> {
    match &spec.clients {
        Clients::Any => None,
        Clients::Within(networks) => {
            let own = networks
                .iter()
                .filter(|net| Family::of(net.addr()) == family);
            Some(own.copied().collect())
        }
    }
}
