use std::time::Instant;

use highwire_api::{Family, PortKey, Protocol, arbitration::Slot, node::MOST_CONFLICTS};

use super::*;
use crate::{
    decide::{Backends, Choice, Forward, Target},
    facts::endpoints::ServicePortName,
};

fn report(readiness: Readiness) -> Report {
    Report {
        node_uid: "u".into(),
        decision: Decision {
            readiness,
            ..Decision::default()
        }
        .into(),
        revision: 1,
        observed: ResourceVersion(5),
        proxy_mode: None,
        awaited: 0,
    }
}

#[test]
fn a_newer_version_alone_is_not_written() {
    let written = report(Readiness::Programmed);
    let newer = Report {
        observed: ResourceVersion(9),
        ..written.clone()
    };
    assert!(!newer.differs_from(&written));
    assert!(
        Report {
            revision: 2,
            ..newer
        }
        .differs_from(&written)
    );
    assert!(report(Readiness::NotEnabled).differs_from(&written));
}

#[test]
fn another_pod_of_a_served_port_is_not_written() {
    let with = |target: &str| {
        let mut report = report(Readiness::Programmed);
        let slot = Slot {
            family: Family::V4,
            port: PortKey::new(Protocol::Tcp, 80).unwrap(),
        };
        let forward = Forward {
            target: Target::Backends(Backends {
                targets: [target.parse().unwrap()].into(),
                draining: [].into(),
                choice: Choice::Random,
                keeps_client: false,
            }),
            clients: None,
            port_name: ServicePortName {
                service: "shop/web".parse().unwrap(),
                port: "".into(),
            },
        };
        let decision = Arc::make_mut(&mut report.decision);
        decision.plan.forwards.insert(slot, forward);
        report
    };
    let written = with("10.244.1.7:80");
    assert!(!with("10.244.1.8:80").differs_from(&written));
    assert!(report(Readiness::Programmed).differs_from(&written));
}

#[test]
fn what_is_gone_is_written_as_empty() {
    let status = report(Readiness::Programmed).status(None, Timestamp::UNIX_EPOCH);
    let written = serde_json::to_value(status).unwrap();
    assert_eq!(written["conflicts"], serde_json::json!([]));
    assert_eq!(written["addresses"], serde_json::json!([]));
    assert_eq!(written.get("proxyMode"), Some(&serde_json::Value::Null));
}

#[test]
fn the_transition_time_changes_with_the_status_only() {
    let at = |second| Timestamp::from_second(second).unwrap();
    let status = |readiness: Readiness, previous: Option<&Condition>, second| {
        report(readiness)
            .status(previous, at(second))
            .conditions
            .remove(0)
    };
    let first = status(Readiness::Programmed, None, 1);
    let same = status(Readiness::Programmed, Some(&first), 2);
    assert_eq!(same.last_transition_time, Time(at(1)));
    let off = status(Readiness::ForwardingDisabled(Family::V4), Some(&same), 3);
    assert_eq!(
        (off.status.as_str(), off.reason.as_str()),
        ("False", "ForwardingDisabled")
    );
    assert_eq!(off.last_transition_time, Time(at(3)));
    assert!(
        off.message.contains("sysctl -w net.ipv4.ip_forward=1"),
        "{}",
        off.message
    );
}

#[test]
fn a_report_is_bounded_and_names_every_refused_service() {
    use highwire_api::{Protocol, node::ConflictReason};
    let refusing = |services: usize, ports: u16, length: usize| {
        let mut report = report(Readiness::Programmed);
        let all = (0..services).flat_map(|number| {
            (1..=ports).map(move |port| Conflict {
                service: format!("ns/{number:0length$}").parse().unwrap(),
                protocol: Protocol::Tcp,
                port,
                reason: ConflictReason::HeldByService,
                held_by: "Service a/b".into(),
            })
        });
        let decision = Arc::make_mut(&mut report.decision);
        decision.conflicts = all.collect();
        decision.conflicts.sort();
        report.status(None, Timestamp::UNIX_EPOCH)
    };
    let small = refusing(10, 3, 4);
    assert_eq!((small.conflicts.len(), small.refused.len()), (30, 0));
    // One Service that asks for 11,000 ports is explained in 1,000 of them.
    let one = refusing(1, 11_000, 4);
    assert_eq!(
        (one.conflicts.len(), one.refused.len()),
        (MOST_CONFLICTS, 0)
    );
    assert_eq!(one.conflict_count, 11_000);

    let many = refusing(5_000, 2, 8);
    let mut named: BTreeSet<_> = many.conflicts.iter().map(|c| &c.service).collect();
    named.extend(&many.refused);
    assert_eq!((named.len(), many.refused.len()), (5_000, 4_500));
    let too_many = refusing(20_000, 1, 60);
    assert!(too_many.conflicts.len() == MOST_CONFLICTS && too_many.refused.is_empty());
}

#[test]
fn the_node_stays_as_it_is_for_the_first_seconds_of_failure() {
    let failure = |ago| Failure {
        since: Instant::now().checked_sub(ago).unwrap(),
        delay: Duration::ZERO,
        retry_at: Instant::now(),
        message: "refused".into(),
        refused: true,
    };
    let behind = |last: Option<&Report>, ago| {
        Report::behind(last.cloned(), |_| Readiness::Programmed, &failure(ago))
    };
    let good = report(Readiness::Programmed);
    let failed = report(Readiness::ApplyFailed("refused".into()));
    assert_eq!(behind(Some(&good), Duration::ZERO), good);
    assert_eq!(
        behind(Some(&good), GRACE),
        failed,
        "with what the kernel has"
    );
    assert_eq!(behind(Some(&failed), Duration::ZERO), failed);
    let never = behind(None, Duration::ZERO);
    assert_eq!(never.readiness(), failed.readiness());
}

#[test]
fn only_what_tells_nothing_but_unready_services_waits_for_kube_proxy() {
    let reported = Report {
        observed: ResourceVersion(5),
        ..Report::default()
    };
    let awaiting = Report {
        awaited: 1,
        revision: 2,
        ..reported.clone()
    };
    assert!(awaiting.can_wait_after(&reported));
    let done = Report {
        awaited: 0,
        ..awaiting.clone()
    };
    assert!(!done.can_wait_after(&reported));
    // Another one is awaited already, but the first has become ready.
    let one_ready = Report {
        observed: ResourceVersion(6),
        ..awaiting.clone()
    };
    assert!(!one_ready.can_wait_after(&reported));
    let mut not_ready = awaiting;
    Arc::make_mut(&mut not_ready.decision).readiness = Readiness::NoAddresses;
    assert!(!not_ready.can_wait_after(&reported));
}
