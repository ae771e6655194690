use highwire_api::{
    ClassPolicy, Interpretation, Protocol,
    advertised::Advertised,
    node::{ConflictReason, ProxyMode},
    service::{TrafficPolicy, interpret},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{
    config::Policy,
    facts::{
        addresses::HostAddress,
        listener_history::Listeners,
        listeners::Listener,
        node::NodeFacts,
        pods::LocalPod,
        service_proxy::{Failing, ServiceProxy},
        services::{NodePorts, ServiceFacts},
        sysctls::Sysctls,
    },
    udp::{Behind, Frontends},
};

fn host(addresses: &[&str]) -> Vec<HostAddress> {
    let address = |address: &&str| HostAddress {
        address: address.parse().unwrap(),
        interface: "eth0".into(),
        devices: BTreeSet::new(),
        global: true,
        on_default_route: true,
    };
    addresses.iter().map(address).collect()
}

fn listener(bound: &str) -> Listener {
    Listener {
        protocol: Protocol::Tcp,
        bound: bound.parse().unwrap(),
        v6_only: false,
        device: None,
        uid: 0,
        inode: 1,
    }
}

fn node() -> NodeFacts {
    NodeFacts {
        uid: "n".into(),
        enabled: true,
        labels: [("pool".to_owned(), "edge".to_owned())].into(),
        addresses: ["192.0.2.11".parse().unwrap()].into(),
        primary: [(Family::V4, "192.0.2.11".parse().unwrap())].into(),
    }
}

fn wanted(name: &str, age: u8, change: impl FnOnce(&mut Value)) -> OurService {
    let mut object = json!({
        "metadata": {"name": name, "namespace": "ns", "annotations": {},
                     "creationTimestamp": format!("2026-01-02T03:04:{age:02}Z")},
        "spec": {"type": "LoadBalancer", "clusterIPs": ["10.96.0.10"], "ports": [{"port": 80}]},
    });
    change(&mut object);
    let service = serde_json::from_value(object).unwrap();
    let Interpretation::Serve(spec) = interpret(&service, ClassPolicy::DefaultAndOurs) else {
        panic!("{name} is not served");
    };
    let advertised = Advertised::of(&service);
    OurService { spec, advertised }
}

/// What the facts are unless a test says otherwise.
struct Known {
    services: BTreeMap<String, ServiceFacts>,
    node: NodeFacts,
    addresses: Vec<HostAddress>,
    pods: BTreeMap<String, LocalPod>,
    listeners: Listeners,
    sysctls: Sysctls,
    proxy: ServiceProxy,
    left_out: BTreeMap<ServiceKey, String>,
}

impl Known {
    fn new(services: impl IntoIterator<Item = OurService>, addresses: &[&str]) -> Self {
        let facts = |ours: OurService| {
            let facts = ServiceFacts {
                key: ours.spec.key.clone(),
                ours: Some(ours.into()),
                managed_elsewhere: None,
                node_ports: NodePorts::default(),
            };
            (facts.key.to_string(), facts)
        };
        Self {
            services: services.into_iter().map(facts).collect(),
            node: node(),
            addresses: host(addresses),
            pods: BTreeMap::new(),
            listeners: Listeners::default(),
            sysctls: Sysctls {
                forwarding: Family::ALL.into(),
                ..Sysctls::default()
            },
            proxy: ServiceProxy {
                mode: Some(ProxyMode::Nftables),
                failing: None,
            },
            left_out: BTreeMap::new(),
        }
    }

    fn decide(&self) -> Decision {
        decide(&Facts {
            services: &self.services,
            node: &self.node,
            addresses: &self.addresses,
            pods: &self.pods,
            listeners: &self.listeners,
            sysctls: &self.sysctls,
            proxy: &self.proxy,
            slices: None,
            policy: &Policy::default(),
            left_out: &self.left_out,
        })
    }
}

fn decided(services: impl IntoIterator<Item = OurService>, addresses: &[&str]) -> Decision {
    Known::new(services, addresses).decide()
}

fn forwards(decision: &Decision) -> Vec<String> {
    let text = |(slot, forward): (&Slot, &Forward)| match forward.target {
        Target::ClusterIp(ip) => format!("{} {} -> {ip}", slot.family, slot.port),
        Target::NodePort { address, port, .. } => {
            format!("{} {} -> {address}:{port}", slot.family, slot.port)
        }
        Target::Backends(_) => unreachable!("no Service of this cluster asks for it"),
    };
    decision.plan.forwards.iter().map(text).collect()
}

#[test]
fn an_internal_local_policy_goes_to_the_node_port_at_the_primary_address() {
    let local = wanted("web", 1, |s| {
        s["spec"]["internalTrafficPolicy"] = json!("Local");
        s["spec"]["ports"] = json!([{"port": 80, "nodePort": 30080}]);
    });
    let decision = decided([local], &["192.0.2.11", "203.0.113.5"]);
    assert_eq!(forwards(&decision), ["IPv4 80/TCP -> 192.0.2.11:30080"]);
}

#[test]
fn what_enters_at_the_node_port_brings_its_external_policy() {
    for (internal, external, policy) in [
        ("Local", "Cluster", TrafficPolicy::Cluster),
        ("Cluster", "Local", TrafficPolicy::Local),
    ] {
        let service = wanted("web", 1, |s| {
            s["spec"]["internalTrafficPolicy"] = json!(internal);
            s["spec"]["externalTrafficPolicy"] = json!(external);
            s["spec"]["ports"] = json!([{"port": 80, "nodePort": 30080}]);
        });
        let decision = decided([service], &["192.0.2.11"]);
        let target = Target::NodePort {
            address: "192.0.2.11".parse().unwrap(),
            port: 30080.try_into().unwrap(),
            policy,
        };
        let forwards = decision.plan.forwards.into_values();
        let targets: Vec<Target> = forwards.map(|forward| forward.target).collect();
        assert_eq!(targets, [target]);
    }
}

#[test]
fn source_ranges_guard_each_port_in_its_own_family() {
    let ranged = wanted("web", 1, |s| {
        s["spec"]["clusterIPs"] = json!(["10.96.0.1", "fd00:96::1"]);
        s["spec"]["loadBalancerSourceRanges"] = json!(["10.0.0.0/8", "192.0.2.1/32"]);
    });
    let decision = decided([ranged], &["192.0.2.11", "2001:db8:1::11"]);
    let text = |(slot, forward): (&Slot, &Forward)| {
        let networks = forward.clients.iter().flatten();
        let networks: Vec<String> = networks.map(ToString::to_string).collect();
        format!("{} {}: {}", slot.family, slot.port, networks.join(" "))
    };
    let guards: Vec<String> = decision.plan.forwards.iter().map(text).collect();
    assert_eq!(
        guards,
        ["IPv4 80/TCP: 10.0.0.0/8 192.0.2.1/32", "IPv6 80/TCP: "],
        "IPv4 ranges let nobody in by IPv6"
    );
}

#[test]
fn a_service_is_forwarded_to_its_cluster_ip() {
    let decision = decided([wanted("web", 1, |_| {})], &["192.0.2.11"]);
    assert_eq!(forwards(&decision), ["IPv4 80/TCP -> 10.96.0.10"]);
    assert_eq!(decision.plan.addresses, node().addresses);
    assert!(decision.conflicts.is_empty());
}

#[test]
fn udp_is_taken_at_every_address_of_its_family_for_the_port_by_name() {
    let dns = wanted("dns", 1, |s| {
        s["spec"]["clusterIPs"] = json!(["10.96.0.1", "fd00:96::1"]);
        s["spec"]["ports"] = json!([
            {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353},
            {"name": "dns-tcp", "port": 53, "targetPort": 5353},
        ]);
    });
    let addresses = ["192.0.2.11", "203.0.113.5", "2001:db8:1::11"];
    let frontends = |decision: Decision| Frontends::of(&decision.plan, &decision.own_addresses);
    let udp = frontends(decided([dns], &addresses));
    let served = udp.served.iter().map(|(at, behind)| {
        let Behind::ServiceProxy { port, entrance, .. } = behind else {
            unreachable!("a Service of this cluster");
        };
        let (service, port) = (&port.service, &port.port);
        format!("{at} -> {service} {port} by {entrance}")
    });
    assert_eq!(
        served.collect::<Vec<_>>(),
        [
            "192.0.2.11:53 -> ns/dns dns by 10.96.0.1:53",
            "203.0.113.5:53 -> ns/dns dns by 10.96.0.1:53",
            "[2001:db8:1::11]:53 -> ns/dns dns by [fd00:96::1]:53",
        ]
    );
    assert_eq!(udp.own, addresses.map(|ip| ip.parse().unwrap()).into());
    let tcp_only = decided([wanted("web", 1, |_| {})], &addresses);
    let udp = frontends(tcp_only);
    assert_eq!(udp, Frontends::default(), "no UDP is served");
}

#[test]
fn only_families_that_service_and_node_share_are_served() {
    let dual = || {
        wanted("web", 1, |s| {
            s["spec"]["clusterIPs"] = json!(["fd00:96::1", "10.96.0.1"])
        })
    };
    let six = || {
        wanted("six", 1, |s| {
            s["spec"]["clusterIPs"] = json!(["fd00:96::6"])
        })
    };
    assert_eq!(
        forwards(&decided([dual()], &["192.0.2.11", "2001:db8:1::11"])),
        ["IPv4 80/TCP -> 10.96.0.1", "IPv6 80/TCP -> fd00:96::1"]
    );
    assert_eq!(
        forwards(&decided([dual()], &["192.0.2.11"])),
        ["IPv4 80/TCP -> 10.96.0.1"]
    );
    let four_only = decided([six()], &["192.0.2.11"]);
    assert!(four_only.served.is_empty() && four_only.conflicts.is_empty());
}

#[test]
fn the_selector_leaves_other_nodes_out() {
    let on = |pool: &'static str| {
        wanted(pool, 1, move |s| {
            s["metadata"]["annotations"]["highwire.dev/node-selector"] =
                json!(format!("pool={pool}"));
        })
    };
    let decision = decided([on("edge"), on("core")], &["192.0.2.11"]);
    assert_eq!(
        decision
            .served
            .iter()
            .map(|key| &*key.name)
            .collect::<Vec<_>>(),
        ["edge"]
    );
    assert!(
        decision.conflicts.is_empty(),
        "who is not meant for this node has no conflict here"
    );
}

