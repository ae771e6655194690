//! The sets and maps of the table, a row each, and what a plan puts into them.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
};

use highwire_api::{Family, PortKey, Protocol, arbitration::Slot, service::TrafficPolicy};
use ipnet::IpNet;

use super::{
    DataPath,
    buckets::{Bucket, Width, spread},
};
use crate::decide::{Backends, Choice, Forward, Memory, Plan, Target};

/// A set or map of our table. It is there once per address family: `node4` and `node6`.
#[derive(Debug)]
pub struct SetDef {
    /// Its name, without the digit of the family.
    pub name: &'static str,
    /// The tables that have it.
    pub paths: &'static [DataPath],
    /// Its elements.
    holds: Holds,
}

/// Which elements a set or map holds, of a family. A port is one that is served.
#[derive(Clone, Copy, Debug)]
enum Holds {
    /// The addresses at which Services answer.
    Addresses,
    /// The ports that the function picks.
    Ports(fn(&Forward) -> bool),
    /// Ports and an address for each.
    PortToAddress(fn(&Forward) -> Option<IpAddr>),
    /// Ports and another port for each.
    PortToPort(fn(&Forward) -> Option<NonZeroU16>),
    /// The ports that not every client may use, with each network that may use it.
    PortAndNetwork,
    /// Ports with each bucket, and a target for each.
    BucketToTarget(fn(&Forward) -> Option<&Backends>),
    /// The addresses of targets that see the client's, as source and destination.
    SeesClients,
    /// The ports whose clients keep their targets for so many seconds; all, for `None`.
    Sticky(Option<u64>),
    /// Those ports with each of their targets.
    PortAndTarget,
    /// Those ports with the hash of each client, and its target's address. The rules write it.
    ClientToAddress,
    /// The same, with the target's port.
    ClientToPort,
}

/// How many hashes of clients' addresses there are. Clients of one hash share
/// their target.
pub(super) const CLIENTS: u32 = 1 << 24;

/// In every table.
const ALL: &[DataPath] = &DataPath::ALL;
/// Beside a kube-proxy.
const BESIDE: &[DataPath] = &DataPath::BESIDE_PROXY;
/// Where our own rules pick targets.
const DIRECT: &[DataPath] = &[DataPath::Direct];
/// Where we masquerade, and kube-proxy does not.
const BY_NAT: &[DataPath] = &[DataPath::Dnat, DataPath::Direct];

/// All of them, in the order in which they are declared.
pub const SETS: [SetDef; 24] = [
    // The node's addresses at which Services answer.
    set("node", ALL, Holds::Addresses),
    // The served ports.
    set("ports", ALL, Holds::Ports(|_| true)),
    // To the ClusterIP.
    set("clusterip", BESIDE, Holds::PortToAddress(cluster_ip)),
    // Those that go to a NodePort.
    set(
        "viaport",
        &[DataPath::FirstPacket],
        Holds::Ports(|forward| node_port(forward).is_some()),
    ),
    // To the node's address where that NodePort is served …
    set("nodeaddress", BESIDE, Holds::PortToAddress(node_address)),
    // … and to the NodePort.
    set("nodeport", BESIDE, Holds::PortToPort(node_port)),
    // To one of their targets, by bucket.
    set("target", DIRECT, Holds::BucketToTarget(backends)),
    // Those of many targets.
    set(
        "wide",
        DIRECT,
        Holds::Ports(|forward| backends(forward).is_some_and(is_wide)),
    ),
    // Those whose clients keep their target.
    set("sticky", DIRECT, Holds::Sticky(None)),
    // … by the time for which it is remembered …
    set("keep10s", DIRECT, Holds::Sticky(Some(10))),
    set("keep60s", DIRECT, Holds::Sticky(Some(60))),
    set("keep300s", DIRECT, Holds::Sticky(Some(300))),
    set("keep600s", DIRECT, Holds::Sticky(Some(600))),
    set("keep1800s", DIRECT, Holds::Sticky(Some(1800))),
    set("keep3600s", DIRECT, Holds::Sticky(Some(3600))),
    set("keep10800s", DIRECT, Holds::Sticky(Some(10_800))),
    set("keep86400s", DIRECT, Holds::Sticky(Some(86_400))),
    // … with the targets that they may keep …
    set("alive", DIRECT, Holds::PortAndTarget),
    // … and those that they have. One map with both would have a key and a value too long
    // for nft 1.0.6.
    set("clientaddress", DIRECT, Holds::ClientToAddress),
    set("clientport", DIRECT, Holds::ClientToPort),
    // Those whose clients keep their addresses, as with `externalTrafficPolicy: Local`.
    set(
        "localpolicy",
        BY_NAT,
        Holds::Ports(|forward| forward.policy() == TrafficPolicy::Local),
    ),
    // The targets that see their clients' addresses, each beside itself.
    set("hairpin", DIRECT, Holds::SeesClients),
    // Those that not every client may use …
    set(
        "guarded",
        ALL,
        Holds::Ports(|forward| forward.clients.is_some()),
    ),
    // … and who may.
    set("allowed", ALL, Holds::PortAndNetwork),
];

