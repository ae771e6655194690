//! The rules on worlds small enough to see what is right.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn node(name: &str, address: &str) -> Node {
    Node {
        name: name.into(),
        labels: BTreeMap::from([("highwire.dev/enabled".into(), "true".into())]),
        ready: true,
        addresses: vec![(ip(address), false)],
        host_addresses: BTreeSet::from([ip(address)]),
        listeners: Vec::new(),
        agent: AgentState::Running,
        has_table: true,
        proxy_mode: "nftables".into(),
        explained: None,
    }
}

/// Of age `created`, with TCP ports that lead to 8080.
fn service(name: &str, created: i64, ports: &[u16]) -> Service {
    Service {
        key: format!("a/{name}"),
        namespace: "a".into(),
        created: k8s_openapi::jiff::Timestamp::from_second(created).unwrap(),
        is_load_balancer: true,
        families: vec![false],
        ports: ports
            .iter()
            .map(|port| Port {
                protocol: Protocol::Tcp,
                port: *port,
                target: 8080,
                node_port: None,
            })
            .collect(),
        selector: BTreeMap::from([("app".into(), "web".into())]),
        ..Service::default()
    }
}

fn pod(name: &str, node: &str) -> Pod {
    Pod {
        name: name.into(),
        namespace: "a".into(),
        labels: BTreeMap::from([("app".into(), "web".into())]),
        node: node.into(),
        addresses: vec![ip("10.244.1.2")],
        ready: true,
        host_network: false,
        ports: BTreeSet::from([(Protocol::Tcp, 8080)]),
        host_ports: BTreeSet::new(),
    }
}

fn world(services: Vec<Service>) -> World {
    let nodes = [node("n1", "192.0.2.11"), node("n2", "192.0.2.12")];
    World {
        services: services
            .into_iter()
            .map(|it| (it.key.clone(), it))
            .collect(),
        pods: vec![pod("web-1", "n1")],
        nodes: nodes.map(|it| (it.name.clone(), it)).into(),
        ..World::default()
    }
}

fn served(world: &World) -> Vec<String> {
    let all = verdicts(world, &world.nodes["n1"]);
    let served = all.into_iter().filter(|(_, it)| *it == Verdict::Served);
    served.map(|(key, _)| key).collect()
}

fn listed(mut service: Service, at: &str) -> Service {
    let ports = service.ports.iter().map(|it| (it.protocol, it.port));
    service.ingress.push(IngressEntry {
        ip: ip(at),
        is_vip: false,
        ports: ports.collect(),
    });
    service.author = Author::Highwire;
    service
}

fn asked(world: &World, node: &str, port: u16) -> Expectation {
    let node = &world.nodes[node];
    let client = Client {
        v4: ip("198.51.100.10"),
        v6: ip("2001:db8:2::10"),
    };
    let at = Endpoint {
        address: node.addresses[0].0,
        protocol: Protocol::Tcp,
        port,
    };
    expectation(world, node, &client, at)
}

#[test]
fn the_oldest_gets_a_port_unless_another_is_advertised_with_it() {
    let (old, young) = (service("old", 1, &[80]), service("young", 2, &[80, 443]));
    assert_eq!(served(&world(vec![old.clone(), young.clone()])), ["a/old"]);
    let young = listed(young, "192.0.2.12");
    assert_eq!(
        served(&world(vec![old.clone(), young.clone()])),
        ["a/young"],
        "elsewhere"
    );
    let old = listed(old, "192.0.2.11");
    assert_eq!(
        served(&world(vec![old, young])),
        ["a/old"],
        "here before elsewhere"
    );
}

#[test]
fn all_ports_or_none_and_what_one_lost_another_gets() {
    let mut world = world(vec![
        service("first", 1, &[80]),
        service("both", 2, &[80, 443]),
        service("last", 3, &[443]),
    ]);
    assert_eq!(served(&world), ["a/first", "a/last"]);
    let listener = Listener {
        protocol: Protocol::Tcp,
        port: 80,
        address: None,
        families: (true, true),
    };
    world.nodes.get_mut("n1").unwrap().listeners.push(listener);
    assert_eq!(served(&world), ["a/last"], "the host wins");
    assert!(matches!(
        asked(&world, "n1", 80),
        Expectation::HostListener { .. }
    ));
}

