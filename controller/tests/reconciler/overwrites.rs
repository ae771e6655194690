//! Services that other programs write to, by the whole reconciler.

use std::time::Duration;

use highwire_api::names::ADOPT_ANNOTATION;
use serde_json::json;

use crate::objects::{managed_by, service};
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);

/// Another load balancer's work in a Service's status.
fn taken_by(manager: &str, service: &mut serde_json::Value) {
    service["metadata"]["managedFields"] = managed_by(manager);
    service["status"]["loadBalancer"]["ingress"] =
        json!([{"ip": "198.51.100.77", "ipMode": "VIP", "ports": []}]);
}

#[test]
fn a_service_that_another_load_balancer_serves_is_left_alone_until_handed_over() {
    let mut world = World::new();
    world.live(1);
    let mut foreign = service("web");
    taken_by("cloud", &mut foreign);
    world.put(foreign);
    world.all_report([1]);
    world.pass(60 * SECOND);
    assert!(world.writes.is_empty(), "{:?}", world.writes);
    assert_eq!(world.reasons(), ["ManagedElsewhere"]);
    let note = &world.events[0].happened.note;
    assert!(
        note.contains("cloud") && note.contains("highwire.dev/adopt=true"),
        "{note}"
    );
    world.edit("web", |s| {
        s["metadata"]["annotations"] = json!({ADOPT_ANNOTATION: "true"});
    });
    world.all_report([1]);
    world.pass(SECOND);
    assert_eq!(world.advertised("web"), ["192.0.2.1:80"]);
}

#[test]
fn a_program_that_insists_gets_the_service() {
    for (case, replace) in [
        ("replaced", taken_by as fn(&str, &mut serde_json::Value)),
        ("removed", |_, s| {
            s["status"]["loadBalancer"]["ingress"] = json!([])
        }),
    ] {
        let mut world = World::new();
        world.live(1);
        let mut ours = service("web");
        ours["spec"]["loadBalancerClass"] = json!("highwire.dev/node");
        world.put(ours);
        world.all_report([1]);
        world.pass(5 * SECOND);
        assert_eq!(world.writes.len(), 1);
        for _ in 0..9 {
            world.edit("web", |s| replace("cloud", s));
            world.all_report([1]);
            world.pass(5 * SECOND);
        }
        assert_eq!(world.writes.len(), 2, "{case}: ours, and put back once");
        let said = world.reasons();
        let said = said.iter().filter(|reason| **reason == "ManagedElsewhere");
        assert_eq!(said.count(), 1, "{case}: {:?}", world.reasons());
        // Who edits the Service wants another try.
        world.edit("web", |s| s["spec"]["ports"] = json!([{"port": 81}]));
        world.all_report([1]);
        world.pass(5 * SECOND);
        assert_eq!(world.advertised("web"), ["192.0.2.1:81"], "{case}");
    }
}

#[test]
fn a_status_that_is_edited_now_and_then_is_put_back() {
    let mut world = World::new();
    world.live(1);
    world.put(service("web"));
    world.all_report([1]);
    world.pass(SECOND);
    for _ in 0..4 {
        world.edit("web", |s| {
            s["status"]["loadBalancer"]["ingress"] = json!([]);
        });
        world.all_report([1]);
        world.pass(700 * SECOND);
        assert_eq!(world.advertised("web"), ["192.0.2.1:80"]);
    }
}
