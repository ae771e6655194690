//! Agents that fall silent, one by one or together, by the whole reconciler.

use std::time::Duration;

use highwire_api::names::NODE_SELECTOR_ANNOTATION;
use serde_json::json;

use highwire_controller::config::Policy;

use crate::objects::service;
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn agents_that_fall_silent_together_stay_until_their_nodes_do_too() {
    let mut world = World::new();
    world.put(service("web"));
    (1..=9).for_each(|number| world.live(number));
    world.pass(SECOND);
    world.writes.clear();
    // The API server throttles the agents, and no one else, for five minutes.
    (1..=4).for_each(|number| world.kill(number));
    world.pass(300 * SECOND);
    assert!(world.writes.is_empty(), "{:?}", world.writes);
    world.put(service("new"));
    world.all_report(1..=9);
    world.pass(SECOND);
    let new = world.advertised("new").len();
    assert_eq!(new, 5, "nobody silent begins anything");

    // Two are dead indeed: the node lifecycle controller says so.
    for number in [1, 2] {
        world.node(number, |node| {
            node["status"]["conditions"][0]["status"] = json!("Unknown")
        });
    }
    world.pass(SECOND);
    assert_eq!(world.advertised("web").len(), 7);
    // One comes back, and who is then alone in its silence is dead.
    world.renews(3);
    world.pass(SECOND);
    assert_eq!(world.advertised("new").len(), 6);
    world.pass(13 * SECOND);
    assert_eq!(world.advertised("web").len(), 6);
}

#[test]
fn one_of_two_and_one_of_three_die_as_ever() {
    for nodes in [2, 3] {
        let mut world = World::new();
        world.put(service("web"));
        (1..=nodes).for_each(|number| world.live(number));
        world.pass(SECOND);
        world.kill(1);
        world.pass(15 * SECOND);
        assert_eq!(world.advertised("web").len(), usize::from(nodes) - 1);
    }
}

#[test]
fn a_node_nobody_vouches_for_is_dead_when_its_agent_is() {
    let mut world = World::new();
    world.put(service("web"));
    (1..=4).for_each(|number| world.live(number));
    for number in [1, 2] {
        world.node(number, |node| node["status"]["conditions"] = json!([]));
    }
    world.pass(SECOND);
    [1, 2].into_iter().for_each(|number| world.kill(number));
    world.pass(15 * SECOND);
    assert_eq!(world.advertised("web").len(), 2);
}

#[test]
fn where_kube_proxy_fails_nothing_goes_and_nothing_is_added() {
    let mut world = World::new();
    world.put(service("old"));
    [1, 2].into_iter().for_each(|number| world.live(number));
    world.pass(SECOND);
    let version = world.version();
    world.report(1, version, |report| {
        report["status"]["conditions"][0]["status"] = json!("False");
        report["status"]["conditions"][0]["reason"] = json!("ServiceProxyFailing");
    });
    world.put(service("new"));
    world.all_report([2]);
    world.pass(SECOND);
    assert_eq!(world.advertised("old").len(), 2);
    assert_eq!(world.advertised("new").len(), 1);
    // A failing kube-proxy is no excuse for an agent that is dead.
    world.kill(1);
    world.pass(15 * SECOND);
    assert_eq!(world.advertised("old").len(), 1);
}

#[test]
fn a_list_that_silence_would_empty_is_held() {
    let alone = |policy| {
        let mut world = World::with(policy);
        world.put(service("web"));
        world.live(1);
        world.pass(SECOND);
        world.writes.clear();
        world
    };
    let mut world = alone(Policy::default());
    world.kill(1);
    world.pass(40 * SECOND);
    assert!(world.writes.is_empty(), "{:?}", world.writes);
    world.pass(5 * SECOND);
    assert!(world.advertised("web").is_empty(), "but not longer");

    // Who comes back in time was never away.
    let mut world = alone(Policy::default());
    world.kill(1);
    world.pass(30 * SECOND);
    world.renews(1);
    world.pass(60 * SECOND);
    assert!(world.writes.is_empty(), "{:?}", world.writes);

    let mut world = alone(Policy {
        empty_hold: Duration::ZERO,
        ..Policy::default()
    });
    world.kill(1);
    world.pass(15 * SECOND);
    assert!(world.advertised("web").is_empty(), "no hold was asked for");
}

#[test]
fn a_list_is_not_held_for_a_node_that_is_proven_gone() {
    type Proof = fn(&mut World);
    let proofs: [(&str, Proof); 8] = [
        ("deleted", |w| w.delete_node(1)),
        ("opted out", |w| {
            w.node(1, |node| node["metadata"]["labels"] = json!({}));
        }),
        ("being deleted", |w| {
            w.node(1, |node| {
                node["metadata"]["deletionTimestamp"] = json!("2026-01-02T03:04:05Z")
            });
        }),
        ("not Ready", |w| {
            w.node(1, |node| {
                node["status"]["conditions"][0]["status"] = json!("Unknown")
            });
        }),
        ("its agent says so", |w| {
            w.report(1, w.version(), |report| {
                report["status"]["conditions"][0]["status"] = json!("False");
            });
        }),
        ("withdrawn", |w| {
            w.delete_report(1);
            w.delete_lease(1);
        }),
        ("not selected", |w| {
            w.edit("web", |s| {
                s["metadata"]["annotations"] = json!({NODE_SELECTOR_ANNOTATION: "pool=edge"});
            });
        }),
        ("unsupported", |w| {
            w.edit("web", |s| s["spec"]["clusterIPs"] = json!(["None"]));
        }),
    ];
    for (what, proof) in proofs {
        let mut world = World::new();
        world.put(service("web"));
        world.live(1);
        world.pass(SECOND);
        // First it falls silent, so that the list is held.
        world.kill(1);
        world.pass(20 * SECOND);
        assert_eq!(world.advertised("web").len(), 1, "{what}");
        proof(&mut world);
        world.pass(SECOND);
        assert!(world.advertised("web").is_empty(), "{what}");
    }
}

#[test]
fn a_report_that_somebody_deletes_empties_no_list() {
    let mut world = World::new();
    world.put(service("web"));
    world.live(1);
    world.pass(SECOND);
    world.writes.clear();
    world.delete_report(1);
    world.pass(5 * SECOND);
    world.all_report([1]);
    world.pass(5 * SECOND);
    assert!(world.writes.is_empty(), "{:?}", world.writes);
}
