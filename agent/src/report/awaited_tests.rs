use highwire_api::{Family, PortKey, Protocol, service::TrafficPolicy};
use proptest::prelude::*;

use super::*;
use crate::{decide::Plan, facts::endpoints::ServicePortName};

/// A plan that forwards these TCP ports to the ClusterIP.
fn plan(ports: &[u16]) -> Plan {
    let forward = |port: &u16| {
        let slot = Slot {
            family: Family::V4,
            port: PortKey::new(Protocol::Tcp, i32::from(*port)).unwrap(),
        };
        let forward = Forward {
            target: Target::ClusterIp("10.96.0.10".parse().unwrap()),
            clients: None,
            port_name: ServicePortName {
                service: "shop/web".parse().unwrap(),
                port: format!("p{port}").into(),
            },
        };
        (slot, forward)
    };
    Plan {
        forwards: ports.iter().map(forward).collect(),
        ..Plan::default()
    }
}

fn decision(plan: Plan) -> Arc<Decision> {
    Arc::new(Decision {
        plan,
        ..Decision::default()
    })
}

/// kube-proxy's last sync ended so many seconds after the start, a change last came then, and
/// all syncs together took so long.
fn synced(last: f64, queued: f64, spent: f64) -> Syncs {
    let start: Timestamp = START.parse().unwrap();
    let sample = |name: &str, after: f64| {
        let seconds = start.as_second() as f64 + after;
        format!("kubeproxy_sync_proxy_rules_last_{name}timestamp_seconds {seconds}\n")
    };
    let spent = format!("kubeproxy_sync_proxy_rules_duration_seconds_sum {spent}\n");
    Syncs::parse(&(sample("", last) + &sample("queued_", queued) + &spent)).unwrap()
}

const START: &str = "2026-01-02T03:04:05Z";

struct World {
    awaited: Awaited,
    start: Now,
}

impl World {
    /// What kube-proxy had when the agent started: port 80.
    fn new() -> Self {
        let mut world = Self {
            awaited: Awaited::default(),
            start: Now {
                instant: Instant::now(),
                time: START.parse().unwrap(),
            },
        };
        world.plan(&[80], 5);
        world.awaited.still_missing(&BTreeSet::new());
        world
    }

    fn plan(&mut self, ports: &[u16], version: u64) {
        let version = ResourceVersion(version);
        self.awaited
            .plan(decision(plan(ports)), version, self.start);
    }

    fn observed(&mut self, version: u64) -> u64 {
        self.awaited.observed(ResourceVersion(version)).0
    }

    fn heard(&mut self, syncs: Option<&Syncs>, after: Duration) -> Vec<String> {
        let now = Now {
            instant: self.start.instant + after,
            time: self.start.time + after,
        };
        let given_up = self.awaited.heard(syncs, now);
        given_up
            .into_iter()
            .map(|it| it.port_name.port.to_string())
            .collect()
    }
}

#[test]
fn a_version_counts_once_kube_proxy_has_what_it_asks_for() {
    let mut world = World::new();
    assert_eq!(world.observed(5), 5);
    world.plan(&[80, 81], 7);
    world.plan(&[80, 81, 82], 9);
    assert_eq!((world.observed(9), world.awaited.count()), (5, 2));
    let mut missing = world.awaited.entrances();
    missing.retain(|entrance| &*entrance.port_name.port == "p82");
    world.awaited.still_missing(&missing);
    assert_eq!(world.observed(9), 7, "the first of the two changes");
    world.awaited.still_missing(&BTreeSet::new());
    assert_eq!(world.observed(9), 9);
    assert_eq!(world.awaited.pause(world.start.instant), None);
}

#[test]
fn what_is_no_longer_wanted_is_no_longer_awaited() {
    let mut world = World::new();
    world.plan(&[80, 81], 7);
    world.plan(&[80], 8);
    assert_eq!(world.observed(8), 8);
    // One that comes back is asked for anew: kube-proxy has dropped it in between.
    world.plan(&[], 9);
    world.plan(&[80], 10);
    assert_eq!(world.observed(10), 9);
}

#[test]
fn a_late_entrance_is_given_up_once_kube_proxy_has_programmed_all_it_can_know() {
    let early = LATE.checked_sub(Duration::from_millis(1)).unwrap();
    let after = |seconds: f64| Duration::from_secs_f64(seconds);
    // Whether it is given up after a time, by the last sync (when it began and ended) and
    // when a change last came, in seconds from when the Service was seen.
    for (now, (began, ended), queued, given_up) in [
        // A sync long enough after it.
        (early, (1.02, 1.1), 0.9, false),
        (LATE, (1.02, 1.1), 0.9, true),
        (LATE, (1.02, 1.1), 1.05, true),
        // Its endpoints may have come while this sync ran, …
        (LATE, (0.2, 1.1), 0.1, false),
        // … but not if kube-proxy is idle since.
        (after(1.1) + IDLE, (0.2, 1.1), 0.1, true),
        // This one ran already when a change came: one that takes as long may run now.
        (after(0.9) + IDLE, (-2.0, 0.9), 0.0, false),
        (after(9.6), (-2.0, 0.9), 0.0, false),
        // That would have ended: the last one was two, and the second knew the change.
        (after(9.8), (-2.0, 0.9), 0.0, true),
        (after(4.3), (0.2, 0.6), 0.3, false),
        (after(4.5), (0.2, 0.6), 0.3, true),
        // It says itself that it is behind.
        (LONGEST * 9, (-60.1, -60.0), 0.1, false),
    ] {
        let mut world = World::new();
        world.plan(&[80, 81], 7);
        let earlier = world.heard(Some(&synced(-99.0, -99.1, 7.0)), Duration::ZERO);
        assert_eq!(earlier, [""; 0]);
        let syncs = synced(ended, queued, 7.0 + ended - began);
        let gone = world.heard(Some(&syncs), now);
        let case = format!("{now:?} {began} {ended} {queued}");
        assert_eq!(gone, if given_up { vec!["p81"] } else { vec![] }, "{case}");
        assert_eq!(world.observed(7), if given_up { 7 } else { 5 }, "{case}");
        // The same answer once more says no more.
        assert_eq!(world.heard(Some(&syncs), now), [""; 0], "{case}");
        world.plan(&[80, 81], 8);
        assert_eq!(world.awaited.count(), usize::from(!given_up), "not again");
    }
}

