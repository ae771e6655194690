//! Which addresses a Service gets, by the whole reconciler.

use std::time::Duration;

use highwire_api::names::{FIELD_MANAGER, NODE_SELECTOR_ANNOTATION};
use serde_json::{Value, json};

use highwire_controller::leading::Role;

use crate::objects::{key, managed_by, report, service};
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);

/// Two live nodes and a Service that both serve.
fn served() -> World {
    let mut world = World::new();
    world.put(service("web"));
    world.live(1);
    world.live(2);
    world.pass(SECOND);
    assert_eq!(world.advertised("web"), ["192.0.2.1:80", "192.0.2.2:80"]);
    world.writes.clear();
    world.pass(5 * SECOND);
    assert!(
        world.writes.is_empty(),
        "nothing is rewritten: {:?}",
        world.writes
    );
    world.events.clear();
    world
}

#[test]
fn many_reports_within_a_moment_are_one_write() {
    let mut world = World::new();
    world.put(service("web"));
    (1..=60).for_each(|number| world.live(number));
    world.pass(5 * SECOND);
    assert_eq!(world.writes.len(), 1);
    assert_eq!(world.advertised("web").len(), 60);
    assert_eq!(world.reasons(), ["LoadBalancerUpdated"]);
    let note = &world.events[0].happened.note;
    assert_eq!(note, "Advertised at 192.0.2.1, 192.0.2.2 and 58 more");
}

#[test]
fn reports_on_other_services_cost_nothing() {
    let mut world = served();
    world.put(service("other"));
    world.all_report([1, 2]);
    (0..50).for_each(|_| {
        world.edit("other", |s| s["spec"]["ports"] = json!([{"port": 81}]));
        world.all_report([1, 2]);
        world.pass(SECOND / 10);
    });
    assert!(world.writes.iter().all(|write| write.key == key("other")));
    assert_eq!(world.advertised("web").len(), 2);
}

#[test]
fn a_node_that_has_not_observed_a_new_service_is_not_listed() {
    let mut world = World::new();
    world.live(1);
    world.live(2);
    world.put(service("web"));
    world.report(1, world.version(), |_| {});
    world.pass(SECOND);
    assert_eq!(world.advertised("web"), ["192.0.2.1:80"]);
    // The other one confirms by its Lease.
    world.lease_of(2, Duration::ZERO, Some(world.version()));
    world.pass(SECOND);
    assert_eq!(world.advertised("web").len(), 2);
}

#[test]
fn a_lease_counts_once_the_report_that_goes_with_it_is_here() {
    let mut world = World::new();
    world.live(1);
    let report = |version: &str| report_of(1, version);
    world.report_object(&report("70"));
    world.put(service("web"));
    // The Service is refused, which report 71 says; the Lease comes first.
    world.lease_with_report(1, world.version(), "71");
    world.pass(SECOND);
    assert!(world.advertised("web").is_empty(), "it may be refused");
    let mut refusing = report("71");
    refusing["status"]["conflicts"] = json!([{
        "service": "shop/web", "protocol": "TCP", "port": 80, "reason": "HostListener",
        "heldBy": "socket 0.0.0.0:80 uid 0",
    }]);
    world.report_object(&refusing);
    world.pass(SECOND);
    assert!(world.advertised("web").is_empty());
    world.report_object(&report("72"));
    world.pass(SECOND);
    assert_eq!(world.advertised("web"), ["192.0.2.1:80"]);
}

/// A report of that version that has observed nothing new by itself.
fn report_of(number: u8, version: &str) -> Value {
    let mut report = report(number, 0);
    report["metadata"]["resourceVersion"] = json!(version);
    report
}

#[test]
fn changed_ports_are_claimed_only_once_observed_and_addresses_stay() {
    let mut world = served();
    world.edit("web", |s| {
        s["spec"]["ports"] = json!([{"port": 80}, {"port": 443}])
    });
    world.pass(SECOND);
    assert!(world.writes.is_empty(), "80 still holds everywhere");
    world.report(1, world.version(), |_| {});
    world.pass(SECOND);
    assert_eq!(
        world.advertised("web"),
        ["192.0.2.1:80,443", "192.0.2.2:80"]
    );
    world.report(2, world.version(), |_| {});
    world.pass(SECOND);
    assert_eq!(
        world.advertised("web"),
        ["192.0.2.1:80,443", "192.0.2.2:80,443"]
    );

    world.edit("web", |s| {
        s["spec"]["ports"] = json!([{"port": 443}, {"port": 8443}])
    });
    world.pass(SECOND);
    let unwanted_gone = ["192.0.2.1:443", "192.0.2.2:443"];
    assert_eq!(
        world.advertised("web"),
        unwanted_gone,
        "80 is wanted no more"
    );
}

