//! An uninstall, by the whole reconciler: what Highwire wrote goes, and nothing else.

use std::time::Duration;

use highwire_controller::leading::Role;
use serde_json::{Value, json};

use crate::objects::{key, managed_by, service};
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);

fn status(world: &World, name: &str) -> Value {
    world.services()[&key(name)]["status"].clone()
}

#[test]
fn what_highwire_wrote_goes_and_what_others_wrote_stays() {
    let mut world = World::new();
    world.put(service("web"));
    world.put(service("refused"));
    let theirs = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.77"}]}, "conditions": []});
    let mut foreign = service("foreign");
    foreign["metadata"]["managedFields"] = managed_by("cloud");
    foreign["status"] = theirs.clone();
    world.put(foreign);
    world.live(1);
    world.report(1, world.version(), |report| {
        report["status"]["conflicts"] = json!([{
            "service": "shop/refused", "protocol": "TCP", "port": 80,
            "reason": "HostListener", "heldBy": "socket 0.0.0.0:80",
        }]);
    });
    world.pass(5 * SECOND);
    assert!(world.condition("refused").is_some() && !world.advertised("web").is_empty());
    world.edit("refused", |s| {
        let conditions = s["status"]["conditions"].as_array_mut().unwrap();
        conditions.push(json!({"type": "Theirs", "status": "True", "reason": "R",
                               "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z"}));
    });
    world.events.clear();

    world.reconciler.begin(Role::Leave);
    assert!(!world.reconciler.has_left());
    world.pass(SECOND);
    assert!(world.reconciler.has_left());
    assert!(world.advertised("web").is_empty());
    assert!(world.condition("refused").is_none());
    let kept = &status(&world, "refused")["conditions"];
    assert_eq!(kept[0]["type"], "Theirs");
    assert_eq!(kept.as_array().unwrap().len(), 1);
    assert_eq!(status(&world, "foreign"), theirs);
    assert!(world.events.is_empty(), "{:?}", world.events);

    // Whoever comes too late to write again is cleared too.
    let writes = world.writes.len();
    world.pass(60 * SECOND);
    assert_eq!(world.writes.len(), writes, "once is enough");
}

#[test]
fn a_follower_that_must_clear_after_a_dead_leader_knows_what_is_left() {
    let mut world = World::new();
    world.put(service("web"));
    world.live(1);
    world.all_report([1]);
    world.pass(SECOND);
    world.restart();
    world.reconciler.begin(Role::Follow);
    world.pass(SECOND);
    assert!(!world.advertised("web").is_empty());
    world.reconciler.begin(Role::Leave);
    world.list_nodes(|_| {});
    world.pass(SECOND);
    assert!(world.advertised("web").is_empty() && world.reconciler.has_left());
}

#[test]
fn who_may_not_write_any_more_has_left() {
    let mut world = World::new();
    world.put(service("web"));
    world.live(1);
    world.all_report([1]);
    world.pass(SECOND);
    world.reconciler.begin(Role::Leave);
    world.reconciler.turn(world.now);
    let later = highwire_controller::liveness::Now {
        instant: world.now.instant + SECOND,
        ..world.now
    };
    let write = world.reconciler.next_write(later).unwrap();
    assert!(!world.reconciler.has_left());
    let refused = highwire_controller::status_write::WriteResult::Forbidden;
    world.reconciler.finish(&write, refused, later);
    assert!(world.reconciler.has_left());
}
