use highwire_api::{Family, PortKey, Protocol};

use super::*;
use crate::{
    decide::{Backends, Choice, Forward, Plan, Target},
    facts::endpoints::ServicePortName,
};

fn slot(port: u16) -> Slot {
    Slot {
        family: Family::V4,
        port: PortKey::new(Protocol::Tcp, i32::from(port)).unwrap(),
    }
}

fn service(port: u16) -> ServiceKey {
    format!("shop/web-{port}").parse().unwrap()
}

/// Forwards these ports, each of a Service of its own; nothing is known of the endpoints of
/// some of them.
fn decision(ports: &[u16], unheard: &[u16]) -> Arc<Decision> {
    let forward = |port: &u16| {
        let forward = Forward {
            target: Target::Backends(Backends {
                targets: [].into(),
                draining: [].into(),
                choice: Choice::Random,
                keeps_client: false,
            }),
            clients: None,
            port_name: ServicePortName {
                service: service(*port),
                port: "".into(),
            },
        };
        (slot(*port), forward)
    };
    let unheard = unheard.iter().map(|port| (slot(*port), service(*port)));
    Arc::new(Decision {
        plan: Plan {
            forwards: ports.iter().map(forward).collect(),
            ..Plan::default()
        },
        unheard: unheard.collect(),
        ..Decision::default()
    })
}

/// Port 80 is served and known, up to version 5.
fn known(start: Instant) -> FirstSlices {
    let mut first = FirstSlices::default();
    first.plan(decision(&[80], &[]), ResourceVersion(5), start);
    assert_eq!(first.observed(ResourceVersion(6)), ResourceVersion(6));
    first
}

#[test]
fn a_new_service_counts_once_an_endpoint_slice_of_it_has_come() {
    let start = Instant::now();
    let mut first = known(start);
    first.plan(decision(&[80, 81], &[81]), ResourceVersion(7), start);
    assert_eq!(first.observed(ResourceVersion(8)), ResourceVersion(6));
    assert_eq!((first.count(), first.pause(start)), (1, Some(LONGEST)));
    // Another one, whose slice is there: it waits for the first.
    first.plan(decision(&[80, 81, 82], &[81]), ResourceVersion(9), start);
    assert_eq!(first.observed(ResourceVersion(9)), ResourceVersion(6));
    first.plan(decision(&[80, 81, 82], &[]), ResourceVersion(9), start);
    assert_eq!(first.observed(ResourceVersion(9)), ResourceVersion(9));
    assert_eq!((first.count(), first.pause(start)), (0, None));
}

#[test]
fn one_without_any_is_given_up_and_not_awaited_again() {
    let start = Instant::now();
    let mut first = known(start);
    first.plan(decision(&[80, 81], &[81]), ResourceVersion(7), start);
    let early = LONGEST.checked_sub(Duration::from_millis(1)).unwrap();
    assert!(first.give_up(start + early).is_empty());
    assert_eq!(first.give_up(start + LONGEST), [service(81)]);
    assert_eq!(first.observed(ResourceVersion(7)), ResourceVersion(7));
    first.plan(
        decision(&[80, 81, 82], &[81]),
        ResourceVersion(8),
        start + LONGEST,
    );
    assert_eq!(first.observed(ResourceVersion(8)), ResourceVersion(8));
}

#[test]
fn one_that_was_served_before_loses_nothing_with_its_last_slice() {
    let start = Instant::now();
    let mut first = known(start);
    first.plan(decision(&[80], &[80]), ResourceVersion(7), start);
    assert_eq!(first.observed(ResourceVersion(7)), ResourceVersion(7));
}

#[test]
fn who_gets_a_port_of_another_is_awaited() {
    let start = Instant::now();
    let mut first = known(start);
    let mut other = decision(&[80], &[]);
    let decision = Arc::make_mut(&mut other);
    for forward in decision.plan.forwards.values_mut() {
        forward.port_name.service = service(99);
    }
    decision.unheard = [(slot(80), service(99))].into();
    first.plan(other, ResourceVersion(7), start);
    assert_eq!(first.observed(ResourceVersion(7)), ResourceVersion(6));
}
