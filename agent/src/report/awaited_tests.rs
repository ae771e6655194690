use highwire_api::{Family, PortKey, Protocol, service::TrafficPolicy};
use proptest::prelude::*;

use super::*;
use crate::facts::endpoints::ServicePortName;

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

/// kube-proxy last synced so many seconds after the start, and was asked to then.
fn synced(last: f64, queued: f64) -> Syncs {
    let start: Timestamp = START.parse().unwrap();
    let sample = |name: &str, after: f64| {
        let seconds = start.as_second() as f64 + after;
        format!("kubeproxy_sync_proxy_rules_last_{name}timestamp_seconds {seconds}\n")
    };
    Syncs::parse(&(sample("", last) + &sample("queued_", queued))).unwrap()
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
        self.awaited.plan(&plan(ports), version, self.start);
    }

    fn observed(&mut self, version: u64) -> u64 {
        self.awaited.observed(ResourceVersion(version)).0
    }

    fn given_up(&mut self, syncs: Option<&Syncs>, after: Duration) -> Vec<String> {
        let now = Now {
            instant: self.start.instant + after,
            time: self.start.time + after,
        };
        let given_up = self.awaited.give_up(syncs, now);
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
    // Whether it is given up after a time, by the last sync and when a change last came, in
    // seconds from when the Service was seen.
    for (after, last, queued, given_up) in [
        // A sync long enough after it.
        (early, 1.0, 0.9, false),
        (LATE, 1.0, 0.9, true),
        (LATE, 1.0, 1.1, true),
        // Its endpoints may have come right after this sync, …
        (LATE, 0.3, 0.2, false),
        // … but not if kube-proxy is idle since.
        (Duration::from_millis(300) + IDLE, 0.3, 0.2, true),
        // It was idle when an agent started and saw an old Service.
        (LATE, -60.0, -60.1, true),
        // It says itself that it is behind.
        (LONGEST * 9, -60.0, 0.1, false),
    ] {
        let mut world = World::new();
        world.plan(&[80, 81], 7);
        assert!(!world.awaited.is_late(world.start.instant + early));
        assert!(world.awaited.is_late(world.start.instant + LATE));
        let gone = world.given_up(Some(&synced(last, queued)), after);
        let case = format!("{after:?} {last} {queued}");
        assert_eq!(gone, if given_up { vec!["p81"] } else { vec![] }, "{case}");
        assert_eq!(world.observed(7), if given_up { 7 } else { 5 }, "{case}");
        world.plan(&[80, 81], 8);
        assert_eq!(world.awaited.count(), usize::from(!given_up), "not again");
    }
}

#[test]
fn of_a_kube_proxy_that_says_nothing_it_is_given_up_later() {
    let mut world = World::new();
    world.plan(&[80, 81], 7);
    assert!(world.given_up(None, LATE).is_empty());
    assert_eq!(world.given_up(None, LONGEST), ["p81"]);
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
    world.awaited.plan(&moved, ResourceVersion(7), world.start);
    let awaited = world.awaited.entrances().into_iter().next().unwrap();
    assert_eq!(awaited.kind, EntranceKind::NodePort);
    assert_eq!(awaited.socket, "192.0.2.11:30080".parse().unwrap());
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
