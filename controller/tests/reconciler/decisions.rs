//! Which nodes a Service lists and why not, and which Services an event concerns.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use highwire_api::names::{EXCLUDE_LABEL, FIELD_MANAGER, NODE_SELECTOR_ANNOTATION};
use proptest::prelude::*;
use serde_json::{Value, json};

use highwire_controller::leading::Role;

use crate::objects::{managed_by, node, report, service};
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);

/// A Service at version 10 and one node, changed for the case.
struct Case {
    service: Value,
    node: Value,
    report: Value,
}

impl Case {
    /// The addresses, or why there are none.
    fn decide(change: impl FnOnce(&mut Self)) -> Result<Vec<IpAddr>, String> {
        let mut case = Self {
            service: service("web"),
            node: node(1),
            report: report(1, 10),
        };
        case.service["metadata"]["resourceVersion"] = json!("10");
        change(&mut case);
        let mut world = World::new();
        world.put_as_is(&case.service);
        world.node_object(&case.node);
        world.report_object(&case.report);
        world.renews(1);
        world.pass(20 * SECOND);
        let listed = world.advertised("web").into_iter();
        let ip = |entry: String| entry.rsplit_once(':').unwrap().0.parse().unwrap();
        let listed: Vec<IpAddr> = listed.map(ip).collect();
        let why = || world.serving("web").or(world.condition("web")).unwrap();
        if listed.is_empty() {
            Err(why())
        } else {
            Ok(listed)
        }
    }
}