const fn set(name: &'static str, paths: &'static [DataPath], holds: Holds) -> SetDef {
    SetDef { name, paths, holds }
}

fn cluster_ip(forward: &Forward) -> Option<IpAddr> {
    match forward.target {
        Target::ClusterIp(ip) => Some(ip),
        Target::NodePort { .. } | Target::Backends(_) => None,
    }
}

fn node_address(forward: &Forward) -> Option<IpAddr> {
    match forward.target {
        Target::ClusterIp(_) | Target::Backends(_) => None,
        Target::NodePort { address, .. } => Some(address),
    }
}

fn node_port(forward: &Forward) -> Option<NonZeroU16> {
    match forward.target {
        Target::ClusterIp(_) | Target::Backends(_) => None,
        Target::NodePort { port, .. } => Some(port),
    }
}

fn backends(forward: &Forward) -> Option<&Backends> {
    match &forward.target {
        Target::ClusterIp(_) | Target::NodePort { .. } => None,
        Target::Backends(backends) => Some(backends),
    }
}

fn memory(backends: &Backends) -> Option<Memory> {
    match backends.choice {
        Choice::Random => None,
        Choice::ByClient(memory) => Some(memory),
    }
}

fn is_wide(backends: &Backends) -> bool {
    Width::of(backends.targets.len()) == Width::Wide
}

/// One of [`SETS`], of one family. They are ordered as they are declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Set {
    /// The place in [`SETS`].
    row: usize,
    family: Family,
}

impl Set {
    /// Those of one table.
    pub fn of(path: DataPath) -> impl Iterator<Item = Self> {
        Self::all().filter(move |set| set.def().paths.contains(&path))
    }

