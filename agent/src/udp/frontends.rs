//! Where this node forwards UDP for Services.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use highwire_api::{Family, Protocol, ServiceKey, arbitration::Slot, service::TrafficPolicy};

use super::stale::Frontend;
use crate::{
    decide::{Plan, Target, sockets},
    facts::endpoints::{Endpoints, ServicePortName},
    table::{Elements, Set, sets::Key},
};

/// What is behind an address and port of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Behind {
    /// A Service port, by way of kube-proxy.
    ServiceProxy {
        /// The Service's port.
        port: ServicePortName,
        /// Where it enters kube-proxy: the ClusterIP or the NodePort.
        entrance: SocketAddr,
        /// With `Local`, clients from outside get this node's endpoints only.
        policy: TrafficPolicy,
    },
    /// By our own rules.
    Targets {
        /// Who gets new clients.
        targets: BTreeSet<SocketAddr>,
        /// Who gets none, but may keep those it has.
        draining: BTreeSet<SocketAddr>,
    },
}

impl Behind {
    /// What that makes of flows, where `known` has the endpoints of each Service port that has
    /// any. `None` until they are known, if they count.
    #[must_use]
    pub fn frontend(
        &self,
        known: Option<&BTreeMap<ServicePortName, Endpoints>>,
    ) -> Option<Frontend> {
        match self {
            Self::Targets { targets, draining } => Some(Frontend::Served {
                entrance: None,
                endpoints: targets.union(draining).copied().collect(),
                reachable: targets.clone(),
            }),
            Self::ServiceProxy {
                port,
                entrance,
                policy,
            } => {
                let Endpoints { all, here } = known?.get(port).cloned().unwrap_or_default();
                Some(Frontend::Served {
                    entrance: Some(*entrance),
                    reachable: match policy {
                        TrafficPolicy::Cluster => all.clone(),
                        TrafficPolicy::Local => here,
                    },
                    endpoints: all,
                })
            }
        }
    }
}

/// The node's addresses and ports that the kernel forwards UDP at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontends {
    /// Each with what is behind it.
    pub served: BTreeMap<SocketAddr, Behind>,
    /// All addresses of this node, served or not; none if no UDP is served.
    pub own: BTreeSet<IpAddr>,
}

impl Frontends {
    /// Those of a plan, on a node with these addresses.
    #[must_use]
    pub fn of(plan: &Plan, own: &BTreeSet<IpAddr>) -> Self {
        let behind = plan.udp().filter_map(|(at, slot, forward)| {
            let behind = match &forward.target {
                Target::Backends(backends) => Behind::Targets {
                    targets: backends.targets.clone(),
                    draining: backends.draining.clone(),
                },
                Target::ClusterIp(_) | Target::NodePort { .. } => Behind::ServiceProxy {
                    port: forward.port_name.clone(),
                    entrance: forward.entrance(slot)?,
                    policy: forward.policy(),
                },
            };
            Some((at, behind))
        });
        let served: BTreeMap<_, _> = behind.collect();
        let own = own.iter().filter(|_| !served.is_empty());
        Self {
            own: own.copied().collect(),
            served,
        }
    }

    /// The Services behind them whose endpoints count.
    #[must_use]
    pub fn services(&self) -> BTreeSet<ServiceKey> {
        let services = self.served.values().filter_map(|behind| match behind {
            Behind::ServiceProxy { port, .. } => Some(port.service.clone()),
            Behind::Targets { .. } => None,
        });
        services.collect()
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
        decide::{Backends, Choice, Forward, Plan},
        table::DataPath,
        udp::{
            flow::{Flow, Tuple},
            stale::View,
        },
    };
    use highwire_api::PortKey;

    #[test]
    fn a_flow_to_a_target_that_is_gone_is_stale_without_any_endpoints() {
        let at = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let (box_, client) = (at("192.0.2.11:53"), at("198.51.100.10:4711"));
        let forward = Forward {
            target: Target::Backends(Backends {
                targets: [at("192.0.2.21:30053"), at("192.0.2.22:30053")].into(),
                draining: ["192.0.2.24:30053".parse().unwrap()].into(),
                choice: Choice::Random,
                keeps_client: false,
            }),
            clients: None,
            port_name: ServicePortName {
                service: "ns/dns".parse().unwrap(),
                port: "".into(),
            },
        };
        let slot = Slot {
            family: Family::V4,
            port: PortKey::new(Protocol::Udp, 53).unwrap(),
        };
        let plan = Plan {
            addresses: [box_.ip()].into(),
            forwards: [(slot, forward)].into(),
        };
        let frontends = Frontends::of(&plan, &plan.addresses);
        assert!(frontends.services().is_empty());
        let Frontends { served, own } = frontends;
        let frontends = served
            .iter()
            .map(|(at, behind)| (*at, behind.frontend(None).unwrap()));
        let view = View {
            frontends: frontends.collect(),
            own,
        };
        for (answers, stale, why) in [
            ("192.0.2.21:30053", false, "a target"),
            ("192.0.2.23:30053", true, "a target that is gone"),
            ("192.0.2.24:30053", false, "one that drains"),
            ("192.0.2.21:30054", true, "another port of a target"),
            ("192.0.2.11:53", true, "refused before a target was there"),
        ] {
            let flow = Flow {
                original: Tuple {
                    source: client,
                    destination: box_,
                },
                reply: Tuple {
                    source: at(answers),
                    destination: client,
                },
                id: 7,
            };
            assert_eq!(view.is_stale(&flow), stale, "{why}");
        }
    }

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
