//! Services of boxes outside the cluster: what the LoadBalancer says becomes the Service's
//! status.

use std::time::Duration;

use highwire_controller::facts::Input;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

use crate::{
    objects::{object, service},
    world::World,
};

const SECOND: Duration = Duration::from_secs(1);

fn external() -> Value {
    let mut service = service("web");
    service["spec"]["loadBalancerClass"] = json!("highwire.dev/external");
    service["spec"]["ports"][0]["nodePort"] = json!(30080);
    service
}

/// What the leader has written for the Service of that UID, with this status.
fn load_balancer(world: &mut World, uid: &str, status: &Value) {
    let object = object(&json!({
        "apiVersion": "highwire.dev/v1alpha1", "kind": "LoadBalancer",
        "metadata": {
            "name": "web", "namespace": "shop",
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Service", "name": "web", "uid": uid},
            ],
        },
        "spec": {"externalLoadBalancer": "edge", "ports": [
            {"port": 80, "protocol": "TCP", "boxPort": 9080},
        ]},
        "status": status,
    }));
    world.feed(Input::LoadBalancer(Box::new(Event::Apply(object))));
}

fn condition(type_: &str, reason: &str, message: &str) -> Value {
    let status = if message.is_empty() { "True" } else { "False" };
    json!({"type": type_, "status": status, "reason": reason, "message": message,
           "lastTransitionTime": "2026-01-02T03:04:05Z"})
}

fn served() -> Value {
    json!({
        "addresses": ["lb.example", "203.0.113.9"],
        "conditions": [condition("Accepted", "Accepted", ""), condition("Ready", "Serving", "")],
    })
}

fn world() -> World {
    let mut world = World::new();
    for event in [Event::Init, Event::InitDone] {
        world.feed(Input::LoadBalancer(Box::new(event)));
    }
    world.live(1);
    world.put(external());
    world
}

fn ingress(world: &World) -> Value {
    let write = world.writes.iter().rev();
    let mut ingress = write.filter_map(|it| it.difference.ingress.as_ref());
    json!(ingress.next().unwrap().to_api(highwire_api::Family::V4))
}

#[test]
fn what_the_box_serves_is_listed_and_no_node_is() {
    let mut world = world();
    world.pass(SECOND);
    assert!(world.writes.is_empty(), "the node's agent is not asked");
    load_balancer(&mut world, "uid-web", &served());
    world.pass(SECOND);
    let ports = json!([{"port": 80, "protocol": "TCP"}]);
    assert_eq!(
        ingress(&world),
        json!([
            {"ip": "203.0.113.9", "ipMode": "Proxy", "ports": ports},
            {"hostname": "lb.example", "ports": ports},
        ])
    );
    let said = &world.events[0].happened.note;
    assert!(said.ends_with(", 80/TCP there as port 9080"), "{said}");
    world.pass(3600 * SECOND);
    assert_eq!(world.writes.len(), 1, "it is read back as it was written");
}

#[test]
fn a_load_balancer_of_another_service_of_that_name_does_not_count() {
    let mut world = world();
    load_balancer(&mut world, "uid-before", &served());
    world.pass(SECOND);
    assert!(world.writes.is_empty());
    world.pass(2 * SECOND);
    let said = world.serving("web").unwrap();
    assert!(said.starts_with("False Waiting: "), "{said}");
    assert_eq!(world.reasons(), [""; 0], "to wait is no trouble");
}

