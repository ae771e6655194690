//! Plans that the golden and the kernel tests share.
//!
//! Addresses: nodes 192.0.2.0/24 and 2001:db8:1::/64, ClusterIPs 10.96.0.0/16
//! and fd00:96::/108.

use std::{collections::BTreeSet, path::PathBuf};

use highwire_agent::{
    plan::{Plan, Target},
    ruleset::DataPath,
};
use highwire_api::{Family, PortKey, Protocol, arbitration::Slot, service::TrafficPolicy};
use ipnet::IpNet;

/// Each golden file's name, and the table it shows.
pub(crate) fn golden() -> [(&'static str, DataPath, Plan); 3] {
    let forwards = [
        (Family::V4, Protocol::Tcp, 80, "10.96.0.10"),
        (Family::V6, Protocol::Tcp, 80, "fd00:96::10"),
        (Family::V4, Protocol::Udp, 53, "10.96.0.53"),
        (Family::V4, Protocol::Tcp, 53, "10.96.0.53"),
        (Family::V4, Protocol::Sctp, 3868, "10.96.0.77"),
    ];
    let services = Plan {
        addresses: ["192.0.2.11", "203.0.113.11", "2001:db8:1::11"]
            .map(|ip| ip.parse().unwrap())
            .into(),
        forwards: forwards
            .into_iter()
            .map(|(family, protocol, port, ip)| forward(family, protocol, port, ip))
            .chain([
                via_node_port(Family::V4, Protocol::Tcp, 8443, TrafficPolicy::Local),
                via_node_port(Family::V4, Protocol::Udp, 443, TrafficPolicy::Cluster),
            ])
            .collect(),
        guards: [
            guard(
                Family::V4,
                Protocol::Tcp,
                80,
                &["10.0.0.0/8", "198.51.100.10/32"],
            ),
            guard(Family::V6, Protocol::Tcp, 80, &["2001:db8:2::/64"]),
            guard(Family::V4, Protocol::Udp, 53, &[]),
        ]
        .into(),
    };
    [
        ("empty", DataPath::FirstPacket, Plan::default()),
        ("services", DataPath::FirstPacket, services.clone()),
        ("ipvs", DataPath::Dnat, services),
    ]
}

/// One forwarded port.
pub(crate) fn forward(family: Family, protocol: Protocol, port: i32, ip: &str) -> (Slot, Target) {
    let port = PortKey::new(protocol, port).unwrap();
    (
        Slot { family, port },
        Target::ClusterIp(ip.parse().unwrap()),
    )
}

/// A port that goes the NodePort way.
fn via_node_port(
    family: Family,
    protocol: Protocol,
    port: i32,
    policy: TrafficPolicy,
) -> (Slot, Target) {
    let (slot, _) = forward(family, protocol, port, "10.96.0.1");
    let node_port = 30443.try_into().unwrap();
    (
        slot,
        Target::NodePort {
            address: "192.0.2.11".parse().unwrap(),
            port: node_port,
            policy,
        },
    )
}

/// A port that only these networks may use.
pub(crate) fn guard(
    family: Family,
    protocol: Protocol,
    port: i32,
    networks: &[&str],
) -> (Slot, BTreeSet<IpNet>) {
    let (slot, _) = forward(family, protocol, port, "10.96.0.1");
    (
        slot,
        networks
            .iter()
            .map(|network| network.parse().unwrap())
            .collect(),
    )
}

/// Where a golden text is kept.
pub(crate) fn golden_file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.nft"))
}