#[test]
fn a_nodes_flap_is_no_event_and_an_edit_is_one() {
    let mut world = served();
    for status in ["False", "True"] {
        world.node(1, |node| {
            node["status"]["conditions"][0]["status"] = json!(status);
        });
        world.pass(SECOND);
    }
    assert_eq!((world.writes.len(), world.events.len()), (2, 0));
    world.edit("web", |s| s["spec"]["ports"] = json!([{"port": 443}]));
    for number in [1, 2] {
        world.all_report([number]);
        world.pass(SECOND);
    }
    assert_eq!(world.advertised("web").len(), 2);
    // The first write has no address any more, or not yet.
    let reasons = world.reasons();
    assert_eq!(reasons.last(), Some(&"LoadBalancerUpdated"));
    assert!(reasons.len() <= 2, "one per node: {reasons:?}");
}

#[test]
fn an_edit_that_keeps_the_addresses_is_one_event() {
    let mut world = served();
    world.edit("web", |s| {
        s["spec"]["ports"] = json!([{"port": 80}, {"port": 443}]);
    });
    for number in [1, 2] {
        world.all_report([number]);
        world.pass(SECOND);
    }
    assert_eq!(world.writes.len(), 2);
    assert_eq!(world.reasons(), ["LoadBalancerUpdated"], "not one per node");
}

#[test]
fn a_change_of_the_address_type_needs_nobodys_confirmation() {
    let mut world = served();
    world.node(1, |node| {
        node["status"]["addresses"][0]["type"] = json!("ExternalIP");
        node["status"]["addresses"][0]["address"] = json!("203.0.113.1");
    });
    world.pass(SECOND);
    assert_eq!(
        world.advertised("web"),
        ["203.0.113.1:80"],
        "Auto prefers ExternalIPs"
    );
    world.edit("web", |s| {
        s["metadata"]["annotations"] = json!({"highwire.dev/address-type": "InternalIP"});
    });
    world.pass(SECOND);
    assert_eq!(world.advertised("web"), ["192.0.2.2:80"]);
    assert_eq!(world.writes.len(), 2, "no empty list in between");
}

#[test]
fn a_dead_node_leaves_within_15_seconds_and_comes_back_by_a_renewal() {
    let mut world = served();
    world.kill(2);
    let died = world.now.instant;
    while world.advertised("web").len() == 2 {
        world.pass(SECOND / 10);
        assert!(world.now.instant < died + 15 * SECOND, "still listed");
    }
    assert_eq!(world.advertised("web"), ["192.0.2.1:80"]);
    world.lease(2);
    world.resume(vec![1, 2]);
    world.pass(SECOND);
    assert_eq!(world.advertised("web").len(), 2);
}

#[test]
fn nothing_changes_while_the_api_server_is_away_nor_when_it_is_back() {
    let mut world = served();
    let nodes = world.silence();
    world.pass(300 * SECOND);
    world.resume(nodes);
    world.pass(60 * SECOND);
    assert!(world.writes.is_empty(), "{:?}", world.writes);
}

#[test]
fn who_died_while_the_api_server_was_away_leaves_soon_after() {
    let mut world = served();
    world.silence();
    world.pass(300 * SECOND);
    world.resume(vec![1]);
    world.pass(20 * SECOND);
    assert_eq!(world.advertised("web"), ["192.0.2.1:80"]);
}

#[test]
fn a_new_leader_rewrites_nothing_that_is_right() {
    let mut world = served();
    world.restart();
    world.pass(SECOND);
    assert!(world.writes.is_empty(), "it does not know the nodes yet");
    world.list_nodes(|world| {
        for number in [1, 2] {
            world.node(number, |_| {});
            // It reported long before the version this controller sees first.
            world.report(number, 1, |_| {});
            world.lease(number);
        }
    });
    world.pass(10 * SECOND);
    assert!(world.writes.is_empty(), "{:?}", world.writes);
    assert!(world.events.is_empty(), "{:?}", world.events);
}

#[test]
fn a_follower_writes_and_says_nothing() {
    let mut world = served();
    world.reconciler.begin(Role::Follow);
    world.kill(2);
    world.pass(30 * SECOND);
    assert!(world.writes.is_empty() && world.events.is_empty());
    world.reconciler.begin(Role::Lead);
    world.pass(SECOND);
    assert_eq!(world.writes.len(), 1, "it knew all the while");
}

#[test]
fn why_there_is_no_address_is_said_after_a_grace() {
    let mut world = World::new();
    world.put(service("web"));
    world.pass(SECOND);
    assert!(world.events.is_empty());
    world.pass(2 * SECOND);
    assert_eq!(world.reasons(), ["NoReadyNodes"]);
    assert!(
        world.events[0]
            .happened
            .note
            .contains("no node is labelled")
    );

    world.node(1, |_| {});
    world.node(2, |_| {});
    world.pass(10 * SECOND);
    let note = world.events[1].happened.note.as_str();
    assert!(
        note.starts_with("Not advertised: none of 2 nodes is ready: n1 (its agent"),
        "{note}"
    );
    assert_eq!(
        world.reasons().len(),
        2,
        "one for the cause, not one per node"
    );

    world.edit("web", |s| {
        s["metadata"]["annotations"] = json!({NODE_SELECTOR_ANNOTATION: "pool=edge"});
    });
    world.pass(10 * SECOND);
    let note = &world.events[2].happened.note;
    assert!(
        note.ends_with("\"pool=edge\" matches none of 2 opted-in nodes"),
        "{note}"
    );
}

