//! Where this node takes UDP for Services.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use highwire_api::{Family, Protocol, ServiceKey, arbitration::Slot, service::TrafficPolicy};

use crate::ruleset::{Element, Elements};

/// A port of a Service, by the name that EndpointSlices use too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePortName {
    /// The Service.
    pub service: ServiceKey,
    /// The port's name; empty if it has none.
    pub port: String,
}

/// What stands behind an address and port of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behind {
    /// The Service's port.
    pub port: ServicePortName,
    /// Where kube-proxy takes it: the ClusterIP or the NodePort.
    pub entrance: SocketAddr,
    /// With `Local`, clients from outside get this node's endpoints only.
    pub policy: TrafficPolicy,
}

/// The node's addresses and ports that the kernel forwards UDP at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontends {
    /// Each with what stands behind it.
    pub served: BTreeMap<SocketAddr, Behind>,
    /// All addresses of this node, served or not.
    pub own: BTreeSet<IpAddr>,
}

impl Frontends {
    /// Every one of `addresses` at each of `ports` of its family. Empty if there
    /// are no ports, whatever the node's `own` addresses.
    #[must_use]
    pub fn new(
        addresses: &BTreeSet<IpAddr>,
        ports: impl Iterator<Item = (Slot, Behind)>,
        own: BTreeSet<IpAddr>,
    ) -> Self {
        let served: BTreeMap<_, _> = ports
            .flat_map(|(slot, behind)| at(slot, addresses).map(move |at| (at, behind.clone())))
            .collect();
        let own = if served.is_empty() {
            BTreeSet::new()
        } else {
            own
        };
        Self { served, own }
    }

    /// The Services behind them.
    #[must_use]
    pub fn services(&self) -> BTreeSet<ServiceKey> {
        let ports = self.served.values().map(|behind| &behind.port);
        ports.map(|port| port.service.clone()).collect()
    }
}

/// Where a table of ours, perhaps an earlier agent's, takes UDP.
#[must_use]
pub fn taken_by(table: &Elements) -> BTreeSet<SocketAddr> {
    let keys = || table.0.keys();
    let addresses: BTreeSet<IpAddr> = keys()
        .filter_map(|element| match element {
            Element::Node(address) => Some(*address),
            _ => None,
        })
        .collect();
    let slots = keys().filter_map(|element| match element {
        Element::Port(slot) if slot.port.protocol == Protocol::Udp => Some(*slot),
        _ => None,
    });
    slots.flat_map(|slot| at(slot, &addresses)).collect()
}

/// Those of the addresses that are of the slot's family, with its port.
fn at(slot: Slot, addresses: &BTreeSet<IpAddr>) -> impl Iterator<Item = SocketAddr> {
    addresses
        .iter()
        .filter(move |address| Family::of(**address) == slot.family)
        .map(move |address| SocketAddr::new(*address, slot.port.port.get()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plan::{Plan, Target},
        ruleset::DataPath,
    };
    use highwire_api::PortKey;

    fn slot(family: Family, protocol: Protocol, port: i32) -> Slot {
        let port = PortKey::new(protocol, port).unwrap();
        Slot { family, port }
    }

    #[test]
    fn a_table_tells_where_it_takes_udp() {
        let target = |ip: &str| Target::ClusterIp(ip.parse().unwrap());
        let plan = Plan {
            addresses: ["192.0.2.11", "203.0.113.5", "2001:db8:1::11"]
                .map(|ip| ip.parse().unwrap())
                .into(),
            forwards: [
                (slot(Family::V4, Protocol::Udp, 53), target("10.96.0.53")),
                (slot(Family::V4, Protocol::Tcp, 80), target("10.96.0.80")),
                (slot(Family::V6, Protocol::Udp, 443), target("fd00:96::3")),
            ]
            .into(),
            ..Plan::default()
        };
        let taken = taken_by(&Elements::of(&plan, DataPath::FirstPacket));
        assert_eq!(
            taken.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["192.0.2.11:53", "203.0.113.5:53", "[2001:db8:1::11]:443"]
        );
    }
}
