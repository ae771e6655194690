//! The sets and maps of the table, and what a plan puts into them.

use std::{collections::BTreeMap, fmt, net::IpAddr, num::NonZeroU16};

use highwire_api::{Family, Protocol, arbitration::Slot, service::TrafficPolicy};
use ipnet::IpNet;

use super::DataPath;
use crate::plan::{Plan, Target};

/// A set or map of our table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Container {
    /// `@node4`, `@node6`: the node's addresses at which Services answer.
    Node(Family),
    /// `@ports4`, `@ports6`: the served ports.
    Ports(Family),
    /// `@clusterip4`, `@clusterip6`: from served port to ClusterIP.
    ClusterIp(Family),
    /// `@viaport4`, `@viaport6`: the served ports that go the NodePort way. Only in
    /// the table of [`DataPath::FirstPacket`].
    ViaPort(Family),
    /// `@nodeaddress4`, `@nodeaddress6`: from such a port to the node's address
    /// where its NodePort is served.
    NodeAddress(Family),
    /// `@nodeport4`, `@nodeport6`: from such a port to its NodePort.
    NodePort(Family),
    /// `@localpolicy4`, `@localpolicy6`: the served ports with `externalTrafficPolicy:
    /// Local`, whose clients keep their addresses. Only in the table of
    /// [`DataPath::Dnat`].
    LocalPolicy(Family),
    /// `@guarded4`, `@guarded6`: the served ports that not every client may use.
    Guarded(Family),
    /// `@allowed4`, `@allowed6`: guarded port and network that may use it.
    Allowed(Family),
}

impl Container {
    /// Every container of any table, in the order they are declared in.
    pub const ALL: [Self; 18] = [
        Self::Node(Family::V4),
        Self::Node(Family::V6),
        Self::Ports(Family::V4),
        Self::Ports(Family::V6),
        Self::ClusterIp(Family::V4),
        Self::ClusterIp(Family::V6),
        Self::ViaPort(Family::V4),
        Self::ViaPort(Family::V6),
        Self::NodeAddress(Family::V4),
        Self::NodeAddress(Family::V6),
        Self::NodePort(Family::V4),
        Self::NodePort(Family::V6),
        Self::LocalPolicy(Family::V4),
        Self::LocalPolicy(Family::V6),
        Self::Guarded(Family::V4),
        Self::Guarded(Family::V6),
        Self::Allowed(Family::V4),
        Self::Allowed(Family::V6),
    ];

    /// The containers of one table, in the order they are declared in.
    pub fn of(path: DataPath) -> impl Iterator<Item = Self> {
        Self::ALL
            .into_iter()
            .filter(move |container| container.is_used(path))
    }

    /// Whether the rules of this table look into it.
    #[must_use]
    pub fn is_used(self, path: DataPath) -> bool {
        match self {
            Self::ViaPort(_) => path == DataPath::FirstPacket,
            Self::LocalPolicy(_) => path == DataPath::Dnat,
            _ => true,
        }
    }

    /// Its name in the table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Node(Family::V4) => "node4",
            Self::Node(Family::V6) => "node6",
            Self::Ports(Family::V4) => "ports4",
            Self::Ports(Family::V6) => "ports6",
            Self::ClusterIp(Family::V4) => "clusterip4",
            Self::ClusterIp(Family::V6) => "clusterip6",
            Self::ViaPort(Family::V4) => "viaport4",
            Self::ViaPort(Family::V6) => "viaport6",
            Self::NodeAddress(Family::V4) => "nodeaddress4",
            Self::NodeAddress(Family::V6) => "nodeaddress6",
            Self::NodePort(Family::V4) => "nodeport4",
            Self::NodePort(Family::V6) => "nodeport6",
            Self::LocalPolicy(Family::V4) => "localpolicy4",
            Self::LocalPolicy(Family::V6) => "localpolicy6",
            Self::Guarded(Family::V4) => "guarded4",
            Self::Guarded(Family::V6) => "guarded6",
            Self::Allowed(Family::V4) => "allowed4",
            Self::Allowed(Family::V6) => "allowed6",
        }
    }

    /// Whether it maps keys to values.
    #[must_use]
    pub fn is_map(self) -> bool {
        matches!(
            self,
            Self::ClusterIp(_) | Self::NodeAddress(_) | Self::NodePort(_)
        )
    }

    /// Whether its keys are ranges.
    #[must_use]
    pub fn is_interval(self) -> bool {
        matches!(self, Self::Allowed(_))
    }
}

