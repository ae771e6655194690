//! Conflicts from the agents' reports to the Services' status and Events, by the whole
//! reconciler.

use std::time::Duration;

use highwire_api::names::{EXCLUDE_LABEL, FIELD_MANAGER};
use serde_json::{Value, json};

use highwire_controller::facts::service::PORTS_ERROR;
use kube::runtime::events::EventType;

use crate::objects::{key, managed_by, service};
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn conflict(service: &str, port: u16, reason: &str, held_by: &str) -> Value {
    json!({"service": format!("shop/{service}"), "protocol": "TCP", "port": port,
           "reason": reason, "heldBy": held_by})
}

fn by_old(service: &str) -> Value {
    conflict(service, 80, "HeldByService", "Service shop/old")
}

impl World {
    /// The node reports these conflicts, having observed everything.
    fn refuses(&mut self, number: u8, conflicts: &[Value]) {
        self.report(number, self.version(), |report| {
            report["status"]["conflicts"] = json!(conflicts);
        });
    }

    fn all_refuse(&mut self, numbers: impl IntoIterator<Item = u8>, conflicts: &[Value]) {
        numbers
            .into_iter()
            .for_each(|number| self.refuses(number, conflicts));
    }
}

/// A Service that five live nodes refuse because of `shop/old`.
fn refused() -> World {
    let mut world = World::new();
    world.put(service("young"));
    (1..=5).for_each(|number| world.live(number));
    world.all_refuse(1..=5, &[by_old("young")]);
    world.pass(5 * SECOND);
    world
}

#[test]
fn a_refused_service_has_one_event_one_condition_and_no_address() {
    let mut world = refused();
    let said = "80/TCP is held by Service shop/old on n1, n2 and 3 more nodes";
    assert_eq!(
        world.condition("young").unwrap(),
        format!("True HeldByService: {said}")
    );
    assert!(world.advertised("young").is_empty());
    assert_eq!(
        world.reasons(),
        ["PortConflict"],
        "it explains the lack of nodes"
    );
    let event = &world.events[0].happened;
    assert_eq!(event.type_, EventType::Warning);
    assert_eq!(
        event.note,
        format!("{said}; the Service is not served there")
    );
    assert_eq!(world.writes.len(), 1);

    world.all_refuse(1..=5, &[by_old("young")]);
    world.list_nodes(|world| {
        (1..=5).for_each(|number| world.live(number));
        world.all_refuse(1..=5, &[by_old("young")]);
    });
    world.pass(30 * SECOND);
    assert_eq!((world.writes.len(), world.events.len()), (1, 1));
}

#[test]
fn when_the_port_is_free_one_write_says_so() {
    let mut world = refused();
    world.all_refuse(1..=5, &[]);
    world.pass(5 * SECOND);
    assert_eq!(world.advertised("young").len(), 5);
    assert_eq!(
        world.condition("young").unwrap(),
        "False NoPortConflicts: no node refuses a port"
    );
    assert_eq!(world.writes.len(), 2);
    assert_eq!(
        world.reasons(),
        [
            "PortConflict",
            "PortConflictResolved",
            "LoadBalancerUpdated"
        ]
    );
    assert_eq!(world.events[1].happened.type_, EventType::Normal);

    let first = world.events[0].id.clone();
    world.all_refuse(1..=5, &[by_old("young")]);
    world.pass(5 * SECOND);
    assert_eq!(
        world.reasons()[3..],
        ["LoadBalancerUpdated", "PortConflict"]
    );
    let again = &world.events[4];
    assert_ne!(again.id, first, "or the API server would refuse the second");
}

#[test]
fn another_holder_is_an_event_and_no_release() {
    let mut world = refused();
    let socket = conflict("young", 80, "HostListener", "socket 0.0.0.0:80 uid 0");
    world.refuses(1, &[socket]);
    world.all_refuse(2..=5, &[]);
    world.pass(5 * SECOND);
    assert_eq!(world.notes("PortConflict").len(), 2);
    assert!(world.notes("PortConflictResolved").is_empty());
    assert_eq!(
        world.condition("young").unwrap(),
        "True HostListener: 80/TCP is held by socket 0.0.0.0:80 uid 0 on n1"
    );
    assert_eq!(world.advertised("young").len(), 4);
    let mut written = world.writes.iter().flat_map(|w| &w.difference.ports_error);
    assert!(
        written.all(|condition| condition.status == "True"),
        "not even for a moment"
    );
    world.refuses(1, &[]);
    world.pass(5 * SECOND);
    assert_eq!(
        world.notes("PortConflictResolved"),
        ["No node refuses a port any more"]
    );
}

