//! The condition `highwire.dev/Serving` over a Service's life, by the whole reconciler.

use std::time::Duration;

use highwire_api::names::{MAX_ADDRESSES_ANNOTATION, NODE_SELECTOR_ANNOTATION};
use serde_json::json;

use crate::objects::service;
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn who_has_no_address_says_why_for_as_long_as_it_is_so() {
    let mut world = World::new();
    world.put(service("web"));
    world.pass(SECOND);
    assert!(world.writes.is_empty(), "a new Service gets its time");
    world.pass(2 * SECOND);
    let said = world.serving("web").unwrap();
    let expected = "False NoNodes: Not advertised: no node is labelled highwire.dev/enabled=true";
    assert!(said.starts_with(expected), "{said}");
    assert_eq!(world.reasons(), ["NoReadyNodes"]);
    assert!(
        said.ends_with(&world.events[0].happened.note),
        "the same words"
    );
    world.pass(3600 * SECOND);
    assert_eq!((world.writes.len(), world.events.len()), (1, 1));

    let selector = |world: &mut World, text: &str| {
        let annotations = json!({NODE_SELECTOR_ANNOTATION: text});
        world.edit("web", |s| s["metadata"]["annotations"] = annotations);
        world.pass(3 * SECOND);
        world.serving("web").unwrap()
    };
    world.live(1);
    let said = selector(&mut world, "pool=edge");
    assert!(
        said.starts_with("False NodeSelectorMatchesNone: "),
        "{said}"
    );
    let said = selector(&mut world, "pool in edge");
    assert!(
        said.starts_with("False InvalidSpec: metadata.annotations"),
        "{said}"
    );
    let said = selector(&mut world, "!pool");
    assert!(said.starts_with("False NoReadyNodes: "), "{said}");
    assert!(said.contains("n1 (its agent has not caught up"), "{said}");

    let writes = world.writes.len();
    world.all_report([1]);
    world.pass(10 * SECOND);
    assert_eq!(world.advertised("web").len(), 1);
    assert_eq!(
        world.serving("web").unwrap(),
        "True Serving: it has addresses"
    );
    assert_eq!(
        world.writes.len(),
        writes + 1,
        "addresses and words in one write"
    );
    world.node(1, |node| node["metadata"]["labels"] = json!({}));
    world.pass(SECOND);
    assert!(
        world.serving("web").unwrap().starts_with("False"),
        "at once, now that it is there"
    );
}

#[test]
fn who_was_never_in_trouble_has_no_condition() {
    let mut world = World::new();
    world.live(1);
    world.put(service("web"));
    world.pass(SECOND);
    world.all_report([1]);
    world.pass(10 * SECOND);
    assert_eq!((world.serving("web"), world.writes.len()), (None, 1));
    // What passes within a moment is no trouble.
    for status in ["Unknown", "True"] {
        world.node(1, |node| {
            node["status"]["conditions"][0]["status"] = json!(status)
        });
        world.pass(SECOND);
    }
    world.pass(10 * SECOND);
    assert_eq!((world.serving("web"), world.writes.len()), (None, 3));
}

#[test]
fn an_unreadable_new_service_says_what_is_wrong_with_it() {
    let mut world = World::new();
    world.live(1);
    let mut wrong = service("web");
    wrong["metadata"]["annotations"] = json!({NODE_SELECTOR_ANNOTATION: "pool in edge"});
    world.put(wrong);
    world.pass(5 * SECOND);
    let said = world.serving("web").unwrap();
    assert!(said.starts_with("False InvalidSpec: "), "{said}");
    assert_eq!(world.writes.len(), 1);
}

#[test]
fn a_new_leader_says_nothing_twice() {
    let mut world = World::new();
    world.put(service("web"));
    world.pass(3 * SECOND);
    world.restart();
    world.list_nodes(|_| {});
    world.pass(10 * SECOND);
    assert_eq!(world.writes.len(), 1);
    assert_eq!(world.reasons(), ["NoReadyNodes"], "the condition says it");
}

#[test]
fn a_service_that_is_not_ours_any_more_does_not_say_what_was() {
    let mut world = World::new();
    world.put(service("web"));
    world.pass(3 * SECOND);
    world.edit("web", |s| s["spec"]["type"] = json!("ClusterIP"));
    world.pass(3 * SECOND);
    let said = world.serving("web").unwrap();
    assert!(said.starts_with("False NotOurs: "), "{said}");
    world.pass(60 * SECOND);
    assert_eq!(world.writes.len(), 2);
}

#[test]
fn no_more_nodes_are_listed_than_may_be_and_a_flap_changes_one_entry() {
    let mut world = World::new();
    (1..=200).for_each(|number| world.live(number));
    world.put(service("web"));
    world.all_report(1..=200);
    world.pass(5 * SECOND);
    assert_eq!(world.writes.len(), 1, "the words come with the addresses");
    let before = world.advertised("web");
    assert_eq!(before.len(), 64);
    let said = world.serving("web").unwrap();
    assert!(
        said.starts_with("True Limited: advertised at 64 nodes"),
        "{said}"
    );
    let note = &world.events[0].happened.note;
    assert!(
        note.ends_with("and 62 more, at 64 of 200 ready nodes"),
        "{note}"
    );

    for number in 1..=200 {
        let address = format!("192.0.2.{number}:80");
        let (listed, writes) = (before.contains(&address), world.writes.len());
        world.node(number, |node| {
            node["status"]["conditions"] = json!([{"type": "Ready", "status": "False"}])
        });
        world.pass(SECOND);
        let now = world.advertised("web");
        assert_eq!(
            world.writes.len() - writes,
            usize::from(listed),
            "{address}"
        );
        assert_eq!(
            now.iter().filter(|kept| before.contains(kept)).count(),
            64 - usize::from(listed)
        );
        assert!(now.len() == 64 && !now.contains(&address));
        world.node(number, |_| {});
        world.pass(SECOND);
        assert_eq!(world.advertised("web"), before);
    }

    world.edit("web", |s| {
        s["metadata"]["annotations"] = json!({MAX_ADDRESSES_ANNOTATION: "3"})
    });
    world.pass(SECOND);
    let few = world.advertised("web");
    assert!(few.len() == 3 && few.iter().all(|address| before.contains(address)));
    world.edit("web", |s| {
        s["metadata"]["annotations"] = json!({MAX_ADDRESSES_ANNOTATION: "200"})
    });
    world.pass(SECOND);
    assert_eq!(
        world.advertised("web").len(),
        200,
        "nobody has to observe that"
    );
    assert_eq!(
        world.serving("web").unwrap(),
        "True Serving: it has addresses"
    );
}

#[test]
fn agents_that_catch_up_get_more_time_than_those_that_are_not_ready() {
    let mut world = World::new();
    world.live(1);
    world.put(service("web"));
    world.pass(10 * SECOND);
    assert_eq!(world.serving("web"), None, "n1 has not observed it yet");
    world.all_report([1]);
    world.pass(SECOND);
    assert_eq!(world.writes.len(), 1);
    // One that never does is named in the end.
    world.put(service("late"));
    world.pass(20 * SECOND);
    let said = world.serving("late").unwrap();
    assert!(said.contains("n1 (its agent has not caught up"), "{said}");
}
