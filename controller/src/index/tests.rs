use std::{net::IpAddr, time::Instant};

use highwire_api::names::{EXCLUDE_LABEL, FIELD_MANAGER, NODE_SELECTOR_ANNOTATION};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{
    absence::Shortage,
    testing::{agent_report, facts, key, lease, managed_by, node, report, service, slice, view},
};

fn now() -> Now {
    Now {
        instant: Instant::now(),
        wall: "2026-01-02T03:04:05Z".parse().unwrap(),
    }
}

/// A Service at version 10 and one node, both changed as told.
struct Case {
    service: Value,
    node: Value,
    report: Value,
}

impl Case {
    fn decide(change: impl FnOnce(&mut Self)) -> Decision {
        let mut case = Self {
            service: service("web"),
            node: node(1),
            report: report(10),
        };
        case.service["metadata"]["resourceVersion"] = json!("10");
        change(&mut case);
        let (mut index, now) = (Index::default(), now());
        for input in [
            Input::Service(Fed::Put(key("web"), view(&case.service))),
            Input::Node(Fed::Put("n1".into(), facts(&case.node))),
            Input::Report(Fed::Put("n1".into(), agent_report(&case.report))),
            Input::Lease(Fed::Put("agent-n1".into(), lease(now, None))),
        ] {
            index.apply(input, now);
        }
        index.decide(&key("web")).unwrap()
    }
}