#[test]
fn more_nodes_with_the_same_cause_are_few_writes_and_no_event() {
    let mut world = World::new();
    world.put(service("young"));
    for number in 1..=100 {
        world.live(number);
        world.refuses(number, &[by_old("young")]);
        world.pass(20 * MS);
    }
    world.pass(5 * SECOND);
    assert!(world.writes.len() <= 6, "{} writes", world.writes.len());
    assert_eq!(world.reasons(), ["PortConflict"]);
    assert!(
        world
            .condition("young")
            .unwrap()
            .ends_with("n1, n10 and 98 more nodes")
    );
}

#[test]
fn a_new_leader_repeats_nothing_and_says_what_is_resolved() {
    for resolved in [false, true] {
        let mut world = refused();
        world.restart();
        world.list_nodes(|world| {
            (1..=5).for_each(|number| world.live(number));
            if !resolved {
                // The agents reported long before the version this controller sees first.
                (1..=5).for_each(|number| {
                    world.report(number, 1, |report| {
                        report["status"]["conflicts"] = json!([by_old("young")]);
                    });
                });
            }
        });
        world.pass(5 * SECOND);
        let more: &[&str] = if resolved {
            &["PortConflictResolved", "LoadBalancerUpdated"]
        } else {
            &[]
        };
        assert_eq!(world.reasons()[1..], *more);
        assert_eq!(world.writes.len(), 1 + usize::from(resolved));
    }
}

#[test]
fn a_dead_nodes_refusal_ends_with_its_lease_and_a_restart_does_not_bring_it_back() {
    let mut world = World::new();
    world.put(service("young"));
    (1..=2).for_each(|number| world.live(number));
    world.refuses(1, &[]);
    world.refuses(2, &[by_old("young")]);
    world.pass(5 * SECOND);
    assert!(world.condition("young").unwrap().starts_with("True"));
    world.kill(2);
    world.pass(20 * SECOND);
    assert!(world.condition("young").unwrap().starts_with("False"));
    let (writes, said) = (world.writes.len(), world.events.len());

    world.restart();
    world.list_nodes(|world| {
        world.live(1);
        world.node(2, |_| {});
        world.refuses(2, &[by_old("young")]);
        world.lease_of(2, 60 * SECOND, None);
    });
    world.pass(30 * SECOND);
    assert_eq!((world.writes.len(), world.events.len()), (writes, said));
}

#[test]
fn only_nodes_that_are_asked_count_and_they_count_unadvertised() {
    let mut world = World::new();
    let mut young = service("young");
    young["metadata"]["annotations"] = json!({"highwire.dev/node-selector": "pool=edge"});
    world.put(young);
    world.live(1);
    world.refuses(1, &[by_old("young")]);
    world.pass(3 * SECOND);
    assert_eq!(world.condition("young"), None);
    assert_eq!(world.reasons(), ["NoReadyNodes"]);
    world.node(1, |node| {
        node["metadata"]["labels"]["pool"] = json!("edge");
        node["metadata"]["labels"][EXCLUDE_LABEL] = json!("");
    });
    world.pass(3 * SECOND);
    assert!(world.condition("young").is_some());
    world.kill(1);
    world.live(2);
    world.pass(20 * SECOND);
    assert!(world.condition("young").unwrap().starts_with("False"));
}

#[test]
fn a_changed_service_is_refused_only_by_who_has_seen_the_change() {
    let mut world = refused();
    world.edit("young", |s| s["spec"]["ports"] = json!([{"port": 81}]));
    world.pass(5 * SECOND);
    assert_eq!(world.writes.len(), 1, "nobody has answered yet");
    world.all_refuse(1..=5, &[conflict("young", 81, "NodePort", "Service a/b")]);
    world.pass(5 * SECOND);
    assert_eq!(world.writes.len(), 2);
    let said = world.notes("PortConflict");
    assert!(said.len() == 2 && said[1].starts_with("81/TCP is held by Service a/b on n1"));
    assert!(
        world.notes("PortConflictResolved").is_empty(),
        "it is refused still"
    );
    // Deleted and made anew: what is reported of the old one says nothing of the new.
    world.delete("young");
    let mut new = service("young");
    new["metadata"]["uid"] = json!("another");
    world.put(new);
    world.pass(5 * SECOND);
    assert_eq!(world.condition("young"), None);
}

#[test]
fn conditions_of_others_stay_and_generations_are_written() {
    let mut world = World::new();
    let mut young = service("young");
    let foreign = json!({"type": "example.com/Ready", "status": "True", "reason": "Yes",
                         "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z"});
    young["status"]["conditions"] = json!([foreign]);
    young["metadata"]["generation"] = json!(3);
    world.put(young);
    world.live(1);
    world.refuses(1, &[by_old("young")]);
    world.pass(3 * SECOND);
    let conditions = &world.services()[&key("young")]["status"]["conditions"];
    assert_eq!(conditions[0], foreign);
    assert_eq!(
        (&conditions[1]["type"], &conditions[1]["observedGeneration"]),
        (&json!(PORTS_ERROR), &json!(3))
    );
}

