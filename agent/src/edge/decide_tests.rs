use highwire_api::{
    Protocol,
    external::{BoxPort, load_balancer::Target as NodePort},
};

use super::*;

/// A box with an IPv4 and an IPv6 address that forwards both, and what Services ask of it.
struct Bed {
    services: BTreeMap<ServiceKey, Arc<LoadBalancerSpec>>,
    addresses: Vec<HostAddress>,
    listeners: Listeners,
    sysctls: Sysctls,
    policy: BoxPolicy,
}

fn bed() -> Bed {
    let addresses = ["203.0.113.9", "2001:db8:3::9"].map(|address| HostAddress {
        address: address.parse().unwrap(),
        interface: "eth0".into(),
        devices: [2].into(),
        global: true,
        on_default_route: true,
    });
    Bed {
        services: BTreeMap::new(),
        addresses: addresses.into(),
        listeners: Listeners::default(),
        sysctls: Sysctls {
            forwarding: Family::ALL.into(),
            ..Sysctls::default()
        },
        policy: BoxPolicy::default(),
    }
}

fn key(name: &str) -> ServiceKey {
    format!("shop/{name}").parse().unwrap()
}

/// Port 80 of the Service at `port` of the box, to these nodes.
fn service(port: u16, targets: &[&str]) -> LoadBalancerSpec {
    let targets = targets.iter().map(|address| NodePort {
        address: address.parse().unwrap(),
        port: 30080,
    });
    LoadBalancerSpec {
        external_load_balancer: "front".into(),
        ports: vec![BoxPort {
            port: 80,
            protocol: Protocol::Tcp,
            box_port: port,
            targets: targets.collect(),
        }],
        ..LoadBalancerSpec::default()
    }
}

impl Bed {
    fn with(mut self, name: &str, spec: LoadBalancerSpec) -> Self {
        self.services.insert(key(name), Arc::new(spec));
        self
    }

    fn decide(&self) -> BoxDecision {
        decide(&BoxFacts {
            services: &self.services,
            advertised: &BTreeSet::new(),
            addresses: &self.addresses,
            listeners: &self.listeners,
            sysctls: &self.sysctls,
            policy: &self.policy,
        })
    }

    fn refused(&self, name: &str) -> (Trouble, String) {
        match &self.decide().verdicts[&key(name)] {
            Verdict::Refused(trouble, message) => (*trouble, message.clone()),
            Verdict::Served => panic!("{name} is served"),
        }
    }
}

fn listener(port: u16) -> Listener {
    Listener {
        protocol: Protocol::Tcp,
        bound: SocketAddr::new("0.0.0.0".parse().unwrap(), port),
        v6_only: false,
        device: None,
        uid: 33,
        inode: 1,
    }
}

#[test]
fn each_family_gets_the_targets_of_its_own() {
    let bed = bed().with(
        "web",
        service(8080, &["192.0.2.11", "192.0.2.12", "2001:db8:1::11"]),
    );
    let decision = bed.decide();
    assert_eq!(decision.verdicts[&key("web")], Verdict::Served);
    let targets = decision.plan.forwards.iter().map(|(slot, forward)| {
        let Target::Backends(backends) = &forward.target else {
            panic!("{forward:?}");
        };
        assert_eq!(slot.port.port.get(), 8080);
        (slot.family, backends.targets.len())
    });
    assert_eq!(
        targets.collect::<Vec<_>>(),
        [(Family::V4, 2), (Family::V6, 1)]
    );
}

#[test]
fn what_the_box_has_itself_is_refused_to_that_service_only() {
    let mut bed = bed().with("web", service(8080, &["192.0.2.11"]));
    bed = bed.with("other", service(8081, &["192.0.2.11"]));
    bed.listeners.open.push(listener(8080));
    let (trouble, message) = bed.refused("web");
    assert_eq!(trouble, Trouble::PortConflict);
    assert_eq!(
        message,
        "8080/TCP is held by socket 0.0.0.0:8080 uid 33 on the box"
    );
    assert_eq!(bed.decide().verdicts[&key("other")], Verdict::Served);
    bed.policy.reserved_ports = "8081".parse().unwrap();
    let (_, message) = bed.refused("other");
    assert!(message.contains("--reserved-ports"), "{message}");
    assert!(bed.decide().plan.forwards.is_empty());
}

#[test]
fn a_box_that_cannot_says_what_to_do() {
    let mut bed = bed().with("web", service(80, &["192.0.2.11"]));
    bed = bed.with("none", service(81, &[]));
    assert_eq!(bed.refused("none").0, Trouble::NoTargets);
    bed.sysctls.forwarding.clear();
    let (trouble, message) = bed.refused("web");
    assert_eq!(trouble, Trouble::EdgeFailing);
    assert!(
        message.contains("sysctl -w net.ipv4.ip_forward=1"),
        "{message}"
    );
    bed.addresses.clear();
    let (_, message) = bed.refused("web");
    assert!(message.contains("--address-cidr"), "{message}");
}

#[test]
fn ranges_let_clients_in_of_their_own_family_only() {
    let mut spec = service(80, &["192.0.2.11", "2001:db8:1::11"]);
    spec.source_ranges = vec!["198.51.100.0/24".parse().unwrap()];
    let decision = bed().with("web", spec).decide();
    let clients = decision
        .plan
        .forwards
        .values()
        .map(|it| it.clients.clone().unwrap().len());
    assert_eq!(clients.collect::<Vec<_>>(), [1, 0]);
}
