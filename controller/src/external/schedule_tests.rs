use std::num::NonZeroU16;

use highwire_api::{Protocol, external::load_balancer::Target};
use proptest::{collection::vec, prelude::*};

use super::*;

const RESYNC: Duration = Duration::from_secs(300);

fn name(index: i32) -> RecordedBackend {
    RecordedBackend {
        backend_name: format!("shop_web_{index}_tcp"),
        url: "http://box".to_owned(),
    }
}

fn backend(port: u16, target: u16) -> Backend {
    let target = Target {
        address: [10, 0, 0, 1].into(),
        port: target,
    };
    Backend {
        port: NonZeroU16::new(port).unwrap(),
        protocol: Protocol::Tcp,
        targets: [target].into(),
    }
}

/// Backends by number, each with its port and target.
fn wanted(backends: &[(i32, u16, u16)]) -> BTreeMap<RecordedBackend, Backend> {
    let backends = backends.iter();
    backends
        .map(|(index, port, to)| (name(*index), backend(*port, *to)))
        .collect()
}

/// Sends all that is due until nothing is; returns what was sent.
fn drain(schedule: &mut Schedule, now: Instant) -> Vec<Request> {
    let mut sent = Vec::new();
    while let Some(request) = schedule.next(now) {
        schedule.ended(&request.name, true, 0.0, now);
        sent.push(request);
    }
    sent
}

#[test]
fn a_burst_is_one_request() {
    let (mut schedule, start) = (Schedule::new(RESYNC), Instant::now());
    for target in 1..=9 {
        schedule.want(wanted(&[(0, 80, target)]), start);
    }
    assert_eq!(schedule.next(start), None);
    assert_eq!(schedule.wake(start), Some(start + SETTLE));
    let sent = drain(&mut schedule, start + SETTLE);
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].backend, Some(backend(80, 9)));
    assert!(schedule.has(&name(0)));
}

#[test]
fn what_changes_while_it_is_sent_goes_out_after_it() {
    let (mut schedule, start) = (Schedule::new(RESYNC), Instant::now());
    schedule.want(wanted(&[(0, 80, 1)]), start);
    let first = schedule.next(start + SETTLE).unwrap();
    schedule.want(wanted(&[(0, 80, 2)]), start + SETTLE);
    let later = start + SETTLE * 3;
    assert_eq!(schedule.next(later), None);
    schedule.ended(&first.name, true, 0.0, later);
    assert!(!schedule.has(&name(0)));
    let second = schedule.next(later).unwrap();
    assert_eq!(second.backend, Some(backend(80, 2)));
}