/// The key of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// In [`Container::Node`].
    Node(IpAddr),
    /// In [`Container::Ports`].
    Port(Slot),
    /// In [`Container::ClusterIp`].
    ClusterIp(Slot),
    /// In [`Container::ViaPort`].
    ViaPort(Slot),
    /// In [`Container::NodeAddress`].
    NodeAddress(Slot),
    /// In [`Container::NodePort`].
    NodePort(Slot),
    /// In [`Container::LocalPolicy`].
    LocalPolicy(Slot),
    /// In [`Container::Guarded`].
    Guarded(Slot),
    /// In [`Container::Allowed`].
    Allowed(Slot, IpNet),
}

impl Element {
    /// The container this element belongs to.
    #[must_use]
    pub fn container(self) -> Container {
        match self {
            Self::Node(address) => Container::Node(Family::of(address)),
            Self::Port(slot) => Container::Ports(slot.family),
            Self::ClusterIp(slot) => Container::ClusterIp(slot.family),
            Self::ViaPort(slot) => Container::ViaPort(slot.family),
            Self::NodeAddress(slot) => Container::NodeAddress(slot.family),
            Self::NodePort(slot) => Container::NodePort(slot.family),
            Self::LocalPolicy(slot) => Container::LocalPolicy(slot.family),
            Self::Guarded(slot) => Container::Guarded(slot.family),
            Self::Allowed(slot, _) => Container::Allowed(slot.family),
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(address) => address.fmt(f),
            Self::Port(slot)
            | Self::ClusterIp(slot)
            | Self::ViaPort(slot)
            | Self::NodeAddress(slot)
            | Self::NodePort(slot)
            | Self::LocalPolicy(slot)
            | Self::Guarded(slot) => {
                write!(
                    f,
                    "{} . {}",
                    protocol_name(slot.port.protocol),
                    slot.port.port
                )
            }
            Self::Allowed(slot, network) => {
                let protocol = protocol_name(slot.port.protocol);
                write!(f, "{protocol} . {} . {network}", slot.port.port)
            }
        }
    }
}

/// The protocol as nft's `inet_proto` type writes it.
#[must_use]
pub fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// What a map's key leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// An address of the container's family.
    Address(IpAddr),
    /// A port.
    Port(NonZeroU16),
}

impl fmt::Display for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Port(port) => port.fmt(f),
        }
    }
}

/// All elements of the table, each with its value if it is in a map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elements(pub BTreeMap<Element, Option<Mapped>>);

impl Elements {
    /// What a plan puts into the table.
    #[must_use]
    pub fn of(plan: &Plan, path: DataPath) -> Self {
        let addresses = plan
            .addresses
            .iter()
            .map(|address| (Element::Node(*address), None));
        let forwards = plan.forwards.iter().flat_map(|(slot, target)| {
            let mut elements = vec![(Element::Port(*slot), None)];
            match target {
                Target::ClusterIp(ip) => {
                    elements.push((Element::ClusterIp(*slot), Some(Mapped::Address(*ip))));
                }
                Target::NodePort {
                    address,
                    port,
                    policy,
                } => {
                    elements.extend([
                        (Element::ViaPort(*slot), None),
                        (Element::NodeAddress(*slot), Some(Mapped::Address(*address))),
                        (Element::NodePort(*slot), Some(Mapped::Port(*port))),
                    ]);
                    if *policy == TrafficPolicy::Local {
                        elements.push((Element::LocalPolicy(*slot), None));
                    }
                }
            }
            elements
        });
        let guards = plan.guards.iter().flat_map(|(slot, networks)| {
            let allowed = networks
                .iter()
                .map(|network| Element::Allowed(*slot, *network));
            allowed
                .chain([Element::Guarded(*slot)])
                .map(|element| (element, None))
        });
        let elements = addresses.chain(forwards).chain(guards);
        let used = elements.filter(|(element, _)| element.container().is_used(path));
        Self(used.collect())
    }

    /// The elements of one container.
    pub fn of_container(
        &self,
        container: Container,
    ) -> impl Iterator<Item = (Element, Option<Mapped>)> {
        self.0
            .iter()
            .filter(move |(element, _)| element.container() == container)
            .map(|(element, value)| (*element, *value))
    }
}
