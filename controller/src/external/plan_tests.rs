use highwire_api::{
    ClassPolicy,
    external::{ExternalLoadBalancer, LoadBalancer},
};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::Arc;

use super::*;
use crate::{
    decision::eligibility::Eligible,
    facts::{node::NodeFacts, service::ServiceFacts},
};

/// A cluster of two nodes with two boxes: `own` gives Services their own ports, `range` those
/// from 9000.
fn cluster() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for number in [1, 2] {
        let node = json!({
            "metadata": {"name": format!("n{number}")},
            "status": {
                "addresses": [{"type": "InternalIP", "address": format!("192.0.2.{number}")}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        let node = NodeFacts::of(&serde_json::from_value(node).unwrap());
        snapshot.nodes.insert(format!("n{number}"), Arc::new(node));
    }
    external(&mut snapshot, "own", &json!({"default": true}));
    external(&mut snapshot, "range", &of_range(9000, 9001));
    snapshot
}

fn of_range(low: u16, high: u16) -> Value {
    json!({"ports": {"type": "Range", "range": {"low": low, "high": high}}})
}

fn external(snapshot: &mut Snapshot, name: &str, spec: &Value) {
    let mut object = json!({
        "apiVersion": "highwire.dev/v1alpha1", "kind": "ExternalLoadBalancer",
        "metadata": {"name": name},
        "spec": {"addresses": ["203.0.113.9"], "httpUpdater": {"url": "http://box"}},
    });
    let fields = spec.as_object().unwrap().clone();
    object["spec"].as_object_mut().unwrap().extend(fields);
    let object: ExternalLoadBalancer = serde_json::from_value(object).unwrap();
    snapshot.externals.insert(name.to_owned(), Arc::new(object));
}

/// A Service that is the older the lower its number is.
fn service(number: u8, wanted: Option<&str>, ports: &[u16]) -> Value {
    let ports = ports.iter().enumerate().map(|(index, port)| {
        json!({"name": format!("p{index}"), "port": port, "nodePort": 30000 + port % 1000})
    });
    let mut service = json!({
        "metadata": {
            "name": format!("s{number}"), "namespace": "shop", "uid": format!("u{number}"),
            "creationTimestamp": format!("2026-01-02T03:04:{number:02}Z"),
        },
        "spec": {
            "type": "LoadBalancer", "loadBalancerClass": "highwire.dev/external",
            "clusterIPs": ["10.96.0.10"], "ports": ports.collect::<Vec<_>>(),
        },
    });
    if let Some(wanted) = wanted {
        let annotations = json!({EXTERNAL_LOAD_BALANCER_ANNOTATION: wanted});
        service["metadata"]["annotations"] = annotations;
    }
    service
}

fn key(number: u8) -> ServiceKey {
    format!("shop/s{number}").parse().unwrap()
}

fn add(snapshot: &mut Snapshot, service: &Value) {
    let service = serde_json::from_value(service.clone()).unwrap();
    let facts = ServiceFacts::of(&service, ClassPolicy::DefaultAndOurs).unwrap();
    let facts = Arc::new(facts);
    snapshot.services.insert(ServiceKey::of(&service), facts);
}

/// Writes what was planned, as the API server would have it.
fn write(snapshot: &mut Snapshot, plan: &Plan) {
    for key in &plan.gone {
        snapshot.load_balancers.remove(key);
    }
    for (key, wanted) in &plan.wanted {
        let mut object = LoadBalancer::new(&key.name, wanted.spec.clone());
        let owner = json!([{"apiVersion": "v1", "kind": "Service", "name": *key.name,
                            "uid": wanted.service_uid}]);
        object.metadata.owner_references = serde_json::from_value(owner).unwrap();
        snapshot
            .load_balancers
            .insert(key.clone(), Arc::new(object));
    }
}

fn planned(snapshot: &mut Snapshot) -> Plan {
    let plan = plan(snapshot, false);
    write(snapshot, &plan);
    plan
}

fn box_ports(plan: &Plan, number: u8) -> Vec<u16> {
    let ports = plan.wanted[&key(number)].spec.ports.iter();
    ports.map(|port| port.box_port).collect()
}

fn trouble(plan: &Plan, number: u8) -> Option<Trouble> {
    let refused = plan.wanted[&key(number)].refused.as_ref();
    refused.map(|refused| refused.trouble)
}

#[test]
fn every_port_goes_to_every_node() {
    let mut snapshot = cluster();
    add(&mut snapshot, &service(1, None, &[80, 443]));
    let plan = planned(&mut snapshot);
    let wanted = &plan.wanted[&key(1)];
    assert_eq!(wanted.spec.external_load_balancer, "own");
    assert_eq!(box_ports(&plan, 1), [80, 443]);
    for port in &wanted.spec.ports {
        let targets = port.targets.iter();
        let targets: Vec<_> = targets
            .map(|it| (it.address.to_string(), it.port))
            .collect();
        let node_port = 30000 + port.port;
        let expected = ["192.0.2.1", "192.0.2.2"].map(|it| (it.to_owned(), node_port));
        assert_eq!(targets, expected);
    }
}

#[test]
fn who_has_a_port_keeps_it_and_then_the_oldest_gets_it() {
    let mut snapshot = cluster();
    add(&mut snapshot, &service(2, None, &[80]));
    planned(&mut snapshot);
    add(&mut snapshot, &service(1, None, &[80]));
    add(&mut snapshot, &service(3, None, &[80]));
    let plan = planned(&mut snapshot);
    assert_eq!(box_ports(&plan, 2), [80]);
    for other in [1, 3] {
        assert_eq!(trouble(&plan, other), Some(Trouble::PortConflict));
        let refused = plan.wanted[&key(other)].refused.as_ref().unwrap();
        assert_eq!(refused.message, "80/TCP is held by Service shop/s2");
    }
    snapshot.services.remove(&key(2));
    let plan = planned(&mut snapshot);
    assert_eq!(plan.gone, [key(2)]);
    assert_eq!(
        (box_ports(&plan, 1), box_ports(&plan, 3)),
        (vec![80], vec![])
    );
}

#[test]
fn ports_of_a_range_stay_and_move_only_out_of_a_range_that_shrinks() {
    let mut snapshot = cluster();
    for number in [1, 2, 3] {
        add(&mut snapshot, &service(number, Some("range"), &[80]));
    }
    let plan = planned(&mut snapshot);
    assert_eq!(
        (box_ports(&plan, 1), box_ports(&plan, 2)),
        (vec![9000], vec![9001])
    );
    assert_eq!(trouble(&plan, 3), Some(Trouble::RangeExhausted));
    assert_eq!(
        plan.usage["range"],
        Usage {
            used: 2,
            free: Some(0)
        }
    );

    external(&mut snapshot, "range", &of_range(9001, 9009));
    let plan = planned(&mut snapshot);
    assert_eq!(box_ports(&plan, 2), [9001]);
    assert_eq!(
        (box_ports(&plan, 1), box_ports(&plan, 3)),
        (vec![9002], vec![9003])
    );
    let moved = &plan.wanted[&key(1)].moved[0];
    assert_eq!((moved.from.get(), moved.to.get()), (9000, 9002));
    let again = planned(&mut snapshot);
    assert!(again.wanted.values().all(|it| it.moved.is_empty()));
}

#[test]
fn bad_input_keeps_the_last_good_state_and_says_what_to_do() {
    let mut snapshot = cluster();
    add(&mut snapshot, &service(1, None, &[80]));
    let good = planned(&mut snapshot);
    // A name that there is none of, two defaults, a value that cannot be read.
    add(&mut snapshot, &service(1, Some("nowhere"), &[80]));
    let plan = planned(&mut snapshot);
    assert_eq!(trouble(&plan, 1), Some(Trouble::NoExternalLoadBalancer));
    assert_eq!(plan.wanted[&key(1)].spec, good.wanted[&key(1)].spec);

    add(&mut snapshot, &service(1, None, &[80]));
    let default = json!({"default": true});
    external(&mut snapshot, "second", &default);
    add(&mut snapshot, &service(2, None, &[81]));
    let plan = planned(&mut snapshot);
    assert_eq!(trouble(&plan, 1), Some(Trouble::SeveralDefaults));
    assert_eq!(plan.wanted[&key(1)].spec, good.wanted[&key(1)].spec);
    assert_eq!(trouble(&plan, 2), Some(Trouble::SeveralDefaults));
    assert_eq!(plan.wanted[&key(2)].spec, LoadBalancerSpec::default());

    let mut unreadable = service(1, None, &[80]);
    unreadable["metadata"]["annotations"] = json!({"highwire.dev/node-selector": "&&"});
    add(&mut snapshot, &unreadable);
    // Its port is not given to another meanwhile.
    add(&mut snapshot, &service(2, Some("own"), &[80]));
    let plan = planned(&mut snapshot);
    assert_eq!(plan.wanted[&key(1)].spec, good.wanted[&key(1)].spec);
    assert_eq!(trouble(&plan, 2), Some(Trouble::PortConflict));
}

#[test]
fn what_an_updater_cannot_do_is_refused_and_not_done_by_half() {
    let mut snapshot = cluster();
    let mut ranges = service(1, None, &[80]);
    ranges["spec"]["loadBalancerSourceRanges"] = json!(["198.51.100.0/24"]);
    let mut sctp = service(2, None, &[81]);
    sctp["spec"]["ports"][0]["protocol"] = json!("SCTP");
    for service in [&ranges, &sctp] {
        add(&mut snapshot, service);
    }
    let plan = planned(&mut snapshot);
    for number in [1, 2] {
        assert_eq!(trouble(&plan, number), Some(Trouble::Unsupported));
        assert_eq!(box_ports(&plan, number), [0_u16; 0]);
    }
}

#[test]
fn only_nodes_that_can_answer_are_targets() {
    let mut snapshot = cluster();
    add(&mut snapshot, &service(1, None, &[80]));
    let addresses = |snapshot: &Snapshot| {
        let plan = plan(snapshot, false);
        let targets = plan.wanted[&key(1)].spec.ports[0].targets.clone();
        let targets = targets.into_iter().map(|it| it.address.to_string());
        targets.collect::<Vec<_>>()
    };
    let changed = |change: &dyn Fn(&mut NodeFacts)| {
        let mut snapshot = snapshot.clone();
        let mut node = snapshot.nodes["n1"].as_ref().clone();
        change(&mut node);
        snapshot.nodes.insert("n1".to_owned(), Arc::new(node));
        addresses(&snapshot)
    };
    let other = ["192.0.2.2"];
    assert_eq!(
        changed(&|node| node.ready = crate::facts::node::NodeReady::NotReady),
        other
    );
    assert_eq!(changed(&|node| node.exclude_label = true), other);
    let marked = crate::facts::node::Departure::Marked;
    assert_eq!(changed(&|node| node.departure = Some(marked)), other);
    // Of a family ExternalIPs, if any node has one.
    let outside: std::net::IpAddr = "203.0.113.1".parse().unwrap();
    assert_eq!(
        changed(&|node| node.external.extend([outside])),
        ["203.0.113.1"]
    );

    let silent = |nodes: &[&str]| {
        let mut snapshot = snapshot.clone();
        snapshot.silent = nodes.iter().map(ToString::to_string).collect();
        addresses(&snapshot)
    };
    assert_eq!(silent(&["n1"]), other);
    assert_eq!(
        silent(&["n1", "n2"]).len(),
        2,
        "none is worse than the other"
    );

    let mut local = service(1, None, &[80]);
    local["spec"]["externalTrafficPolicy"] = json!("Local");
    let mut local_snapshot = snapshot.clone();
    add(&mut local_snapshot, &local);
    let ready = &mut local_snapshot.ready_nodes;
    ready.insert((key(1), Family::V4), ["n2".to_owned()].into());
    assert_eq!(addresses(&local_snapshot), other);
    local_snapshot
        .ready_nodes
        .insert((key(1), Family::V4), BTreeSet::new());
    assert_eq!(addresses(&local_snapshot), [""; 0]);
}

#[test]
fn without_node_ports_the_nodes_that_serve_it_are_targets_at_the_port_itself() {
    let mut snapshot = cluster();
    let mut service = service(1, Some("range"), &[80]);
    service["spec"]["ports"][0]["nodePort"] = Value::Null;
    add(&mut snapshot, &service);
    let targets = |snapshot: &mut Snapshot, serving: &[(&str, Eligible)]| {
        let serving = serving
            .iter()
            .map(|(name, eligible)| ((*name).to_owned(), *eligible));
        snapshot.serving.insert(key(1), serving.collect());
        let plan = planned(snapshot);
        let targets = plan.wanted[&key(1)].spec.ports[0].targets.clone();
        let targets = targets
            .iter()
            .map(|it| format!("{}:{}", it.address, it.port));
        targets.collect::<Vec<_>>()
    };
    assert_eq!(targets(&mut snapshot, &[]), [""; 0]);
    let (all, retained) = (Eligible::AllPorts, Eligible::Retained);
    let one = [("n1", all), ("n2", retained)];
    assert_eq!(targets(&mut snapshot, &one), ["192.0.2.1:80"]);
    // A controller that has just started does not know what the nodes have seen.
    let unknown = [("n1", retained), ("n2", retained)];
    assert_eq!(targets(&mut snapshot, &unknown), ["192.0.2.1:80"]);
    assert_eq!(targets(&mut snapshot, &[("n2", all)]), ["192.0.2.2:80"]);
}

#[test]
fn another_service_of_the_same_name_inherits_nothing() {
    let mut snapshot = cluster();
    add(&mut snapshot, &service(1, Some("range"), &[80, 81]));
    planned(&mut snapshot);
    let mut anew = service(1, Some("range"), &[81]);
    anew["metadata"]["uid"] = json!("another");
    add(&mut snapshot, &anew);
    let plan = plan(&snapshot, false);
    assert_eq!(box_ports(&plan, 1), [9000]);
    assert_eq!(plan.wanted[&key(1)].service_uid, "another");
}

/// Services by number, each with a box and some ports.
fn any_services() -> impl Strategy<Value = BTreeMap<u8, (bool, BTreeSet<u16>)>> {
    let ports = proptest::collection::btree_set(1..6_u16, 1..4);
    proptest::collection::btree_map(0..8_u8, (any::<bool>(), ports), 0..8)
}

proptest! {
    /// Whatever came before: no port of a box is given twice, a plan that was carried out
    /// changes nothing, and who stays as it is keeps its ports.
    #[test]
    fn plans_are_sound_and_stable(before in any_services(), after in any_services()) {
        let mut snapshot = cluster();
        external(&mut snapshot, "range", &of_range(9000, 9009));
        let fill = |snapshot: &mut Snapshot, services: &BTreeMap<u8, (bool, BTreeSet<u16>)>| {
            snapshot.services.clear();
            for (number, (of_range, ports)) in services {
                let ports: Vec<u16> = ports.iter().copied().collect();
                let name = if *of_range { "range" } else { "own" };
                add(snapshot, &service(*number, Some(name), &ports));
            }
        };
        fill(&mut snapshot, &before);
        let first = planned(&mut snapshot);
        fill(&mut snapshot, &after);
        let second = planned(&mut snapshot);
        let mut given = BTreeSet::new();
        for wanted in second.wanted.values() {
            for port in &wanted.spec.ports {
                let slot = (&wanted.spec.external_load_balancer, port.box_port);
                prop_assert!(given.insert(slot), "{slot:?} twice");
            }
        }
        for (number, asks) in after.iter().filter(|(it, asks)| before.get(it) == Some(*asks)) {
            let (old, new) = (&first.wanted[&key(*number)], &second.wanted[&key(*number)]);
            if old.refused.is_none() {
                prop_assert_eq!(&old.spec, &new.spec, "{:?}", asks);
            }
        }
        let third = planned(&mut snapshot);
        prop_assert_eq!(third.wanted, second.wanted);
    }
}
