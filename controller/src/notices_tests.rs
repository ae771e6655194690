use super::*;

fn web() -> ServiceKey {
    ServiceKey {
        namespace: "shop".into(),
        name: "web".into(),
    }
}

fn problem(value: &str) -> Problem {
    Problem::Invalid {
        field: "metadata.annotations[a]".into(),
        value: value.into(),
        remedy: "r".into(),
    }
}

fn told(notices: &mut Notices, now: Instant) -> Vec<Notice> {
    notices
        .take(now)
        .into_iter()
        .map(|(_, notice)| notice)
        .collect()
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_shortage_is_told_once() {
    let (mut notices, now) = (Notices::default(), Instant::now());
    let mut told_of = |kind| {
        notices.shortage(&web(), "u1", kind, now);
        told(&mut notices, now)
    };
    let told_once = [Notice::NoReadyNodes];
    assert_eq!(told_of(Some(ShortageKind::NoneReady)), told_once);
    assert!(told_of(Some(ShortageKind::NoneReady)).is_empty());
    assert_eq!(told_of(Some(ShortageKind::NoOptedIn)), told_once);
    assert!(told_of(None).is_empty());
    assert_eq!(told_of(Some(ShortageKind::NoOptedIn)), told_once);
}

#[test]
fn many_changes_are_told_as_one() {
    let (mut notices, start) = (Notices::default(), Instant::now());
    for tenth in 0..10 {
        notices.updated(&web(), "u1", start + tenth * SECOND / 10);
    }
    assert_eq!(told(&mut notices, start + SECOND), [Notice::Updated]);
    assert_eq!(notices.next(), None);
}

#[test]
fn each_problem_is_told_once_until_it_is_solved() {
    let (mut notices, now) = (Notices::default(), Instant::now());
    notices.problems(&web(), "u1", &[problem("x"), problem("y")], now);
    assert_eq!(told(&mut notices, now).len(), 2);
    notices.problems(&web(), "u1", &[problem("x"), problem("y")], now);
    assert!(told(&mut notices, now).is_empty(), "a resync tells nothing");
    notices.problems(&web(), "u1", &[problem("y")], now);
    notices.problems(&web(), "u1", &[problem("x"), problem("y")], now);
    assert_eq!(told(&mut notices, now), [Notice::Problem(problem("x"))]);
}

#[test]
fn a_service_created_anew_starts_anew_and_one_gone_leaves_nothing() {
    let (mut notices, now) = (Notices::default(), Instant::now());
    notices.problems(&web(), "u1", &[problem("x")], now);
    assert_eq!(told(&mut notices, now).len(), 1);
    notices.problems(&web(), "u2", &[problem("x")], now);
    assert_eq!(told(&mut notices, now).len(), 1);
    notices.updated(&web(), "u2", now);
    notices.forget(&web());
    assert!(told(&mut notices, now + SECOND).is_empty());
    assert!(notices.boards.is_empty() && notices.due.is_empty());
}