#[test]
fn the_loser_of_a_port_is_explained() {
    let decision = decided(
        [wanted("young", 2, |_| {}), wanted("old", 1, |_| {})],
        &["192.0.2.11"],
    );
    assert_eq!(decision.served.len(), 1);
    let conflict = &decision.conflicts[0];
    assert_eq!(conflict.service.to_string(), "ns/young");
    assert_eq!(
        (conflict.port, conflict.held_by.as_str()),
        (80, "Service ns/old")
    );
}

#[test]
fn a_service_beside_its_own_pod_is_remembered_by_port() {
    let own = json!({
        "metadata": {"name": "own", "namespace": "ns", "labels": {"app": "web"}},
        "spec": {"hostNetwork": true, "containers": [{"name": "c"}]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    });
    let own = LocalPod::of(&serde_json::from_value(own).unwrap()).unwrap();
    let web = wanted("web", 1, |s| {
        s["spec"]["selector"] = json!({"app": "web"});
        s["spec"]["ports"] = json!([{"port": 80, "targetPort": 80},
                                    {"name": "s", "port": 443, "targetPort": 443}]);
    });
    let key = web.spec.key.clone();
    let mut known = Known::new([web], &["192.0.2.11"]);
    known.listeners.open = vec![listener("0.0.0.0:80")];
    known.pods = [("ns/own".to_owned(), own)].into();
    let decision = known.decide();
    let port = PortKey::new(Protocol::Tcp, 80).unwrap();
    assert_eq!(decision.served, BTreeSet::from([key.clone()]));
    assert_eq!(decision.beside, BTreeMap::from([(port, [key].into())]));
}

#[test]
fn a_node_that_is_not_enabled_forwards_nothing() {
    let mut known = Known::new([wanted("web", 1, |_| {})], &["192.0.2.11"]);
    known.node.enabled = false;
    assert_eq!(known.decide(), Decision::default());
    assert_eq!(Decision::default().readiness, Readiness::NotEnabled);
}

#[test]
fn a_node_is_ready_in_every_mode_of_kube_proxy() {
    for mode in [ProxyMode::Iptables, ProxyMode::Nftables, ProxyMode::Ipvs] {
        let mut known = Known::new([], &["192.0.2.11"]);
        known.proxy.mode = Some(mode);
        assert_eq!(known.decide().readiness, Readiness::Programmed, "{mode:?}");
    }
    let mut known = Known::new([], &["192.0.2.11"]);
    known.proxy.mode = None;
    let readiness = known.decide().readiness;
    assert_eq!(readiness, Readiness::ServiceProxyMissing);
    known.proxy = ServiceProxy {
        mode: Some(ProxyMode::Nftables),
        failing: Some(Failing::Silent),
    };
    let readiness = known.decide().readiness;
    assert_eq!(readiness, Readiness::ServiceProxyFailing(Failing::Silent));
    // This takes the node out of every ingress, the other does not.
    known.sysctls.forwarding.clear();
    let readiness = known.decide().readiness;
    assert_eq!(readiness, Readiness::ForwardingDisabled(Family::V4));
    let nowhere = decided([], &[]).readiness;
    assert_eq!(nowhere, Readiness::NoAddresses);
}

#[test]
fn forwarding_matters_for_ipv4_at_once_and_for_ipv6_once_it_is_used() {
    let six = || {
        wanted("six", 1, |s| {
            s["spec"]["clusterIPs"] = json!(["fd00:96::6"])
        })
    };
    let both = &["192.0.2.11", "2001:db8:1::11"][..];
    let disabled = Readiness::ForwardingDisabled;
    for (services, addresses, on, expected) in [
        (vec![], both, vec![], disabled(Family::V4)),
        (vec![], both, vec![Family::V4], Readiness::Programmed),
        (vec![six()], both, vec![Family::V4], disabled(Family::V6)),
        (vec![], &both[1..], vec![], Readiness::Programmed),
        (vec![six()], both, Family::ALL.into(), Readiness::Programmed),
    ] {
        let mut known = Known::new(services, addresses);
        known.sysctls.forwarding = on.into_iter().collect();
        assert_eq!(known.decide().readiness, expected);
    }
}

#[test]
fn a_node_that_cannot_name_whom_it_refuses_is_not_ready() {
    let refusing = |services: u32| {
        let names = (0..services).map(|number| format!("{number:060}"));
        let mut known = Known::new(names.map(|name| wanted(&name, 1, |_| {})), &["192.0.2.11"]);
        known.listeners.open = vec![listener("0.0.0.0:80")];
        known.decide().readiness
    };
    assert_eq!(refusing(5_000), Readiness::Programmed);
    assert_eq!(refusing(20_000), Readiness::TooManyConflicts);
}

proptest! {
    #[test]
    fn what_is_served_is_forwarded_whole(ports in proptest::collection::vec(
        proptest::collection::btree_set(1..6_i32, 1..4), 0..8)) {
        let services: Vec<_> = ports.iter().enumerate().map(|(index, ports)| {
            wanted(&format!("s{index}"), 1, |s| {
                s["spec"]["ports"] = ports.iter().map(|port| json!({"port": port})).collect();
            })
        }).collect();
        let decision = decided(services.clone(), &["192.0.2.11"]);
        let mut expected = 0;
        for wanted in &services {
            let key = &wanted.spec.key;
            let refused = decision.conflicts.iter().any(|conflict| conflict.service == *key);
            prop_assert_ne!(decision.served.contains(key), refused);
            if !refused {
                expected += wanted.spec.ports.len();
            }
        }
        prop_assert_eq!(decision.plan.forwards.len(), expected, "no port is forwarded for two");
    }
}

#[test]
fn a_service_that_nft_refuses_is_left_out_with_words_and_its_port_is_free() {
    let key: ServiceKey = "ns/old".parse().unwrap();
    let words = "nobody, but nft refuses it: no".to_owned();
    let services = [wanted("old", 1, |_| {}), wanted("new", 2, |_| {})];
    let mut known = Known::new(services, &["192.0.2.11"]);
    known.left_out = [(key.clone(), words.clone())].into();
    let decision = known.decide();
    assert_eq!(decision.served, ["ns/new".parse().unwrap()].into());
    assert_eq!(decision.conflicts.len(), 1);
    let conflict = &decision.conflicts[0];
    assert_eq!(conflict.service, key);
    assert_eq!(conflict.reason, ConflictReason::RefusedByNft);
    assert_eq!(conflict.held_by, words);
}

#[test]
fn a_service_whose_source_ranges_find_no_room_is_refused_alone() {
    let guarded = |name: &str, age, port: u16, ranges: usize| {
        wanted(name, age, |s| {
            s["spec"]["ports"] = json!([{ "port": port }]);
            let networks =
                (0..ranges).map(|i| json!(format!("10.{}.{}.0/24", i / 128, i % 128 * 2)));
            s["spec"]["loadBalancerSourceRanges"] = networks.collect();
        })
    };
    let services = || {
        [
            guarded("oldest", 1, 80, 5_000),
            guarded("older", 2, 81, 4_000),
            guarded("big", 3, 82, 1_001),
            guarded("small", 4, 83, 1_000),
            wanted("open", 5, |s| s["spec"]["ports"] = json!([{"port": 84}])),
        ]
    };
    let decision = decided(services(), &["192.0.2.11"]);
    let served: Vec<&str> = decision.served.iter().map(|key| &*key.name).collect();
    assert_eq!(served, ["older", "oldest", "open", "small"]);
    assert_eq!(decision.conflicts.len(), 1);
    assert_eq!(
        decision.conflicts[0].reason,
        ConflictReason::TooManySourceRanges
    );
    // Who is served already keeps its place against an older one that asks for more.
    let mut services = services();
    let status = json!({"loadBalancer": {"ingress": [
        {"ip": "192.0.2.11", "ports": [{"port": 82, "protocol": "TCP"}]}]}});
    let object = json!({"metadata": {}, "status": status});
    services[2].advertised = Advertised::of(&serde_json::from_value(object).unwrap());
    let served = decided(services, &["192.0.2.11"]).served;
    assert!(served.iter().any(|key| &*key.name == "big"), "{served:?}");
}
