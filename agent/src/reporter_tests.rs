use super::*;
use crate::{decide::Decision, report::Readiness};

fn report(revision: u64, observed: u64) -> Report {
    Report {
        node_uid: "u".into(),
        readiness: Readiness::Programmed,
        decision: Decision::default(),
        revision,
        observed: ResourceVersion(observed),
        proxy_mode: None,
    }
}

#[test]
fn the_lease_never_runs_ahead_of_the_written_status() {
    assert_eq!(confirmed(None, &report(1, 5)), None);
    let written = report(1, 5);
    let confirmed = |latest: Report| confirmed(Some(&written), &latest);
    assert_eq!(confirmed(report(1, 9)), Some(ResourceVersion(9)));
    // A change that is not written yet.
    assert_eq!(confirmed(report(2, 9)), Some(ResourceVersion(5)));
}

#[test]
fn a_renewal_changes_what_it_must_and_keeps_a_version_it_does_not_know() {
    let annotation = |lease: &Lease| {
        let annotations = lease.metadata.annotations.as_ref()?;
        annotations.get(OBSERVED_VERSION_ANNOTATION).cloned()
    };
    let mut lease = Lease::default();
    renew(&mut lease, "n1", Duration::from_secs(12), None);
    assert_eq!(annotation(&lease), None);
    renew(
        &mut lease,
        "n1",
        Duration::from_secs(12),
        Some(ResourceVersion(7)),
    );
    renew(&mut lease, "n1", Duration::from_secs(30), None);
    assert_eq!(annotation(&lease).as_deref(), Some("7"));
    let spec = lease.spec.unwrap();
    assert_eq!(spec.holder_identity.as_deref(), Some("n1"));
    assert_eq!(spec.lease_duration_seconds, Some(30));
    assert!(spec.renew_time.is_some());
}
