//! Where this node forwards UDP for Services.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use highwire_api::{Family, Protocol, ServiceKey, arbitration::Slot, service::TrafficPolicy};

use crate::{
    decide::{Decision, sockets},
    facts::endpoints::ServicePortName,
    table::{Elements, Set, sets::Key},
};

/// The Service port behind an address and port of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behind {
    /// The Service's port.
    pub port: ServicePortName,
    /// Where it enters kube-proxy: the ClusterIP or the NodePort.
    pub entrance: SocketAddr,
    /// With `Local`, clients from outside get this node's endpoints only.
    pub policy: TrafficPolicy,
}

/// The node's addresses and ports that the kernel forwards UDP at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontends {
    /// Each with the Service port behind it.
    pub served: BTreeMap<SocketAddr, Behind>,
    /// All addresses of this node, served or not; none if no UDP is served.
    pub own: BTreeSet<IpAddr>,
}

impl Frontends {
    /// Those of a decision.
    #[must_use]
    pub fn of(decision: &Decision) -> Self {
        let behind = decision.plan.udp().map(|(at, slot, forward)| {
            let behind = Behind {
                port: forward.port_name.clone(),
                entrance: forward.entrance(slot),
                policy: forward.policy(),
            };
            (at, behind)
        });
        let served: BTreeMap<_, _> = behind.collect();
        let own = decision.own_addresses.iter().filter(|_| !served.is_empty());
        Self {
            own: own.copied().collect(),
            served,
        }
    }

    /// The Services behind them.
    #[must_use]
    pub fn services(&self) -> BTreeSet<ServiceKey> {
        let ports = self.served.values().map(|behind| &behind.port);
        ports.map(|port| port.service.clone()).collect()
    }
}

/// Where a table of ours, perhaps an earlier agent's, forwards UDP.
#[must_use]
pub fn taken_by(table: &Elements) -> BTreeSet<SocketAddr> {
    let mut taken = BTreeSet::new();
    for (family, node, ports) in [
        (Family::V4, "node4", "ports4"),
        (Family::V6, "node6", "ports6"),
    ] {
        let keys = |name| {
            let elements = Set::named(name).map(|set| table.of_set(set));
            elements.into_iter().flatten().map(|(key, _)| key)
        };
        let addresses = keys(node).filter_map(|key| match key {
            Key::Address(address) => Some(address),
            _ => None,
        });
        let addresses: BTreeSet<IpAddr> = addresses.collect();
        for key in keys(ports) {
            if let Key::Port(port) = key
                && port.protocol == Protocol::Udp
            {
                taken.extend(sockets(Slot { family, port }, &addresses));
            }
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decide::{Forward, Plan, Target},
        table::DataPath,
    };
    use highwire_api::PortKey;

    #[test]
    fn a_table_shows_where_it_forwards_udp() {
        let forward = |family, protocol, port, ip: &str| {
            let port = PortKey::new(protocol, port).unwrap();
            let forward = Forward {
                target: Target::ClusterIp(ip.parse().unwrap()),
                clients: None,
                port_name: ServicePortName {
                    service: "ns/dns".parse().unwrap(),
                    port: "".into(),
                },
            };
            (Slot { family, port }, forward)
        };
        let plan = Plan {
            addresses: ["192.0.2.11", "203.0.113.5", "2001:db8:1::11"]
                .map(|ip| ip.parse().unwrap())
                .into(),
            forwards: [
                forward(Family::V4, Protocol::Udp, 53, "10.96.0.53"),
                forward(Family::V4, Protocol::Tcp, 80, "10.96.0.80"),
                forward(Family::V6, Protocol::Udp, 443, "fd00:96::3"),
            ]
            .into(),
        };
        let taken = taken_by(&Elements::of(&plan, DataPath::FirstPacket));
        assert_eq!(
            taken.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["192.0.2.11:53", "203.0.113.5:53", "[2001:db8:1::11]:443"]
        );
    }
}
