use super::*;

const DURATION: Duration = Duration::from_secs(12);

/// Leases and a clock whose wall time and instants advance together.
struct Case {
    start: Now,
    leases: AgentLeases,
    /// Whether every node's machine is known to run.
    vouched_for: bool,
}

impl Case {
    fn new() -> Self {
        Self {
            start: Now {
                instant: Instant::now(),
                wall: "2026-01-02T03:04:05Z".parse().unwrap(),
            },
            leases: AgentLeases::default(),
            vouched_for: true,
        }
    }

    fn at(&self, seconds: u64) -> Now {
        Now {
            instant: self.start.instant + Duration::from_secs(seconds),
            wall: self.start.wall + Duration::from_secs(seconds),
        }
    }

    /// At `second` the Lease is seen, with the time stamp of `stamp` by its holder's clock.
    fn seen(&mut self, node: &str, second: u64, stamp: i64) -> Vec<String> {
        let lease = LeaseFacts {
            holder: None,
            renewed: Some(self.start.wall + SignedDuration::from_secs(stamp)),
            duration: DURATION,
            observed: None,
            report: None,
        };
        let now = self.at(second);
        self.leases
            .apply(&format!("agent-{node}"), Some(lease), now)
    }

    /// The Lease is renewed.
    fn renew(&mut self, node: &str, second: u64) -> Vec<String> {
        self.seen(node, second, second.cast_signed())
    }

    /// The leading controller renews its own Lease every 2 s from `from` to `to`.
    fn controller_renews(&mut self, from: u64, to: u64) {
        for second in (from..=to).step_by(2) {
            let now = self.at(second);
            let lease = LeaseFacts {
                holder: None,
                renewed: Some(now.wall),
                duration: DURATION,
                observed: None,
                report: None,
            };
            self.leases.apply("highwire-controller", Some(lease), now);
        }
    }

    fn expire(&mut self, second: u64) -> Vec<String> {
        let (now, vouched_for) = (self.at(second), self.vouched_for);
        self.leases.expire(|_| vouched_for, now)
    }

    fn is(&self, node: &str) -> Option<Liveness> {
        self.leases.liveness(node)
    }
}

#[test]
fn an_agent_is_silent_once_its_lease_is_over_and_alive_by_a_renewal() {
    let mut case = Case::new();
    assert_eq!(case.renew("n1", 0), ["n1"]);
    assert!(
        case.renew("n1", 4).is_empty(),
        "a heartbeat changes nothing"
    );
    case.controller_renews(6, 16);
    assert!(case.expire(15).is_empty());
    assert_eq!(case.is("n1"), Some(Liveness::Alive));
    assert_eq!(case.expire(16), ["n1"]);
    assert_eq!(case.is("n1"), Some(Liveness::Silent));
    let next = case.leases.next();
    assert_eq!(
        next,
        Some(case.at(28).instant),
        "the controller's own Lease"
    );
    case.controller_renews(18, 60);
    assert!(case.expire(60).is_empty(), "judged once");
    assert_eq!(case.renew("n1", 61), ["n1"]);
    assert_eq!(case.is("n1"), Some(Liveness::Alive));
}

#[test]
fn the_same_renewal_seen_again_proves_nothing() {
    let mut case = Case::new();
    case.seen("n1", 0, 0);
    case.controller_renews(2, 12);
    case.seen("n1", 8, 0);
    assert_eq!(case.expire(12), ["n1"]);
}

#[test]
fn a_lease_that_had_expired_when_first_seen_is_unknown_for_a_duration() {
    let mut case = Case::new();
    case.seen("n1", 0, -13);
    assert_eq!(case.is("n1"), Some(Liveness::Unknown));
    case.controller_renews(2, 12);
    assert!(case.expire(11).is_empty());
    assert_eq!(case.expire(12), ["n1"]);
    assert_eq!(case.is("n1"), Some(Liveness::Silent));
}

#[test]
fn an_agents_clock_does_not_matter_once_it_renews() {
    for off in [-3600, 3600] {
        let mut case = Case::new();
        case.seen("n1", 0, off);
        case.seen("n1", 4, off + 4);
        assert_eq!(case.is("n1"), Some(Liveness::Alive), "{off}");
        case.controller_renews(6, 16);
        assert!(case.expire(15).is_empty(), "{off}");
        assert_eq!(case.expire(16), ["n1"], "{off}");
    }
}

#[test]
fn nobody_is_judged_while_no_renewal_is_seen_and_then_everyone_has_another_duration() {
    let mut case = Case::new();
    case.renew("n1", 0);
    case.renew("n2", 0);
    assert!(case.expire(300).is_empty());
    assert_eq!(case.is("n1"), Some(Liveness::Alive));
    let mut changed = case.renew("n2", 301);
    changed.sort();
    assert_eq!(changed, ["n1"], "it can be dead or alive");
    assert_eq!(case.is("n1"), Some(Liveness::Unknown));
    case.controller_renews(302, 313);
    assert!(case.expire(312).is_empty());
    case.renew("n2", 313);
    assert_eq!(case.expire(313), ["n1"]);
    assert_eq!(case.is("n1"), Some(Liveness::Silent));
}

#[test]
fn many_that_lapse_together_are_unknown_while_their_machines_run() {
    for (nodes, late, unknown) in [
        (1, 1, false),
        (2, 1, false),
        (3, 1, false),
        (6, 2, false),
        (30, 10, false),
        (2, 2, true),
        (3, 2, true),
        (5, 2, true),
        (30, 11, true),
        (30, 30, true),
    ] {
        for vouched_for in [true, false] {
            let mut case = Case::new();
            case.vouched_for = vouched_for;
            for node in 0..nodes {
                // Between the renewals of two agents there may be 4 s.
                case.renew(&format!("n{node}"), node % 4);
            }
            for second in 4..16 {
                for node in late..nodes {
                    case.renew(&format!("n{node}"), second);
                }
                case.controller_renews(second, second);
            }
            case.expire(15);
            let expected = if unknown && vouched_for {
                Liveness::Unknown
            } else {
                Liveness::Silent
            };
            assert_eq!(
                case.is("n0"),
                Some(expected),
                "{late} of {nodes}, {vouched_for}"
            );
        }
    }
}

#[test]
fn who_is_left_alone_in_its_silence_is_silent_after_another_duration() {
    let mut case = Case::new();
    for node in ["n1", "n2", "n3"] {
        case.renew(node, 0);
    }
    case.controller_renews(2, 12);
    case.renew("n3", 12);
    case.expire(12);
    assert_eq!(case.is("n1"), Some(Liveness::Unknown));
    assert_eq!(case.renew("n2", 14), ["n2"]);
    case.controller_renews(14, 24);
    case.renew("n2", 23);
    case.renew("n3", 23);
    assert_eq!(case.expire(24), ["n1"]);
    assert_eq!(case.is("n1"), Some(Liveness::Silent));
    // A Lease that is deleted is another matter.
    let now = case.at(25);
    assert_eq!(case.leases.apply("agent-n1", None, now), ["n1"]);
    assert_eq!(case.is("n1"), None);
}
