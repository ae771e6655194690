//! Writes that are carried out though their answer is lost.

use std::{collections::BTreeSet, time::Duration};

use highwire_controller::events::Happened;
use proptest::prelude::*;
use serde_json::json;

use crate::loss::{Fate, Loss};
use crate::objects::service;
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);

/// The answer is lost in each way, and the watch shows the write before and after the
/// writer gives up.
fn losses() -> impl Iterator<Item = Loss> {
    let times = [(SECOND, 10 * SECOND), (10 * SECOND, SECOND)];
    let fates = [Fate::NoAnswer, Fate::SentAgain].into_iter();
    fates.flat_map(move |fate| {
        times.map(|(seen, given_up)| Loss {
            fate,
            given_up,
            seen,
        })
    })
}

/// A Service on one node whose first write, that of its address, is lost that way.
fn after_losing(loss: Loss) -> World {
    let mut world = World::new();
    world.live(1);
    world.put(service("web"));
    world.all_report([1]);
    world.losses.extend([loss]);
    world.pass(30 * SECOND);
    world
}

#[test]
fn a_write_that_was_carried_out_is_announced_though_its_answer_is_lost() {
    for loss in losses() {
        let world = after_losing(loss);
        assert_eq!(world.advertised("web"), ["192.0.2.1:80"]);
        assert_eq!(world.writes.len(), 1, "{loss:?}");
        assert_eq!(world.reasons(), ["LoadBalancerUpdated"], "{loss:?}");
    }
}

#[test]
fn a_write_that_never_arrived_is_announced_when_it_is_repeated() {
    let world = after_losing(Loss {
        fate: Fate::Lost,
        given_up: SECOND,
        seen: SECOND,
    });
    assert_eq!(world.advertised("web"), ["192.0.2.1:80"]);
    assert_eq!(world.reasons(), ["LoadBalancerUpdated"]);
}

#[test]
fn a_write_is_announced_though_the_lease_is_lost_before_it_is_seen() {
    for loss in losses() {
        let mut world = World::new();
        world.live(1);
        world.put(service("web"));
        world.losses.extend([loss]);
        while world.writes.is_empty() {
            world.all_report([1]);
            world.pass(SECOND / 10);
        }
        world.lose_the_lease(20 * SECOND);
        assert_eq!(world.writes.len(), 1, "{loss:?}");
        assert_eq!(world.reasons(), ["LoadBalancerUpdated"], "{loss:?}");
    }
}

#[test]
fn a_write_without_an_answer_is_no_work_of_another_program() {
    for loss in losses() {
        let mut world = World::new();
        world.put(service("web"));
        for number in 1..=5 {
            world.live(number);
            // The first one is answered, so that the leader knows what it wrote.
            world.losses.extend((number > 1).then_some(loss));
            world.pass(30 * SECOND);
        }
        assert_eq!(world.advertised("web").len(), 5, "{loss:?}");
        assert!(
            !world.reasons().contains(&"ManagedElsewhere"),
            "{loss:?}: {:?}",
            world.reasons()
        );
    }
}

/// Something that makes the status of the one Service another.
#[derive(Clone, Debug)]
enum Happening {
    /// A node refuses it for that holder, or nobody.
    Refuse(u8, Option<u8>),
    /// The Node is Ready or not.
    Ready(u8, bool),
    /// It is edited, in what concerns the agents or not.
    Edit(u16),
    Label(u8),
    Pass(u16),
    /// The lease is lost for a while.
    Follow(u16),
    /// What becomes of the next write.
    Lose(Fate, u16, u16),
}

fn any_happening() -> impl Strategy<Value = Happening> {
    let node = || 1..3_u8;
    let fate = prop::sample::select(&[Fate::NoAnswer, Fate::SentAgain, Fate::Lost][..]);
    prop_oneof![
        4 => (node(), prop::option::of(0..3_u8)).prop_map(|(n, by)| Happening::Refuse(n, by)),
        2 => (node(), any::<bool>()).prop_map(|(n, on)| Happening::Ready(n, on)),
        1 => (80..83_u16).prop_map(Happening::Edit),
        1 => any::<u8>().prop_map(Happening::Label),
        8 => (1..5000_u16).prop_map(Happening::Pass),
        2 => (1..15_000_u16).prop_map(Happening::Follow),
        8 => (fate, 1..12_000_u16, 1..12_000_u16)
            .prop_map(|(fate, given_up, seen)| Happening::Lose(fate, given_up, seen)),
    ]
}

fn happen(world: &mut World, happening: &Happening) {
    let ms = |time: u16| Duration::from_millis(time.into());
    match *happening {
        Happening::Refuse(number, by) => world.report(number, world.version(), |report| {
            let conflict = |by| {
                json!({"service": "shop/web", "protocol": "TCP", "port": 80,
                       "reason": "HostListener", "heldBy": format!("socket {by}")})
            };
            report["status"]["conflicts"] = by.map(conflict).into_iter().collect();
        }),
        Happening::Ready(number, on) => world.node(number, |node| {
            let status = if on { "True" } else { "False" };
            node["status"]["conditions"][0]["status"] = json!(status);
        }),
        Happening::Edit(port) => {
            world.edit("web", |s| s["spec"]["ports"] = json!([{ "port": port }]));
        }
        Happening::Label(value) => {
            world.edit("web", |s| {
                s["metadata"]["labels"] = json!({"a": value.to_string()})
            });
        }
        Happening::Pass(time) => world.pass(ms(time)),
        Happening::Follow(time) => world.lose_the_lease(ms(time)),
        Happening::Lose(fate, given_up, seen) => world.losses.extend([Loss {
            fate,
            given_up: ms(given_up),
            seen: ms(seen),
        }]),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn each_write_that_was_carried_out_is_announced_once(
        happenings in prop::collection::vec(any_happening(), 1..60)
    ) {
        let mut world = World::new();
        world.put(service("web"));
        (1..=2).for_each(|number| world.live(number));
        for happening in &happenings {
            happen(&mut world, happening);
        }
        world.losses.clear();
        world.pass(60 * SECOND);
        let news = world.writes.iter().flat_map(|write| &write.news);
        let mut expected: Vec<&Happened> = news.collect();
        let mut said: Vec<&Happened> = world.events.iter().map(|event| &event.happened).collect();
        for list in [&mut expected, &mut said] {
            list.sort_by_key(|it| (it.reason, &it.note));
        }
        prop_assert_eq!(said, expected);
        let ids: BTreeSet<&String> = world.events.iter().map(|event| &event.id).collect();
        prop_assert_eq!(ids.len(), world.events.len(), "the API server takes each name once");
    }
}