    /// The one with this name, such as `node4`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|set| set.name() == name)
    }

    fn all() -> impl Iterator<Item = Self> {
        let families = |row| Family::ALL.map(|family| Self { row, family });
        (0..SETS.len()).flat_map(families)
    }

    fn def(self) -> &'static SetDef {
        &SETS[self.row]
    }

    /// Its name in the table.
    #[must_use]
    pub fn name(self) -> String {
        let digit = match self.family {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        format!("{}{digit}", self.def().name)
    }

    /// nft's word for what it is.
    #[must_use]
    pub fn kind(self) -> &'static str {
        if self.is_map() { "map" } else { "set" }
    }

    /// Whether its elements have values.
    #[must_use]
    pub fn is_map(self) -> bool {
        matches!(
            self.def().holds,
            Holds::PortToAddress(_)
                | Holds::PortToPort(_)
                | Holds::BucketToTarget(_)
                | Holds::ClientToAddress
                | Holds::ClientToPort
        )
    }

    /// Whether the rules write its elements, so that they are no part of a plan.
    #[must_use]
    pub fn is_memory(self) -> bool {
        matches!(
            self.def().holds,
            Holds::ClientToAddress | Holds::ClientToPort
        )
    }

    /// Whether its keys are ranges.
    #[must_use]
    pub fn is_interval(self) -> bool {
        matches!(self.def().holds, Holds::PortAndNetwork)
    }

    /// What the keys and values are, by where they stand in a packet. Never by `type`: a
    /// set or map that nft 1.1.2 or later declares with a plain one makes nft 1.1.1 and
    /// older, kube-proxy's maybe, crash when they list any table (kubernetes#136786).
    #[must_use]
    pub fn typeof_text(self) -> String {
        let ip = match self.family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        let port = "meta l4proto . th dport";
        match self.def().holds {
            Holds::Addresses => format!("{ip} daddr"),
            Holds::Ports(_) | Holds::Sticky(_) => port.to_owned(),
            Holds::PortToAddress(_) => format!("{port} : {ip} daddr"),
            Holds::PortToPort(_) => format!("{port} : th dport"),
            Holds::PortAndNetwork => format!("{port} . {ip} saddr"),
            Holds::BucketToTarget(_) => {
                let buckets = Width::Wide.buckets();
                // Of any protocol, by the chain `unused`. nft cannot load rules with `th` here
                // into a table that is there: "conflicting protocols specified: inet-service
                // vs. th".
                format!("{port} . numgen random mod {buckets} : {ip} daddr . tcp dport")
            }
            Holds::SeesClients => format!("{ip} saddr . {ip} daddr"),
            Holds::PortAndTarget => format!("{port} . {ip} daddr . th dport"),
            Holds::ClientToAddress => format!("{port} . numgen random mod {CLIENTS} : {ip} daddr"),
            Holds::ClientToPort => format!("{port} . numgen random mod {CLIENTS} : th dport"),
        }
    }

    /// Those of a plan; where each belongs to one forward, only those of these `forwards`.
    fn elements(self, plan: &Plan, forwards: &[(&Slot, &Forward)]) -> Vec<(Key, Option<Value>)> {
        let of_family = forwards.iter();
        let forwards = of_family.filter(|(slot, _)| slot.family == self.family);
        let forwards = forwards.map(|(slot, forward)| (slot.port, *forward));
        match self.def().holds {
            Holds::Addresses => {
                let addresses = plan.addresses.iter();
                let own = addresses.filter(|ip| Family::of(**ip) == self.family);
                own.map(|ip| (Key::Address(*ip), None)).collect()
            }
            Holds::Ports(picks) => forwards
                .filter(|(_, forward)| picks(forward))
                .map(|(port, _)| (Key::Port(port), None))
                .collect(),
            Holds::PortToAddress(address) => forwards
                .filter_map(|(port, forward)| Some((port, Value::Address(address(forward)?))))
                .map(|(port, value)| (Key::Port(port), Some(value)))
                .collect(),
            Holds::PortToPort(to) => forwards
                .filter_map(|(port, forward)| Some((port, Value::Port(to(forward)?))))
                .map(|(port, value)| (Key::Port(port), Some(value)))
                .collect(),
            Holds::PortAndNetwork => forwards
                .flat_map(|(port, forward)| {
                    let networks = forward.clients.iter().flatten();
                    networks.map(move |network| (Key::PortAndNetwork(port, *network), None))
                })
                .collect(),
            Holds::Sticky(seconds) => forwards
                .filter_map(|(port, forward)| Some((port, memory(backends(forward)?)?)))
                .filter(|(_, memory)| seconds.is_none_or(|it| it == memory.seconds()))
                .map(|(port, _)| (Key::Port(port), None))
                .collect(),
            Holds::PortAndTarget => forwards
                .filter_map(|(port, forward)| Some((port, backends(forward)?)))
                .filter(|(_, backends)| memory(backends).is_some())
                .flat_map(|(port, backends)| {
                    let targets = backends.targets.iter();
                    targets.map(move |target| (Key::PortAndTarget(port, *target), None))
                })
                .collect(),
            Holds::ClientToAddress | Holds::ClientToPort => Vec::new(),
            // Several forwards may have the same.
            Holds::SeesClients => plan
                .forwards
                .iter()
                .filter(|(slot, _)| slot.family == self.family)
                .filter_map(|(_, forward)| backends(forward).filter(|it| it.keeps_client))
                .flat_map(|backends| &backends.targets)
                .map(|target| (Key::ToItself(target.ip()), None))
                .collect(),
            Holds::BucketToTarget(of) => forwards
                .filter_map(|(port, forward)| Some((port, spread(&of(forward)?.targets))))
                .flat_map(|(port, buckets)| {
                    buckets.into_iter().map(move |(bucket, target)| {
                        let value = Value::AddressAndPort(target.ip(), target.port());
                        (Key::PortAndBucket(port, bucket), Some(value))
                    })
                })
                .collect(),
        }
    }
}