#[test]
fn what_cannot_be_read_keeps_what_it_had_and_what_is_not_done_is_cleared() {
    let mut world = served();
    world.edit("web", |s| {
        s["metadata"]["annotations"] = json!({NODE_SELECTOR_ANNOTATION: "pool in edge"});
    });
    world.pass(5 * SECOND);
    assert_eq!(world.reasons(), ["InvalidAnnotation"]);
    let condition = world.serving("web").unwrap();
    let expected = "True InvalidSpec: it keeps its addresses; metadata.annotations";
    assert!(condition.starts_with(expected), "{condition}");
    world.live(3);
    world.pass(5 * SECOND);
    let only_said = world.writes.len() == 1 && world.writes[0].difference.ingress.is_none();
    assert!(only_said, "nobody is added meanwhile: {:?}", world.writes);
    world.kill(2);
    world.pass(20 * SECOND);
    assert_eq!(
        world.advertised("web"),
        ["192.0.2.1:80"],
        "but who dies leaves"
    );

    world.edit("web", |s| {
        s["metadata"]["annotations"] = json!(null);
        s["spec"]["clusterIPs"] = json!(["None"]);
    });
    world.pass(5 * SECOND);
    assert!(world.advertised("web").is_empty());
    let said: Vec<_> = world
        .reasons()
        .into_iter()
        .filter(|reason| *reason == "Unsupported")
        .collect();
    assert_eq!(said.len(), 1);
    let condition = world.serving("web").unwrap();
    let expected = "False Unsupported: spec.clusterIP: \"None\": ";
    assert!(condition.starts_with(expected), "{condition}");

    world.edit("web", |s| s["spec"]["clusterIPs"] = json!(["10.96.0.10"]));
    world.all_report([1]);
    world.pass(5 * SECOND);
    assert_eq!(world.advertised("web"), ["192.0.2.1:80"]);
    let condition = world.serving("web").unwrap();
    assert_eq!(condition, "True Serving: it has addresses");
}

#[test]
fn an_unreadable_service_nobody_knows_is_left_alone() {
    let mut world = World::new();
    world.live(1);
    let mut strange = service("web");
    strange["metadata"]["annotations"] = json!({NODE_SELECTOR_ANNOTATION: "pool in edge"});
    strange["status"]["loadBalancer"]["ingress"] =
        json!([{"ip": "192.0.2.1", "ipMode": "Proxy", "ports": [{"port": 80, "protocol": "TCP"}]}]);
    strange["metadata"]["managedFields"] = managed_by(FIELD_MANAGER);
    world.put(strange);
    world.all_report([1]);
    world.pass(5 * SECOND);
    let untouched = world
        .writes
        .iter()
        .all(|it| it.difference.ingress.is_none());
    assert!(untouched, "{:?}", world.writes);
    let condition = world.serving("web").unwrap();
    assert!(condition.starts_with("True InvalidSpec"), "{condition}");
}

#[test]
fn only_our_own_work_is_cleared_from_services_of_others() {
    let entries =
        json!([{"ip": "192.0.2.1", "ipMode": "Proxy", "ports": [{"port": 80, "protocol": "TCP"}]}]);
    for (manager, cleared) in [(FIELD_MANAGER, true), ("cloud-controller-manager", false)] {
        let mut world = World::new();
        let mut foreign = service("web");
        foreign["spec"]["loadBalancerClass"] = json!("example.com/other");
        foreign["metadata"]["managedFields"] = managed_by(manager);
        foreign["status"]["loadBalancer"]["ingress"] = entries.clone();
        world.put(foreign);
        world.live(1);
        world.pass(5 * SECOND);
        assert_eq!(world.advertised("web").is_empty(), cleared, "{manager}");
        assert_eq!(world.writes.len(), usize::from(cleared), "{manager}");
    }
}

#[test]
fn a_conflict_waits_for_the_watch() {
    let mut world = served();
    // Somebody writes the Service, and the watch is late.
    let seen_late = world.edit_unseen("web", |s| s["metadata"]["labels"] = json!({"a": "b"}));
    world.kill(2);
    world.pass(20 * SECOND);
    assert!(world.writes.is_empty());
    assert_eq!(world.conflicts, 1, "no blind retries");
    world.feed(seen_late);
    world.pass(SECOND);
    assert_eq!(world.advertised("web"), ["192.0.2.1:80"]);
}

#[test]
fn nothing_is_kept_of_a_deleted_service() {
    let mut world = served();
    world.delete("web");
    world.all_report([1, 2]);
    world.pass(10 * SECOND);
    assert!(world.writes.is_empty());
    assert!(world.events.is_empty());
    assert!(world.reconciler.facts().service(&key("web")).is_none());
}