#[test]
fn failures_are_repeated_ever_more_slowly() {
    let (mut schedule, mut now) = (Schedule::new(RESYNC), Instant::now());
    schedule.want(wanted(&[(0, 80, 1)]), now);
    now += SETTLE;
    let mut waits = Vec::new();
    for _ in 0..9 {
        let request = schedule.next(now).unwrap();
        schedule.ended(&request.name, false, 0.0, now);
        let next = schedule.wake(now).unwrap();
        waits.push((next - now).as_secs());
        now = next;
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
}

#[test]
fn what_the_box_has_is_sent_again_in_time() {
    let (mut schedule, start) = (Schedule::new(RESYNC), Instant::now());
    schedule.want(wanted(&[(0, 80, 1)]), start);
    let taken = start + SETTLE;
    assert_eq!(drain(&mut schedule, taken).len(), 1);
    assert_eq!(schedule.wake(taken), Some(taken + RESYNC));
    assert_eq!(drain(&mut schedule, taken + RESYNC).len(), 1);
}

#[test]
fn what_is_not_wanted_is_deleted_and_then_forgotten() {
    let (mut schedule, start) = (Schedule::new(RESYNC), Instant::now());
    schedule.want(wanted(&[(0, 80, 1)]), start);
    drain(&mut schedule, start + SETTLE);
    schedule.want(BTreeMap::new(), start + SETTLE);
    schedule.forget(name(7));
    assert!(!schedule.is_done());
    let sent = drain(&mut schedule, start + SETTLE * 2);
    assert!(sent.iter().all(|request| request.backend.is_none()));
    assert_eq!((sent.len(), schedule.is_done()), (2, true));
    assert!(!schedule.knows(&name(0)) && !schedule.knows(&name(7)));
    assert_eq!(schedule.wake(start), None);
}

#[test]
fn a_port_is_given_up_before_another_backend_gets_it() {
    let (mut schedule, start) = (Schedule::new(RESYNC), Instant::now());
    schedule.want(wanted(&[(0, 80, 1)]), start);
    drain(&mut schedule, start + SETTLE);
    let later = start + SETTLE * 2;
    schedule.want(wanted(&[(1, 80, 1)]), start + SETTLE);
    let first = schedule.next(later).unwrap();
    assert_eq!((&first.name, &first.backend), (&name(0), &None));
    assert_eq!((schedule.next(later), schedule.wake(later)), (None, None));
    schedule.ended(&first.name, true, 0.0, later);
    assert_eq!(schedule.next(later).unwrap().name, name(1));
}

#[test]
fn two_backends_that_swap_their_ports_do_not_wait_for_each_other() {
    let (mut schedule, start) = (Schedule::new(RESYNC), Instant::now());
    schedule.want(wanted(&[(0, 80, 1), (1, 81, 1)]), start);
    drain(&mut schedule, start + SETTLE);
    schedule.want(wanted(&[(0, 81, 1), (1, 80, 1)]), start + SETTLE);
    let sent = drain(&mut schedule, start + SETTLE * 2);
    assert!(schedule.is_done(), "{sent:?}");
    assert_eq!(sent.len(), 3, "one is deleted first: {sent:?}");
}

#[derive(Clone, Debug)]
enum Step {
    Want(Vec<(i32, u16, u16)>),
    Begin,
    End(bool),
    Wait(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        vec((0..3_i32, 1..4_u16, 1..4_u16), 0..4).prop_map(|mut backends| {
            let mut ports = std::collections::BTreeSet::new();
            backends.retain(|(_, port, _)| ports.insert(*port));
            Step::Want(backends)
        }),
        Just(Step::Begin),
        any::<bool>().prop_map(Step::End),
        (0..5_000_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever happens: one request per backend at a time, and in the end the box has exactly
    /// what is wanted.
    #[test]
    fn the_box_ends_with_what_is_wanted(steps in vec(any_step(), 0..60)) {
        let (mut schedule, mut now) = (Schedule::new(RESYNC), Instant::now());
        let mut last = BTreeMap::new();
        let mut sending: Vec<Request> = Vec::new();
        let mut on_box: BTreeMap<RecordedBackend, Backend> = BTreeMap::new();
        let mut carry_out = |request: &Request| match &request.backend {
            Some(backend) => drop(on_box.insert(request.name.clone(), backend.clone())),
            None => drop(on_box.remove(&request.name)),
        };
        for step in steps {
            match step {
                Step::Want(backends) => {
                    last = wanted(&backends);
                    schedule.want(last.clone(), now);
                }
                Step::Begin => if let Some(request) = schedule.next(now) {
                    prop_assert!(sending.iter().all(|other| other.name != request.name));
                    sending.push(request);
                },
                Step::End(is_taken) => if let Some(request) = sending.pop() {
                    // A request that failed may have been carried out.
                    carry_out(&request);
                    schedule.ended(&request.name, is_taken, 0.5, now);
                },
                Step::Wait(milliseconds) => now += Duration::from_millis(milliseconds),
            }
        }
        for request in sending {
            carry_out(&request);
            schedule.ended(&request.name, true, 0.0, now);
        }
        now += RETRY.1 * 2;
        while let Some(request) = schedule.next(now) {
            carry_out(&request);
            schedule.ended(&request.name, true, 0.0, now);
        }
        prop_assert_eq!(on_box, last);
    }
}