/// The addresses, or why there are none.
fn outcome(decision: Decision) -> Result<Vec<IpAddr>, String> {
    match decision {
        Decision::Publish {
            ingress: Some(ingress),
            ..
        } if !ingress.is_empty() => Ok(ingress
            .to_api(Family::V4)
            .iter()
            .map(|entry| entry.ip.as_ref().unwrap().parse().unwrap())
            .collect()),
        Decision::Publish {
            shortage: Some(Shortage::NoneReady { absent }),
            ..
        } => Err(absent[0].1.to_string()),
        Decision::Publish {
            shortage: Some(shortage),
            ..
        } => Err(shortage.to_string()),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn every_reason_to_stay_away_keeps_a_node_away_and_is_named() {
    type Change = fn(&mut Case);
    let cases: [(Change, &str); 12] = [
        (
            |c| c.node["metadata"]["labels"] = json!({}),
            "no node is labelled highwire.dev/enabled=true",
        ),
        (
            |c| c.node["metadata"]["labels"]["highwire.dev/enabled"] = json!("yes"),
            "no node is labelled",
        ),
        (
            |c| c.node["metadata"]["labels"][EXCLUDE_LABEL] = json!(""),
            "has the label node.kubernetes.io/exclude",
        ),
        (
            |c| c.node["metadata"]["deletionTimestamp"] = json!("2026-01-02T03:04:05Z"),
            "is being deleted",
        ),
        (
            |c| {
                let taint = "ToBeDeletedByClusterAutoscaler";
                c.node["spec"]["taints"] = json!([{"key": taint, "effect": "NoSchedule"}])
            },
            "is about to be deleted by the cluster autoscaler",
        ),
        (
            |c| {
                c.service["spec"]["externalTrafficPolicy"] = json!("Local");
                c.service["spec"]["ports"][0]["nodePort"] = json!(30080);
            },
            "it has no ready endpoint",
        ),
        (
            |c| c.node["status"]["conditions"][0]["status"] = json!("Unknown"),
            "the Node is not Ready",
        ),
        (
            |c| {
                c.report["status"]["conditions"][0]["status"] = json!("False");
                c.report["status"]["conditions"][0]["reason"] = json!("ApplyFailed");
            },
            "its agent reports ApplyFailed",
        ),
        (
            |c| c.report["status"]["conditions"] = json!([]),
            "its agent has not said yet",
        ),
        (
            |c| c.report["status"]["observedResourceVersion"] = json!("9"),
            "its agent has not caught up",
        ),
        (
            |c| {
                c.report["status"]["conflicts"] = json!([{
                    "service": "shop/web", "protocol": "TCP", "port": 80,
                    "reason": "HeldByService", "heldBy": "Service default/traefik",
                }]);
            },
            "80/TCP is held by Service default/traefik",
        ),
        (
            |c| {
                c.service["metadata"]["annotations"] =
                    json!({"highwire.dev/address-type": "ExternalIP"})
            },
            "it has no address of the type",
        ),
    ];
    for (change, expected) in cases {
        let reason = outcome(Case::decide(change)).unwrap_err();
        assert!(
            reason.starts_with(expected),
            "{reason:?} instead of {expected:?}"
        );
    }
}

#[test]
fn the_service_chooses_families_types_and_nodes() {
    type Change = fn(&mut Case);
    let external = |c: &mut Case| {
        let addresses = c.node["status"]["addresses"].as_array_mut().unwrap();
        addresses.push(json!({"type": "ExternalIP", "address": "203.0.113.1"}));
    };
    let cases: [(Change, &[&str]); 5] = [
        (|_| {}, &["192.0.2.1"]),
        (
            |c| c.service["spec"]["clusterIPs"] = json!(["fd00:96::1"]),
            &["2001:db8:1::1"],
        ),
        (
            |c| c.service["spec"]["clusterIPs"] = json!(["fd00:96::1", "10.96.0.10"]),
            &["192.0.2.1", "2001:db8:1::1"],
        ),
        (
            |c| {
                c.service["metadata"]["annotations"] =
                    json!({"highwire.dev/address-type": "InternalIP"})
            },
            &["192.0.2.1"],
        ),
        (
            |c| c.service["metadata"]["annotations"] = json!({NODE_SELECTOR_ANNOTATION: "!pool"}),
            &["192.0.2.1"],
        ),
    ];
    for (change, expected) in cases {
        let expected: Vec<IpAddr> = expected.iter().map(|ip| ip.parse().unwrap()).collect();
        assert_eq!(outcome(Case::decide(change)).unwrap(), expected);
    }
    let ips =
        |list: &[&str]| -> Vec<IpAddr> { list.iter().map(|ip| ip.parse().unwrap()).collect() };
    let found = outcome(Case::decide(external)).unwrap();
    assert_eq!(found, ips(&["203.0.113.1"]));
    // Each family for itself.
    let found = outcome(Case::decide(|c| {
        external(c);
        c.service["spec"]["clusterIPs"] = json!(["fd00:96::1", "10.96.0.10"]);
    }));
    assert_eq!(found.unwrap(), ips(&["203.0.113.1", "2001:db8:1::1"]));
}

#[test]
fn an_unproven_lease_keeps_a_listed_node_and_adds_none() {
    for listed in [false, true] {
        let (mut index, now) = (Index::default(), now());
        let mut web = service("web");
        web["metadata"]["resourceVersion"] = json!("10");
        if listed {
            web["metadata"]["managedFields"] = managed_by(FIELD_MANAGER);
            web["status"]["loadBalancer"]["ingress"] = json!([{"ip": "192.0.2.1", "ipMode": "Proxy", "ports": [{"port": 80, "protocol": "TCP"}]}]);
        }
        let mut old = lease(now, None);
        old.renewed = Some(now.wall - jiff::SignedDuration::from_secs(60));
        for input in [
            Input::Service(Fed::Put(key("web"), view(&web))),
            Input::Node(Fed::Put("n1".into(), facts(&node(1)))),
            Input::Report(Fed::Put("n1".into(), agent_report(&report(10)))),
            Input::Lease(Fed::Put("agent-n1".into(), old)),
        ] {
            index.apply(input, now);
        }
        assert_eq!(outcome(index.decide(&key("web")).unwrap()).is_ok(), listed);
    }
}

#[test]
fn a_renewed_lease_touches_no_service() {
    let (mut index, mut now) = (Index::default(), now());
    let mut web = service("web");
    web["metadata"]["resourceVersion"] = json!("10");
    index.apply(Input::Service(Fed::Put(key("web"), view(&web))), now);
    index.apply(Input::Node(Fed::Put("n1".into(), facts(&node(1)))), now);
    index.apply(
        Input::Report(Fed::Put("n1".into(), agent_report(&report(10)))),
        now,
    );
    index.apply(
        Input::Lease(Fed::Put("agent-n1".into(), lease(now, Some(10)))),
        now,
    );
    index.take_touched();
    for version in 11..20 {
        now = Now {
            instant: now.instant + std::time::Duration::from_secs(4),
            wall: now.wall + std::time::Duration::from_secs(4),
        };
        index.apply(
            Input::Lease(Fed::Put("agent-n1".into(), lease(now, Some(version)))),
            now,
        );
        index.expire(now);
    }
    assert!(index.take_touched().is_empty());
}

/// Final objects of a small cluster, each as one event.
fn any_events() -> impl Strategy<Value = Vec<Input>> {
    let any_service = (0..4_u8, 1..40_u64, any::<bool>(), any::<bool>(), 0..3_u8).prop_map(
        |(name, version, edge, dual, listed)| {
            let mut object = service(&format!("s{name}"));
            object["metadata"]["resourceVersion"] = json!(version.to_string());
            if edge {
                object["metadata"]["annotations"] = json!({NODE_SELECTOR_ANNOTATION: "pool=edge"});
            }
            if dual {
                object["spec"]["clusterIPs"] = json!(["10.96.0.10", "fd00:96::10"]);
            }
            let entry = |n: u8| {
                json!({"ip": format!("192.0.2.{n}"), "ipMode": "Proxy",
                                       "ports": [{"port": 80, "protocol": "TCP"}]})
            };
            object["metadata"]["managedFields"] = managed_by(FIELD_MANAGER);
            object["status"]["loadBalancer"]["ingress"] = (0..listed).map(entry).collect();
            Input::Service(Fed::Put(key(&format!("s{name}")), view(&object)))
        },
    );
    let any_node = (0..4_u8, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(number, enabled, edge, external)| {
            let mut object = node(number);
            object["metadata"]["labels"]["highwire.dev/enabled"] = json!(enabled.to_string());
            if edge {
                object["metadata"]["labels"]["pool"] = json!("edge");
            }
            if external {
                object["status"]["addresses"][0]["type"] = json!("ExternalIP");
            }
            Input::Node(Fed::Put(format!("n{number}"), facts(&object)))
        },
    );
    let any_report =
        (0..4_u8, 0..40_u64, any::<bool>()).prop_map(|(number, observed, conflict)| {
            let mut object = report(observed);
            if conflict {
                object["status"]["conflicts"] = json!([{
                    "service": "shop/s0", "protocol": "TCP", "port": 80,
                    "reason": "HeldByService", "heldBy": "Service a/b",
                }]);
            }
            Input::Report(Fed::Put(format!("n{number}"), agent_report(&object)))
        });
    let any_lease = (0..4_u8, 0..40_u64, any::<bool>()).prop_map(|(number, observed, expired)| {
        let mut view = lease(now(), Some(observed));
        if expired {
            view.renewed = Some(now().wall - jiff::SignedDuration::from_secs(60));
        }
        Input::Lease(Fed::Put(format!("agent-n{number}"), view))
    });
    let any_event = prop_oneof![any_service, any_node, any_report, any_lease];
    proptest::collection::vec(any_event, 0..24).prop_map(|events| {
        // One final object per name.
        let mut last = BTreeMap::new();
        for event in events {
            let id = match &event {
                Input::Service(Fed::Put(key, _)) => format!("service {key}"),
                Input::Node(Fed::Put(name, _)) => format!("node {name}"),
                Input::Report(Fed::Put(name, _)) => format!("report {name}"),
                Input::Lease(Fed::Put(name, _)) => format!("lease {name}"),
                other => panic!("{other:?}"),
            };
            last.insert(id, event);
        }
        last.into_values().collect()
    })
}

fn decisions(events: &[Input], now: Now) -> BTreeMap<ServiceKey, Decision> {
    let mut index = Index::default();
    events
        .iter()
        .for_each(|event| index.apply(event.clone(), now));
    let keys: Vec<ServiceKey> = index.services.keys().cloned().collect();
    keys.into_iter()
        .map(|key| (key.clone(), index.decide(&key).unwrap()))
        .collect()
}

proptest! {
    #[test]
    fn the_order_of_events_does_not_matter(
        (ordered, shuffled) in any_events().prop_flat_map(|e| (Just(e.clone()), Just(e).prop_shuffle()))
    ) {
        let now = now();
        prop_assert_eq!(decisions(&ordered, now), decisions(&shuffled, now));
    }

    #[test]
    fn what_is_decided_is_decided_again_once_it_is_written(events in any_events()) {
        let now = now();
        let mut index = Index::default();
        events.iter().for_each(|event| index.apply(event.clone(), now));
        let keys: Vec<ServiceKey> = index.services.keys().cloned().collect();
        for key in keys {
            let Some(Decision::Publish { ingress: Some(ingress), .. }) = index.decide(&key) else { continue };
            let record = index.services.get_mut(&key).unwrap();
            record.listed = crate::ingress::Listed { ingress: ingress.clone(), exact: true };
            prop_assert_eq!(publishes(&index, &key), Some(ingress));
        }
    }

    #[test]
    fn whatever_changes_a_decision_touches_the_service(
        (events, last) in any_events().prop_flat_map(|e| {
            let last = if e.is_empty() { 0 } else { e.len() - 1 };
            (Just(e).prop_shuffle(), Just(last))
        })
    ) {
        prop_assume!(!events.is_empty());
        let now = now();
        let mut index = Index::default();
        events[..last].iter().for_each(|event| index.apply(event.clone(), now));
        index.take_touched();
        let keys: Vec<ServiceKey> = index.services.keys().cloned().collect();
        let before: Vec<_> = keys.iter().map(|key| publishes(&index, key)).collect();
        index.apply(events[last].clone(), now);
        let after: Vec<_> = keys.iter().map(|key| publishes(&index, key)).collect();
        let touched = index.take_touched();
        for ((key, before), after) in keys.iter().zip(before).zip(after) {
            prop_assert!(before == after || touched.contains(key), "{key} was overlooked");
        }
    }
}

fn publishes(index: &Index, key: &ServiceKey) -> Option<crate::ingress::Ingress> {
    match index.decide(key) {
        Some(Decision::Publish { ingress, .. }) => ingress,
        _ => None,
    }
}

#[test]
fn endpoints_concern_only_services_with_the_policy_local() {
    let (mut index, now) = (Index::default(), now());
    let mut local = service("local");
    local["spec"]["externalTrafficPolicy"] = json!("Local");
    local["spec"]["ports"] = json!([{"port": 80, "nodePort": 30080}]);
    for (name, object) in [("local", local), ("cluster", service("cluster"))] {
        index.apply(Input::Service(Fed::Put(key(name), view(&object))), now);
    }
    index.take_touched();
    for name in ["local", "cluster", "unknown"] {
        let (slice, view) = slice(name, &[1]);
        index.apply(Input::Slice(Fed::Put(slice, view)), now);
    }
    assert_eq!(index.take_touched(), BTreeSet::from([key("local")]));
}
