use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use highwire_api::{Family, PortKey, Protocol, arbitration::Slot};
use proptest::prelude::*;

use super::*;
use crate::{
    decide::{Backends, Choice, Forward, Plan, Target},
    facts::endpoints::ServicePortName,
};

fn slot(protocol: Protocol, port: i32) -> Slot {
    Slot {
        family: Family::V4,
        port: PortKey::new(protocol, port).unwrap(),
    }
}

fn to_cluster_ip(ip: IpAddr) -> Forward {
    Forward {
        target: Target::ClusterIp(ip),
        clients: None,
        port_name: ServicePortName {
            service: "ns/web".parse().unwrap(),
            port: "".into(),
        },
    }
}

fn plan(ports: &[(i32, &str)]) -> Plan {
    let forward = |(port, ip): &(i32, &str)| {
        let forward = to_cluster_ip(ip.parse().unwrap());
        (slot(Protocol::Tcp, *port), forward)
    };
    Plan {
        addresses: ["192.0.2.11".parse().unwrap()].into(),
        forwards: ports.iter().map(forward).collect(),
    }
}

fn elements(plan: &Plan) -> Elements {
    Elements::of(plan, DataPath::FirstPacket)
}

fn change(before: &Plan, after: &Plan) -> Option<String> {
    Transaction::between(&elements(before), &elements(after)).map(|t| t.to_string())
}

#[test]
fn nothing_changed_is_no_transaction() {
    let plan = plan(&[(80, "10.96.0.10")]);
    assert_eq!(change(&plan, &plan), None);
}

#[test]
fn one_more_port_costs_exactly_its_own_elements() {
    let ports: Vec<(i32, &str)> = (1000..1300).map(|port| (port, "10.96.0.10")).collect();
    let before = plan(&ports);
    let after = plan(&[&ports[..], &[(80, "10.96.0.99")]].concat());
    assert_eq!(
        change(&before, &after).unwrap(),
        "add element inet highwire ports4 { tcp . 80 }\n\
         add element inet highwire clusterip4 { tcp . 80 : 10.96.0.99 }\n"
    );
    assert_eq!(
        change(&after, &before).unwrap(),
        "delete element inet highwire ports4 { tcp . 80 }\n\
         delete element inet highwire clusterip4 { tcp . 80 }\n"
    );
}

#[test]
fn a_new_value_replaces_the_old_one() {
    assert_eq!(
        change(&plan(&[(80, "10.96.0.10")]), &plan(&[(80, "10.96.0.11")])).unwrap(),
        "delete element inet highwire clusterip4 { tcp . 80 }\n\
         add element inet highwire clusterip4 { tcp . 80 : 10.96.0.11 }\n"
    );
}

fn to_backends(targets: BTreeSet<SocketAddr>, keeps_client: bool) -> Forward {
    Forward {
        target: Target::Backends(Backends {
            targets,
            draining: [].into(),
            choice: Choice::Random,
            keeps_client,
        }),
        ..to_cluster_ip([10, 96, 0, 1].into())
    }
}

/// So many ports with the targets 10.244.0.1 to 10.244.0.`targets` each.
fn to_pods(ports: i32, targets: u8) -> Plan {
    let targets = (1..=targets).map(|host| ([10, 244, 0, host], 8080).into());
    let forward = to_backends(targets.collect(), false);
    Plan {
        forwards: (1000..1000 + ports)
            .map(|port| (slot(Protocol::Tcp, port), forward.clone()))
            .collect(),
        ..plan(&[])
    }
}

#[test]
fn one_more_endpoint_costs_elements_of_its_own_port_only() {
    let before = to_pods(300, 10);
    let mut after = before.clone();
    let (slot, forward) = to_pods(1, 11).forwards.pop_first().unwrap();
    after.forwards.insert(slot, forward);
    let change = Transaction::from_plan(&before, &after, DataPath::Direct).unwrap();
    assert!((2..=40).contains(&change.cost()), "{}", change.cost());
    let Transaction::Change { delete, add } = change else {
        panic!("the whole table");
    };
    let keys = delete.iter().chain(add.iter().map(|(element, _)| element));
    for element in keys {
        assert_eq!(element.key.port(), Some(slot.port), "{element:?}");
    }
}

#[test]
fn a_port_with_one_target_has_one_element_for_it() {
    let one = Elements::of(&to_pods(1, 1), DataPath::Direct);
    let two = Elements::of(&to_pods(1, 2), DataPath::Direct);
    assert_eq!(two.0.len() - one.0.len(), 63);
}

fn any_plan() -> impl Strategy<Value = Plan> {
    let forward = (any::<bool>(), 1..9_i32, 1..4_u8).prop_map(|(udp, port, host)| {
        let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
        let forward = to_cluster_ip([10, 96, 0, host].into());
        (slot(protocol, port), forward)
    });
    let addresses = proptest::collection::btree_set(1..4_u8, 0..3);
    (
        addresses,
        proptest::collection::btree_map(any::<u8>(), forward, 0..6),
    )
        .prop_map(|(addresses, forwards)| Plan {
            addresses: addresses
                .into_iter()
                .map(|host| [192, 0, 2, host].into())
                .collect(),
            forwards: forwards.into_values().collect(),
        })
}

fn any_plan_with_targets() -> impl Strategy<Value = Plan> {
    let targets = proptest::collection::btree_set(1..20_u8, 0..19);
    let forward = (1..4_i32, targets, any::<bool>()).prop_map(|(port, hosts, keeps_client)| {
        let targets = hosts.into_iter().map(|it| ([10, 244, 0, it], 8080).into());
        let forward = to_backends(targets.collect(), keeps_client);
        (slot(Protocol::Tcp, port), forward)
    });
    let forwards = proptest::collection::vec(forward, 0..4);
    (any_plan(), forwards).prop_map(|(plan, forwards)| Plan {
        forwards: forwards.into_iter().collect(),
        ..plan
    })
}

proptest! {
    #[test]
    fn a_change_leads_exactly_to_what_was_wanted(before in any_plan(), after in any_plan()) {
        let (before, after) = (elements(&before), elements(&after));
        let mut table = before.0.clone();
        if let Some(Transaction::Change { delete, add }) = Transaction::between(&before, &after) {
            for element in delete {
                prop_assert!(table.remove(&element).is_some(), "nft fails on a missing element");
            }
            for (element, value) in add {
                prop_assert_eq!(table.insert(element, value), None, "nft fails on another value");
            }
        }
        prop_assert_eq!(&table, &after.0);
        prop_assert_eq!(Transaction::between(&after, &after), None);
    }

    /// Forwards may share elements: a target that several have sees its clients.
    #[test]
    fn what_differs_between_plans_is_what_differs_between_their_elements(
        before in any_plan_with_targets(), after in any_plan_with_targets(),
    ) {
        let path = DataPath::Direct;
        let elements = |plan| Elements::of(plan, path);
        let all = Transaction::between(&elements(&before), &elements(&after));
        prop_assert_eq!(Transaction::from_plan(&before, &after, path), all);
    }
}