/// An element of a set or map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// Where it is.
    pub set: Set,
    /// Its key there.
    pub key: Key,
}

/// The key of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// An address of the set's family.
    Address(IpAddr),
    /// A served port.
    Port(PortKey),
    /// A served port and a network of the set's family.
    PortAndNetwork(PortKey, IpNet),
    /// A served port and one of its buckets.
    PortAndBucket(PortKey, Bucket),
    /// A served port and one of its targets.
    PortAndTarget(PortKey, SocketAddr),
    /// From an address of the set's family to the same.
    ToItself(IpAddr),
}

impl Key {
    /// The served port that it is about, if it is about one.
    #[must_use]
    pub fn port(&self) -> Option<PortKey> {
        match *self {
            Self::Address(_) | Self::ToItself(_) => None,
            Self::Port(port)
            | Self::PortAndNetwork(port, _)
            | Self::PortAndBucket(port, _)
            | Self::PortAndTarget(port, _) => Some(port),
        }
    }
}

/// As nft writes it.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = |port: &PortKey| format!("{} . {}", protocol_name(port.protocol), port.port);
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Port(key) => f.write_str(&port(key)),
            Self::PortAndNetwork(key, network) => write!(f, "{} . {network}", port(key)),
            Self::PortAndBucket(key, bucket) => write!(f, "{} . {bucket}", port(key)),
            Self::PortAndTarget(key, target) => {
                write!(f, "{} . {} . {}", port(key), target.ip(), target.port())
            }
            Self::ToItself(address) => write!(f, "{address} . {address}"),
        }
    }
}

/// The protocol as nft's `inet_proto` type writes it.
#[must_use]
pub(super) fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// The value of a map's element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// An address of the map's family.
    Address(IpAddr),
    /// A port.
    Port(NonZeroU16),
    /// An address of the map's family, and a port.
    AddressAndPort(IpAddr, u16),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Port(port) => port.fmt(f),
            Self::AddressAndPort(address, port) => write!(f, "{address} . {port}"),
        }
    }
}

/// All elements of the table, each with its value if it is in a map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elements(pub BTreeMap<Element, Option<Value>>);

impl Elements {
    /// What a plan puts into the table.
    #[must_use]
    pub fn of(plan: &Plan, path: DataPath) -> Self {
        let all: Vec<_> = plan.forwards.iter().collect();
        Self::of_some(plan, &all, path)
    }

    /// The same without the elements that belong to none but other forwards of the plan.
    pub(super) fn of_some(plan: &Plan, forwards: &[(&Slot, &Forward)], path: DataPath) -> Self {
        let sets = Set::of(path).flat_map(|set| {
            let elements = set.elements(plan, forwards).into_iter();
            elements.map(move |(key, value)| (Element { set, key }, value))
        });
        Self(sets.collect())
    }

    /// The elements of one set.
    pub fn of_set(&self, set: Set) -> impl Iterator<Item = (Key, Option<Value>)> {
        let elements = self.0.iter().filter(move |(element, _)| element.set == set);
        elements.map(|(element, value)| (element.key, *value))
    }
}