#[test]
fn trouble_is_said_once_and_goes_with_the_addresses() {
    let mut world = world();
    let failing = json!({"conditions": [
        condition("Accepted", "Accepted", ""),
        condition("Ready", "UpdaterFailing", "the updater answered 500: disk full"),
    ]});
    load_balancer(&mut world, "uid-web", &failing);
    world.pass(3 * SECOND);
    let said = world.serving("web").unwrap();
    let expected = "False UpdaterFailing: Not advertised: the updater answered 500: disk full";
    assert_eq!(said, expected);
    assert_eq!(world.reasons(), ["UpdaterFailing"]);
    load_balancer(&mut world, "uid-web", &served());
    world.pass(SECOND);
    assert_eq!(
        world.serving("web").unwrap(),
        "True Serving: it has addresses"
    );

    // While its updater fails the box still has what it had.
    let mut both = served();
    both["conditions"][1] = failing["conditions"][1].clone();
    load_balancer(&mut world, "uid-web", &both);
    let writes = world.writes.len();
    world.pass(10 * SECOND);
    assert_eq!(world.writes.len(), writes);

    // It no longer gets what it asks for, and keeps what it has.
    let mut refused = served();
    let message = "there is no ExternalLoadBalancer of this name";
    refused["conditions"][0] = condition("Accepted", "NoExternalLoadBalancer", message);
    load_balancer(&mut world, "uid-web", &refused);
    world.pass(3 * SECOND);
    let said = world.serving("web").unwrap();
    let expected = "True NoExternalLoadBalancer: it keeps its addresses; there is no";
    assert!(said.starts_with(expected), "{said}");
    assert_eq!(world.reasons().last(), Some(&"NoExternalLoadBalancer"));

    load_balancer(
        &mut world,
        "uid-web",
        &json!({"conditions": [
            condition("Accepted", "Accepted", ""),
            condition("Ready", "NoTargets", "no node could answer"),
        ]}),
    );
    world.pass(3 * SECOND);
    assert_eq!(ingress(&world), json!([]));
    assert!(world.serving("web").unwrap().starts_with("False NoTargets"));
}

#[test]
fn a_port_that_another_service_has_is_a_port_conflict() {
    let mut world = world();
    let mut status = json!({
        "conditions": [
            condition("Accepted", "PortConflict", "80/TCP is held by Service shop/old"),
            condition("Ready", "PortConflict", "80/TCP is held by Service shop/old"),
        ],
        "conflicts": [{"protocol": "TCP", "port": 80, "heldBy": "Service shop/old"}],
    });
    load_balancer(&mut world, "uid-web", &status);
    world.pass(3 * SECOND);
    let said = &world.events[0].happened;
    assert_eq!(said.reason, "PortConflict");
    let expected = "80/TCP is held by Service shop/old on ExternalLoadBalancer edge";
    assert!(said.note.starts_with(expected), "{}", said.note);
    status = served();
    load_balancer(&mut world, "uid-web", &status);
    world.pass(3 * SECOND);
    assert_eq!(
        world.reasons(),
        [
            "PortConflict",
            "PortConflictResolved",
            "LoadBalancerUpdated"
        ]
    );
}

#[test]
fn a_port_that_a_program_of_the_box_has_is_said_in_its_words() {
    let mut world = world();
    let said = "80/TCP is held by socket 0.0.0.0:80 uid 33 on the box";
    load_balancer(
        &mut world,
        "uid-web",
        &json!({"conditions": [
            condition("Accepted", "Accepted", ""), condition("Ready", "PortConflict", said),
        ]}),
    );
    world.pass(3 * SECOND);
    let expected = format!("False PortConflict: Not advertised: {said}");
    assert_eq!(world.serving("web").unwrap(), expected);
    assert_eq!(world.notes("PortConflict"), [said]);
}

#[test]
fn a_node_whose_agent_falls_silent_is_known_in_time() {
    let mut world = world();
    for event in [Event::Init, Event::InitDone] {
        world.feed(Input::External(Box::new(event)));
    }
    world.live(2);
    world.pass(SECOND);
    let first = world.reconciler.take_snapshot().unwrap();
    assert_eq!((first.services.len(), first.silent.len()), (1, 0));
    world.kill(2);
    world.pass(20 * SECOND);
    let silent = world.reconciler.take_snapshot().unwrap().silent;
    assert_eq!(silent.into_iter().collect::<Vec<_>>(), ["n2"]);
    world.renews(2);
    assert!(world.reconciler.take_snapshot().unwrap().silent.is_empty());
    world.pass(20 * SECOND);
    assert!(
        world.reconciler.take_snapshot().is_none(),
        "nothing has changed"
    );
}
