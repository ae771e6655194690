//! Plans that the golden and the kernel tests share.
//!
//! Addresses: nodes 192.0.2.0/24 and 2001:db8:1::/64, ClusterIPs 10.96.0.0/16
//! and fd00:96::/108. A box outside the cluster is one of the nodes' network.

use std::{path::PathBuf, time::Duration};

use highwire_agent::{
    decide::{Backends, Choice, Forward, Memory, Plan, Target},
    facts::endpoints::ServicePortName,
    table::DataPath,
};
use highwire_api::{Family, PortKey, Protocol, arbitration::Slot, service::TrafficPolicy};

/// Each golden file's name, and the table it shows.
pub(crate) fn golden() -> [(&'static str, DataPath, Plan); 4] {
    let forwards = [
        (Family::V4, Protocol::Tcp, 80, "10.96.0.10"),
        (Family::V6, Protocol::Tcp, 80, "fd00:96::10"),
        (Family::V4, Protocol::Udp, 53, "10.96.0.53"),
        (Family::V4, Protocol::Tcp, 53, "10.96.0.53"),
        (Family::V4, Protocol::Sctp, 3868, "10.96.0.77"),
    ];
    let forwards = forwards
        .into_iter()
        .map(|(family, protocol, port, ip)| forward(family, protocol, port, ip))
        .chain([
            via_node_port(Family::V4, Protocol::Tcp, 8443, TrafficPolicy::Local),
            via_node_port(Family::V4, Protocol::Udp, 443, TrafficPolicy::Cluster),
        ]);
    let mut services = Plan {
        addresses: ["192.0.2.11", "203.0.113.11", "2001:db8:1::11"]
            .map(|ip| ip.parse().unwrap())
            .into(),
        forwards: forwards.collect(),
    };
    let two = ["10.0.0.0/8", "198.51.100.10/32"];
    guard(&mut services, Family::V4, Protocol::Tcp, 80, &two);
    guard(
        &mut services,
        Family::V6,
        Protocol::Tcp,
        80,
        &["2001:db8:2::/64"],
    );
    guard(&mut services, Family::V4, Protocol::Udp, 53, &[]);
    [
        ("empty", DataPath::FirstPacket, Plan::default()),
        ("services", DataPath::FirstPacket, services.clone()),
        ("ipvs", DataPath::Dnat, services),
        ("direct", DataPath::Direct, of_a_box()),
    ]
}

/// What a box outside the cluster forwards.
fn of_a_box() -> Plan {
    let random = |family, protocol, port, targets: &[&str]| {
        to_backends(family, protocol, port, targets, Choice::Random)
    };
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    let mut web = random(Family::V4, tcp, 443, &["192.0.2.21:30443"]);
    keep_client(&mut web.1);
    let mut plan = Plan {
        addresses: ["192.0.2.11", "2001:db8:1::11"]
            .map(|ip| ip.parse().unwrap())
            .into(),
        forwards: [
            random(
                Family::V4,
                tcp,
                80,
                &["192.0.2.21:30080", "192.0.2.22:30080", "192.0.2.23:30080"],
            ),
            web,
            to_backends(
                Family::V4,
                udp,
                53,
                &["192.0.2.21:30053", "192.0.2.22:30053"],
                by_client(10_800),
            ),
            to_backends(
                Family::V6,
                tcp,
                80,
                &["[2001:db8:1::21]:30080", "[2001:db8:1::22]:30080"],
                by_client(10_800),
            ),
        ]
        .into(),
    };
    guard(&mut plan, Family::V4, tcp, 443, &["198.51.100.0/24"]);
    plan
}

/// A port that is forwarded to these targets, which see the address of this node.
pub(crate) fn to_backends(
    family: Family,
    protocol: Protocol,
    port: i32,
    targets: &[&str],
    choice: Choice,
) -> (Slot, Forward) {
    let (slot, mut forward) = forward(family, protocol, port, "10.96.0.1");
    forward.target = Target::Backends(Backends {
        targets: targets
            .iter()
            .map(|target| target.parse().unwrap())
            .collect(),
        draining: [].into(),
        choice,
        keeps_client: false,
    });
    (slot, forward)
}

/// The targets see the client's own address.
pub(crate) fn keep_client(forward: &mut Forward) {
    if let Target::Backends(backends) = &mut forward.target {
        backends.keeps_client = true;
    }
}

/// One forwarded port.
pub(crate) fn forward(family: Family, protocol: Protocol, port: i32, ip: &str) -> (Slot, Forward) {
    let port = PortKey::new(protocol, port).unwrap();
    let forward = Forward {
        target: Target::ClusterIp(ip.parse().unwrap()),
        clients: None,
        port_name: ServicePortName {
            service: "ns/web".parse().unwrap(),
            port: "".into(),
        },
    };
    (Slot { family, port }, forward)
}

/// A port that is forwarded to the NodePort.
fn via_node_port(
    family: Family,
    protocol: Protocol,
    port: i32,
    policy: TrafficPolicy,
) -> (Slot, Forward) {
    let (slot, mut forward) = forward(family, protocol, port, "10.96.0.1");
    forward.target = Target::NodePort {
        address: "192.0.2.11".parse().unwrap(),
        port: 30443.try_into().unwrap(),
        policy,
    };
    (slot, forward)
}

/// Clients keep their targets so many seconds, or a little longer.
pub(crate) fn by_client(seconds: u64) -> Choice {
    Choice::ByClient(Memory::at_least(Duration::from_secs(seconds)))
}

/// Only these networks may use the port.
pub(crate) fn guard(
    plan: &mut Plan,
    family: Family,
    protocol: Protocol,
    port: i32,
    networks: &[&str],
) {
    let port = PortKey::new(protocol, port).unwrap();
    let forward = plan.forwards.get_mut(&Slot { family, port }).unwrap();
    let networks = networks.iter().map(|network| network.parse().unwrap());
    forward.clients = Some(networks.collect());
}

/// Where a golden text is kept.
pub(crate) fn golden_file(name: &str) -> PathBuf {
    PathBuf::from(format!("tests/golden/{name}.nft"))
}
