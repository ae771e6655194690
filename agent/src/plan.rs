//! What the kernel of this node should do: the outcome of all decisions.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU16,
};

use highwire_api::{arbitration::Slot, service::TrafficPolicy};
use ipnet::IpNet;

/// Where the first packet of a connection is sent, so that kube-proxy's own
/// rules take it from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

/// Everything about the node's table that is not the same on every node at all
/// times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The node's own addresses at which Services answer.
    pub addresses: BTreeSet<IpAddr>,
    /// The served ports and where each goes. The target's family is the slot's.
    pub forwards: BTreeMap<Slot, Target>,
    /// The served ports that only clients from these networks may use. An empty
    /// set lets nobody in. All are of the slot's family.
    pub guards: BTreeMap<Slot, BTreeSet<IpNet>>,
}
