//! `externalTrafficPolicy: Local`: the ingress follows the ready endpoints.

use std::time::Duration;

use highwire_controller::{facts::Input, leading::Role, reconciler::Reconciler};
use kube::runtime::watcher::Event;
use serde_json::json;

use crate::{
    objects::{key, object, service},
    world::World,
};

const SECOND: Duration = Duration::from_secs(1);

/// A Service with `externalTrafficPolicy: Local` on two live nodes.
fn local() -> World {
    let mut world = World::new();
    let mut web = service("web");
    web["spec"]["externalTrafficPolicy"] = json!("Local");
    web["spec"]["ports"] = json!([{"port": 80, "nodePort": 30080}]);
    world.put(web);
    world.live(1);
    world.live(2);
    world
}

#[test]
fn with_a_local_policy_the_ingress_follows_the_ready_endpoints() {
    let mut world = local();
    world.pass(5 * SECOND);
    assert!(world.advertised("web").is_empty());
    assert_eq!(world.reasons(), ["NoReadyNodes"]);
    let note = &world.events[0].happened.note;
    assert!(note.contains("n1 (it has no ready endpoint"), "{note}");
    let mut writes = world.writes.len();
    for (nodes, addresses) in [
        (&[1][..], &["192.0.2.1:80"][..]),
        (&[1, 2], &["192.0.2.1:80", "192.0.2.2:80"]),
        (&[2], &["192.0.2.2:80"]),
        (&[], &[]),
    ] {
        world.endpoints("web", nodes);
        world.pass(SECOND);
        assert_eq!(world.advertised("web"), addresses);
        writes += 1;
        assert_eq!(world.writes.len(), writes, "one change is one write");
    }
}

#[test]
fn with_a_local_policy_only_addresses_of_the_endpoints_family_are_listed() {
    let mut world = local();
    world.endpoints("web", &[1, 2]);
    world.edit("web", |s| {
        s["spec"]["clusterIPs"] = json!(["10.96.0.10", "fd00:96::a"])
    });
    world.all_report([1, 2]);
    world.pass(SECOND);
    assert_eq!(world.advertised("web"), ["192.0.2.1:80", "192.0.2.2:80"]);
}

#[test]
fn a_new_leader_knows_the_endpoints_before_it_takes_a_node_away() {
    let mut world = local();
    world.endpoints("web", &[1, 2]);
    world.pass(SECOND);
    assert_eq!(world.advertised("web").len(), 2);
    world.writes.clear();

    world.reconciler = Reconciler::default();
    world.reconciler.begin(Role::Lead);
    let web = object(&world.services()[&key("web")]);
    for event in [Event::Init, Event::InitApply(web), Event::InitDone] {
        world.feed(Input::Service(Box::new(event)));
    }
    world.list_nodes(|world| [1, 2].into_iter().for_each(|number| world.live(number)));
    world.pass(SECOND);
    assert!(world.writes.is_empty(), "{:?}", world.writes);
    world.list_endpoints([("web", &[1, 2][..])]);
    world.pass(SECOND);
    assert!(world.writes.is_empty(), "{:?}", world.writes);
}