#[test]
fn if_it_is_not_known_when_the_last_sync_began_it_must_have_ended_long_ago() {
    for (ended, given_up) in [(-60.0, true), (-1.9, true), (-1.7, false), (0.5, false)] {
        let mut world = World::new();
        world.plan(&[80, 81], 7);
        let gone = world.heard(Some(&synced(ended, ended - 0.1, 7.0)), LATE);
        assert_eq!(!gone.is_empty(), given_up, "{ended}");
    }
}

#[test]
fn the_syncs_of_a_kube_proxy_that_started_anew_count_from_there() {
    let mut world = World::new();
    world.plan(&[80, 81], 7);
    world.heard(Some(&synced(-9.0, -9.1, 70.0)), Duration::ZERO);
    let gone = world.heard(Some(&synced(1.1, 0.9, 0.1)), LATE);
    assert_eq!(gone, ["p81"]);
}

#[test]
fn kube_proxy_is_asked_at_once_now_and_then_and_when_something_is_late() {
    let mut world = World::new();
    let at = |world: &World, after| world.awaited.is_to_be_asked(world.start.instant + after);
    assert!(!at(&world, LATE), "nothing is awaited");
    world.plan(&[80, 81], 7);
    assert!(at(&world, Duration::ZERO));
    world.heard(None, Duration::ZERO);
    assert!(!at(
        &world,
        LISTEN.checked_sub(Duration::from_millis(1)).unwrap()
    ));
    assert!(at(&world, LISTEN));
    world.heard(None, LATE);
    assert!(at(&world, LATE));
}

#[test]
fn of_a_kube_proxy_that_says_nothing_it_is_given_up_later() {
    let mut world = World::new();
    world.plan(&[80, 81], 7);
    assert!(world.heard(None, LATE).is_empty());
    assert_eq!(world.heard(None, LONGEST), ["p81"]);
}

#[test]
fn a_service_that_goes_over_to_its_node_port_is_awaited_there() {
    let mut world = World::new();
    let mut moved = plan(&[80]);
    for forward in moved.forwards.values_mut() {
        forward.target = Target::NodePort {
            address: "192.0.2.11".parse().unwrap(),
            port: 30080.try_into().unwrap(),
            policy: TrafficPolicy::Local,
        };
    }
    let version = ResourceVersion(7);
    world.awaited.plan(decision(moved), version, world.start);
    let awaited = world.awaited.entrances().into_iter().next().unwrap();
    assert_eq!(awaited.kind, EntranceKind::NodePort);
    assert_eq!(awaited.socket, "192.0.2.11:30080".parse().unwrap());
}

#[test]
fn another_port_before_the_same_node_port_is_awaited_as_the_first_was() {
    let through_node_port = |port| {
        let mut plan = plan(&[port]);
        for forward in plan.forwards.values_mut() {
            forward.port_name.port = "web".into();
            forward.target = Target::NodePort {
                address: "192.0.2.11".parse().unwrap(),
                port: 30080.try_into().unwrap(),
                policy: TrafficPolicy::Local,
            };
        }
        decision(plan)
    };
    for (found, awaited) in [(true, 0), (false, 1)] {
        // The other port comes before and after the first one in the plan.
        for port in [79, 81] {
            let mut world = World::new();
            let (first, other) = (through_node_port(80), through_node_port(port));
            world.awaited.plan(first, ResourceVersion(7), world.start);
            if found {
                world.awaited.still_missing(&BTreeSet::new());
            }
            world.awaited.plan(other, ResourceVersion(8), world.start);
            assert_eq!(world.awaited.count(), awaited, "{port}");
            assert_eq!(world.observed(8), if found { 8 } else { 5 }, "{port}");
        }
    }
}

proptest! {
    /// Whatever is asked for and found, in whatever order: what is observed never goes
    /// back, is never ahead of what was read, and is all of it once nothing is missing.
    #[test]
    fn what_is_observed_only_grows(
        steps in prop::collection::vec((prop::collection::btree_set(80u16..90, 0..6), any::<u8>()), 1..20)
    ) {
        let mut world = World::new();
        let mut last = world.observed(5);
        for (step, (ports, found)) in steps.iter().enumerate() {
            let version = 6 + 1000 * step as u64;
            world.plan(&ports.iter().copied().collect::<Vec<_>>(), version);
            let observed = world.observed(version);
            prop_assert!(last <= observed && observed <= version);
            let mut missing = world.awaited.entrances();
            missing.retain(|entrance| (entrance.socket.port() + u16::from(*found)) % 3 == 0);
            world.awaited.still_missing(&missing);
            prop_assert_eq!(world.observed(version) == version, missing.is_empty());
            last = world.observed(version);
            if missing.is_empty() {
                // A change that asks for nothing new.
                last = world.observed(version + 100);
                prop_assert_eq!(last, version + 100);
            }
        }
    }
}