#[test]
fn a_service_that_stops_being_ours_is_not_left_with_a_true_condition() {
    for (manager, cleared) in [(FIELD_MANAGER, true), ("cloud-controller-manager", false)] {
        let mut world = refused();
        world.edit("young", |s| {
            s["spec"]["type"] = json!("NodePort");
            s["metadata"]["managedFields"] = managed_by(manager);
        });
        world.pass(5 * SECOND);
        let condition = world.condition("young").unwrap();
        assert_eq!(
            condition.starts_with("False"),
            cleared,
            "{manager}: {condition}"
        );
        assert_eq!(world.reasons(), ["PortConflict"]);
    }
}

#[test]
fn a_service_that_another_load_balancer_takes_is_not_left_with_a_true_condition() {
    let mut world = refused();
    world.writes.clear();
    world.edit("young", |s| {
        let ours = s["metadata"]["managedFields"][0].clone();
        let theirs = json!({
            "manager": "cloud", "operation": "Update", "subresource": "status",
            "fieldsV1": {"f:status": {"f:loadBalancer": {"f:ingress": {}}}},
        });
        s["metadata"]["managedFields"] = json!([ours, theirs]);
        s["metadata"]["managedFields"][0]["fieldsV1"]["f:status"]
            .as_object_mut()
            .unwrap()
            .remove("f:loadBalancer");
        s["status"]["loadBalancer"]["ingress"] = json!([{"ip": "198.51.100.77"}]);
    });
    world.pass(5 * SECOND);
    let condition = world.condition("young").unwrap();
    assert!(condition.starts_with("False"), "{condition}");
    let ingress = &world.services()[&key("young")]["status"]["loadBalancer"]["ingress"];
    assert_eq!(ingress, &json!([{"ip": "198.51.100.77"}]));
    assert_eq!(world.writes.len(), 1);
    assert_eq!(
        world.writes[0].difference.ingress, None,
        "its addresses are not touched"
    );
}

#[test]
fn another_reason_beside_refused_ports_is_said_too() {
    let mut world = World::new();
    world.put(service("young"));
    world.live(1);
    world.refuses(1, &[by_old("young")]);
    world.node(2, |_| {});
    world.pass(5 * SECOND);
    assert_eq!(world.reasons(), ["PortConflict", "NoReadyNodes"]);
    let note = world.notes("NoReadyNodes")[0];
    assert!(
        note.contains("n1 (80/TCP is held by") && note.contains("n2 (its agent"),
        "{note}"
    );
}

#[test]
fn a_thousand_services_for_one_port_cost_one_write_and_one_event_each() {
    let mut world = World::new();
    let name = |number: usize| format!("s{number:03}");
    (0..1000).for_each(|number| world.put(service(&name(number))));
    (1..=3).for_each(|number| world.node(number, |_| {}));
    let losers: Vec<Value> = (1..1000)
        .map(|loser| {
            conflict(
                &name(loser),
                80,
                "HeldByService",
                &format!("Service shop/{}", name(0)),
            )
        })
        .collect();
    // The agents answer one after the other.
    for number in 1..=3 {
        world.renews(number);
        world.refuses(number, &losers);
        world.pass(100 * MS);
    }
    world.pass(10 * SECOND);
    assert_eq!(world.advertised(&name(0)).len(), 3);
    let won = world
        .writes
        .iter()
        .filter(|write| write.key == key(&name(0)))
        .count();
    assert!(won <= 2, "{won} writes for the winner");
    assert_eq!(world.writes.len() - won, 999);
    assert_eq!(world.notes("PortConflict").len(), 999);
    assert_eq!(
        world.reasons().len(),
        1000,
        "the winner has LoadBalancerUpdated only"
    );
    let said = world.events.iter().filter(|said| said.key == key(&name(0)));
    assert_eq!(said.count(), 1);

    // Nothing more happens, and nobody is woken for nothing.
    world.pass(60 * SECOND);
    assert_eq!(world.writes.len() - won, 999);
    let next = world.reconciler.next_turn(true).unwrap();
    assert!(next > world.now.instant + SECOND, "only Leases wake it");
}

#[test]
fn a_service_that_a_report_only_names_as_refused_is_not_listed() {
    let mut world = World::new();
    world.put(service("young"));
    world.live(1);
    world.report(1, world.version(), |report| {
        report["status"]["refused"] = json!(["shop/young"]);
    });
    world.pass(5 * SECOND);
    assert!(world.advertised("young").is_empty());
    world.refuses(1, &[]);
    world.pass(5 * SECOND);
    assert_eq!(world.advertised("young").len(), 1);
}