#[test]
fn clients_get_the_services_pods_or_a_refusal() {
    let mut world = world(vec![service("web", 1, &[80])]);
    let by = BTreeSet::from(["web-1".to_owned()]);
    let answer = Expectation::Served {
        service: "a/web".into(),
        by,
    };
    assert_eq!(asked(&world, "n1", 80), answer);
    assert_eq!(asked(&world, "n2", 80), answer);
    assert!(matches!(
        asked(&world, "n1", 81),
        Expectation::Closed { at_once: true, .. }
    ));
    let web = world.services.get_mut("a/web").unwrap();
    web.external_local = true;
    web.ports[0].node_port = Some(31_000);
    assert_eq!(asked(&world, "n1", 80), answer);
    assert!(matches!(
        asked(&world, "n2", 80),
        Expectation::Closed { at_once: false, .. }
    ));
    let web = world.services.get_mut("a/web").unwrap();
    web.ranges = vec!["203.0.113.0/24".parse().unwrap()];
    assert!(matches!(
        asked(&world, "n1", 80),
        Expectation::Closed { at_once: false, .. }
    ));
}

#[test]
fn a_status_lists_exactly_the_nodes_that_serve() {
    let of = |service| status::violations(&world(vec![service]));
    let web = service("web", 1, &[80]);
    assert!(!of(web.clone()).is_empty(), "none");
    let one = listed(web, "192.0.2.11");
    assert!(!of(one.clone()).is_empty(), "one of two");
    let both = listed(one, "192.0.2.12");
    assert_eq!(of(both.clone()), []);
    assert!(
        !of(listed(both, "192.0.2.13")).is_empty(),
        "one that is no node"
    );
}

#[test]
fn an_entry_that_was_there_stays_unless_its_node_may_leave() {
    let at_both = listed(listed(service("web", 1, &[80]), "192.0.2.11"), "192.0.2.12");
    let kept = kept::Kept::new(&world(vec![at_both]), Vec::new());
    let now = world(vec![listed(service("web", 1, &[80]), "192.0.2.12")]);
    let gone = |may_leave: &[&str]| {
        let may_leave = may_leave.iter().map(ToString::to_string).collect();
        kept.gone(&now, &may_leave)
    };
    assert_eq!(gone(&["n2"]).len(), 1, "n1's agent works");
    assert_eq!(gone(&["n1"]), []);
    assert_eq!(kept.gone(&world(Vec::new()), &BTreeSet::new()).len(), 2);
}

#[test]
fn of_a_node_port_only_an_agent_that_works_has_to_know() {
    let mut world = world_with_a_node_port();
    let of = |world: &World| expectation(world, &world.nodes["n1"], &CLIENT, AT_NODE_PORT);
    let node = |world: &mut World, agent, has_table| {
        let node = world.nodes.get_mut("n1").unwrap();
        (node.agent, node.has_table) = (agent, has_table);
    };
    assert!(matches!(of(&world), Expectation::Served { .. }));
    node(&mut world, AgentState::Silent, true);
    assert_eq!(of(&world), Expectation::Unspecified);
    node(&mut world, AgentState::None, false);
    assert!(matches!(of(&world), Expectation::Served { .. }));
}

#[test]
fn without_a_kube_proxy_nobody_serves_a_node_port() {
    let mut world = world_with_a_node_port();
    for node in world.nodes.values_mut() {
        node.proxy_mode = "none".into();
    }
    let found = expectation(&world, &world.nodes["n1"], &CLIENT, AT_NODE_PORT);
    assert!(matches!(found, Expectation::Closed { .. }));
}

const CLIENT: Client = Client {
    v4: IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 10)),
    v6: IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10)),
};

const AT_NODE_PORT: Endpoint = Endpoint {
    address: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 11)),
    protocol: Protocol::Tcp,
    port: 31_000,
};

fn world_with_a_node_port() -> World {
    let mut service = service("web", 1, &[80]);
    service.ports[0].node_port = Some(31_000);
    world(vec![service])
}