#[test]
fn every_reason_to_stay_away_keeps_a_node_away_and_is_named() {
    type Change = fn(&mut Case);
    let cases: [(Change, &str); 13] = [
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
            |c| {
                c.report["status"]["conditions"][0]["status"] = json!("False");
                c.report["status"]["conditions"][0]["reason"] = json!("ServiceProxyFailing");
            },
            "its agent reports ServiceProxyFailing",
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
        let reason = Case::decide(change).unwrap_err();
        assert!(
            reason.contains(expected),
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
            &["2001:db8:1::1", "192.0.2.1"],
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
        assert_eq!(Case::decide(change).unwrap(), expected);
    }
    let ips =
        |list: &[&str]| -> Vec<IpAddr> { list.iter().map(|ip| ip.parse().unwrap()).collect() };
    let found = Case::decide(external).unwrap();
    assert_eq!(found, ips(&["203.0.113.1"]));
    // Each family for itself.
    let found = Case::decide(|c| {
        external(c);
        c.service["spec"]["clusterIPs"] = json!(["fd00:96::1", "10.96.0.10"]);
    });
    assert_eq!(found.unwrap(), ips(&["2001:db8:1::1", "203.0.113.1"]));
}

#[test]
fn an_expired_lease_keeps_a_listed_node_and_adds_none() {
    for listed in [false, true] {
        let mut world = World::new();
        let mut web = service("web");
        if listed {
            web["metadata"]["managedFields"] = managed_by(FIELD_MANAGER);
            web["status"]["loadBalancer"]["ingress"] = json!([
                {"ip": "192.0.2.1", "ipMode": "Proxy", "ports": [{"port": 80, "protocol": "TCP"}]}
            ]);
        }
        world.put(web);
        world.node(1, |_| {});
        world.all_report([1]);
        world.lease_of(1, 60 * SECOND, None);
        world.pass(SECOND);
        assert_eq!(world.advertised("web").len(), usize::from(listed));
    }
}

#[test]
fn heartbeats_concern_no_service() {
    let mut world = World::new();
    world.put(service("web"));
    world.live(1);
    world.reconciler.take_touched();
    for version in 1..10 {
        world.now.instant += 4 * SECOND;
        world.now.wall += 4 * SECOND;
        world.lease_of(1, Duration::ZERO, Some(world.version() + version));
        world.node(1, |node| {
            node["status"]["conditions"][0]["lastHeartbeatTime"] = json!(world_time(version));
        });
        world.reconciler.expire(world.now);
    }
    assert!(world.reconciler.take_touched().is_empty());
}

fn world_time(second: u64) -> String {
    format!("2026-01-02T03:05:{second:02}Z")
}

#[test]
fn a_report_concerns_the_services_that_it_newly_names_or_confirms() {
    let mut world = World::new();
    for name in ["a", "b", "c"] {
        world.put(service(name));
    }
    world.live(1);
    world.reconciler.take_touched();
    let refuse = |world: &mut World, names: &[&str]| {
        let conflicts: Vec<Value> = names
            .iter()
            .map(|name| {
                json!({"service": format!("shop/{name}"), "protocol": "TCP", "port": 80,
                       "reason": "HostPort", "heldBy": "Pod x/y"})
            })
            .collect();
        world.report(1, world.version(), |report| {
            report["status"]["conflicts"] = json!(conflicts);
        });
        let touched = world.reconciler.take_touched().into_iter();
        touched.map(|key| key.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(refuse(&mut world, &["a", "b"]), ["a", "b"]);
    assert_eq!(refuse(&mut world, &["b"]), ["a"]);
    assert!(refuse(&mut world, &["b"]).is_empty());
    world.edit("c", |s| s["spec"]["ports"] = json!([{"port": 81}]));
    world.reconciler.take_touched();
    assert_eq!(refuse(&mut world, &["b"]), ["c"], "it has caught up");
}

#[test]
fn endpoints_concern_only_services_with_the_policy_local() {
    let mut world = World::new();
    let mut local = service("local");
    local["spec"]["externalTrafficPolicy"] = json!("Local");
    local["spec"]["ports"] = json!([{"port": 80, "nodePort": 30080}]);
    world.put(local);
    world.put(service("cluster"));
    world.reconciler.take_touched();
    for name in ["local", "cluster", "unknown"] {
        world.endpoints(name, &[1]);
    }
    let touched = world.reconciler.take_touched().into_iter();
    assert_eq!(
        touched.map(|key| key.name.to_string()).collect::<Vec<_>>(),
        ["local"]
    );
}

/// An object that is as it is.
#[derive(Clone, Debug)]
enum Object {
    Service(Value),
    Node(Value),
    Report(Value),
    Lease(u8, u64, bool),
}

/// Final objects of a small cluster, one of each name.
fn any_objects() -> impl Strategy<Value = Vec<Object>> {
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
            (format!("service {name}"), Object::Service(object))
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
            (format!("node {number}"), Object::Node(object))
        },
    );
    let any_report =
        (0..4_u8, 0..40_u64, any::<bool>()).prop_map(|(number, observed, conflict)| {
            let mut object = report(number, observed);
            if conflict {
                object["status"]["conflicts"] = json!([{
                    "service": "shop/s0", "protocol": "TCP", "port": 80,
                    "reason": "HeldByService", "heldBy": "Service a/b",
                }]);
            }
            (format!("report {number}"), Object::Report(object))
        });
    let any_lease = (0..4_u8, 0..40_u64, any::<bool>()).prop_map(|(number, observed, expired)| {
        (
            format!("lease {number}"),
            Object::Lease(number, observed, expired),
        )
    });
    let any_object = prop_oneof![any_service, any_node, any_report, any_lease];
    proptest::collection::vec(any_object, 0..24).prop_map(|objects| {
        objects
            .into_iter()
            .collect::<BTreeMap<_, _>>()
            .into_values()
            .collect()
    })
}

fn feed(world: &mut World, object: &Object) {
    match object {
        Object::Service(object) => world.put_as_is(object),
        Object::Node(object) => world.node_object(object),
        Object::Report(object) => world.report_object(object),
        Object::Lease(number, observed, expired) => {
            let ago = if *expired {
                60 * SECOND
            } else {
                Duration::ZERO
            };
            world.lease_of(*number, ago, Some(*observed));
        }
    }
}

fn advertised(world: &World) -> BTreeMap<String, Vec<String>> {
    let names = world.services().keys().map(|key| key.name.to_string());
    names
        .map(|name| (name.clone(), world.advertised(&name)))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn the_order_of_events_does_not_matter(
        (ordered, shuffled) in
            any_objects().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle()))
    ) {
        let decide = |objects: &[Object]| {
            let mut world = World::new();
            objects.iter().for_each(|object| feed(&mut world, object));
            world.pass(SECOND / 2);
            advertised(&world)
        };
        prop_assert_eq!(decide(&ordered), decide(&shuffled));
    }

    #[test]
    fn whatever_changes_a_decision_concerns_the_service(
        objects in any_objects().prop_flat_map(|all| Just(all).prop_shuffle())
    ) {
        let mut world = World::new();
        for object in &objects {
            feed(&mut world, object);
            world.pass(SECOND / 2);
            let (decided, writes) = (advertised(&world), world.writes.len());
            // A new leader decides about every Service.
            world.reconciler.begin(Role::Follow);
            world.reconciler.begin(Role::Lead);
            world.pass(SECOND / 2);
            prop_assert_eq!(&decided, &advertised(&world));
            let more = world.writes[writes..].iter();
            let more: Vec<_> = more.filter(|write| write.difference.ingress.is_some()).collect();
            prop_assert!(more.is_empty(), "it was overlooked, or is written again: {more:?}");
        }
    }
}
