use super::*;

const DURATION: Duration = Duration::from_secs(12);

/// A clock whose wall time and instants advance together.
struct Clock(Now);

impl Clock {
    fn new() -> Self {
        Self(Now {
            instant: Instant::now(),
            wall: "2026-01-02T03:04:05Z".parse().unwrap(),
        })
    }

    fn at(&self, seconds: u64) -> Now {
        let passed = Duration::from_secs(seconds);
        Now {
            instant: self.0.instant + passed,
            wall: self.0.wall + passed,
        }
    }

    fn stamp(&self, seconds: i64) -> Option<Timestamp> {
        Some(self.0.wall + jiff::SignedDuration::from_secs(seconds))
    }
}

#[test]
fn a_renewed_lease_is_fresh_for_its_duration() {
    let clock = Clock::new();
    let mut lease = Vitality::first_seen(clock.stamp(0), DURATION, clock.at(0));
    assert!(lease.seen_again(clock.stamp(4), DURATION, clock.at(4)));
    assert!(!lease.judge(false, Duration::ZERO, clock.at(15)));
    assert_eq!(lease.freshness(), Freshness::Fresh);
    assert!(lease.judge(false, Duration::ZERO, clock.at(16)));
    assert_eq!(lease.freshness(), Freshness::Stale);
    assert!(
        !lease.judge(false, Duration::ZERO, clock.at(17)),
        "judged once"
    );
    assert_eq!(lease.due(), None);
}

#[test]
fn seeing_the_same_renewal_again_proves_nothing() {
    let clock = Clock::new();
    let mut lease = Vitality::first_seen(clock.stamp(0), DURATION, clock.at(0));
    assert!(!lease.seen_again(clock.stamp(0), DURATION, clock.at(8)));
    assert!(lease.judge(false, Duration::ZERO, clock.at(12)));
}

#[test]
fn a_stale_lease_comes_back_by_a_renewal_only() {
    let clock = Clock::new();
    let mut lease = Vitality::first_seen(clock.stamp(0), DURATION, clock.at(0));
    lease.judge(false, Duration::ZERO, clock.at(12));
    assert!(!lease.reprieve(clock.at(13)));
    assert_eq!(lease.freshness(), Freshness::Stale);
    assert!(lease.seen_again(clock.stamp(14), DURATION, clock.at(14)));
    assert_eq!(lease.freshness(), Freshness::Fresh);
}

#[test]
fn an_old_lease_seen_first_is_unproven_and_then_stale() {
    let clock = Clock::new();
    let mut lease = Vitality::first_seen(clock.stamp(-13), DURATION, clock.at(0));
    assert_eq!(lease.freshness(), Freshness::Unproven);
    assert!(!lease.judge(false, Duration::ZERO, clock.at(11)));
    assert!(lease.judge(false, Duration::ZERO, clock.at(12)));
}

#[test]
fn an_agents_clock_does_not_matter_once_it_renews() {
    let clock = Clock::new();
    let behind = -3600;
    let mut lease = Vitality::first_seen(clock.stamp(behind), DURATION, clock.at(0));
    lease.seen_again(clock.stamp(behind + 4), DURATION, clock.at(4));
    assert_eq!(lease.freshness(), Freshness::Fresh);
    let ahead = Vitality::first_seen(clock.stamp(3600), DURATION, clock.at(0));
    assert_eq!(
        ahead.due(),
        Some(clock.at(12).instant),
        "no longer than anyone"
    );
}

#[test]
fn silence_is_noticed_when_it_ends() {
    let clock = Clock::new();
    let mut pulse = Pulse::default();
    assert!(pulse.is_silent(clock.at(0)), "nothing heard yet");
    pulse.begin(clock.at(0));
    assert!(!pulse.beat(clock.at(4)));
    assert!(!pulse.is_silent(clock.at(9)));
    assert!(pulse.is_silent(clock.at(10)));
    assert!(pulse.beat(clock.at(60)));
    assert!(!pulse.beat(clock.at(62)));
}

#[test]
fn who_lapses_alone_is_lost_then_stale_and_who_lapses_with_others_unproven() {
    let (clock, hold) = (Clock::new(), Duration::from_secs(30));
    let mut alone = Vitality::first_seen(clock.stamp(0), DURATION, clock.at(0));
    let mut other = alone.clone();
    assert!(alone.judge(false, hold, clock.at(12)));
    assert_eq!(alone.freshness(), Freshness::Lost);
    assert!(
        !alone.judge(true, hold, clock.at(41)),
        "what is lost stays it"
    );
    assert!(alone.judge(true, hold, clock.at(42)));
    assert_eq!(alone.freshness(), Freshness::Stale);

    assert!(other.judge(true, hold, clock.at(12)));
    assert_eq!(other.freshness(), Freshness::Unproven);
    assert!(!other.judge(true, hold, clock.at(24)), "it stays unproven");
    assert!(other.judge(false, hold, clock.at(36)), "until it is alone");
    assert_eq!(other.freshness(), Freshness::Lost);
}

#[test]
fn more_than_a_third_and_more_than_one_lapse_together() {
    let clock = Clock::new();
    let together = |live: usize, silent: usize, dead: usize| {
        let renewed =
            |at: u64| Vitality::first_seen(clock.stamp(at.cast_signed()), DURATION, clock.at(at));
        let live = (0..live).map(|_| renewed(97));
        // Between the last renewals of two agents there may be 4 s.
        let silent = (0..silent).map(|number| renewed(88 + number as u64 % 4));
        let dead = (0..dead).map(|_| renewed(50));
        let leases: Vec<Vitality> = live.chain(silent).chain(dead).collect();
        lapse_together(leases.iter(), clock.at(100))
    };
    for (all, single) in [(1, 1), (2, 1), (3, 1), (6, 2), (30, 10)] {
        assert!(!together(all - single, single, 0), "{single} of {all}");
        assert!(!together(all - single, single, 50), "whoever died before");
    }
    for (all, many) in [(2, 2), (3, 2), (5, 2), (30, 11), (30, 30)] {
        assert!(together(all - many, many, 0), "{many} of {all}");
    }
}
