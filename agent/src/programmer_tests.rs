use highwire_api::{Protocol, node::ConflictReason};

use super::*;
use crate::plan::Plan;

#[test]
fn the_node_stays_as_it_is_for_the_first_seconds_of_failure() {
    let failure = |ago| Failure {
        since: Instant::now().checked_sub(ago).unwrap(),
        retry_at: Instant::now(),
        message: "refused".into(),
        refused: true,
    };
    let report = |readiness| Report {
        node_uid: "u".into(),
        readiness,
        decision: Decision {
            served: ["default/web".parse().unwrap()].into(),
            ..Decision::default()
        },
        revision: 7,
        observed: ResourceVersion(5),
        proxy_mode: None,
    };
    let behind = |last: Option<Report>, ago| {
        let still = last.as_ref().map(|_| Readiness::Programmed);
        behind(last, still, &failure(ago), "u".into(), None)
    };
    let good = report(Readiness::Programmed);
    let failed = report(Readiness::ApplyFailed("refused".into()));
    assert_eq!(behind(Some(good.clone()), Duration::ZERO), good);
    assert_eq!(
        behind(Some(good), GRACE),
        failed,
        "with what the kernel has"
    );
    assert_eq!(behind(Some(failed.clone()), Duration::ZERO), failed);
    let never = behind(None, Duration::ZERO);
    assert_eq!(never.readiness, Readiness::ApplyFailed("refused".into()));
    assert_eq!(never.decision, Decision::default());
}

#[test]
fn a_node_is_ready_in_every_mode_of_kube_proxy() {
    let decision = Decision {
        plan: Plan {
            // Of a family whose forwarding matters only once it is used.
            addresses: ["2001:db8:1::11".parse().unwrap()].into(),
            ..Plan::default()
        },
        ..Decision::default()
    };
    for mode in [ProxyMode::Iptables, ProxyMode::Nftables, ProxyMode::Ipvs] {
        let ready = readiness(true, Some(mode), &decision);
        assert_eq!(ready, Readiness::Programmed, "{mode:?}");
    }
    let missing = readiness(true, None, &decision);
    assert_eq!(missing, Readiness::ServiceProxyMissing);
}

#[test]
fn a_node_that_cannot_name_whom_it_refuses_is_not_ready() {
    let refusing = |services: usize| Decision {
        plan: Plan {
            addresses: ["2001:db8:1::11".parse().unwrap()].into(),
            ..Plan::default()
        },
        conflicts: (0..services)
            .map(|number| Conflict {
                service: format!("ns/{number:060}").parse().unwrap(),
                protocol: Protocol::Tcp,
                port: 80,
                reason: ConflictReason::HeldByService,
                held_by: "Service a/b".into(),
            })
            .collect(),
        ..Decision::default()
    };
    let ready = |services| readiness(true, Some(ProxyMode::Iptables), &refusing(services));
    assert_eq!(ready(5_000), Readiness::Programmed);
    assert_eq!(ready(20_000), Readiness::TooManyConflicts);
}
