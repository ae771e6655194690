//! Whether another program may have changed our table. Pure.
//!
//! nftables notifies of every transaction on the table, ours too, and notifications may be
//! lost. So they prove nothing; they only decide when to read the table.

use std::time::{Duration, Instant};

use super::notifications::TableEvent;

/// The notification of a transaction of ours comes within this time, or never.
const NOTIFIED_WITHIN: Duration = Duration::from_secs(5);
/// Between the first check and the second; each doubles it …
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// … up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// After as long without a reason to check, the next check is a first one again.
const CALM: Duration = Duration::from_secs(30);

/// What the notifications leave open.
#[derive(Debug, Default)]
pub(super) struct Drift {
    /// Transactions of ours whose notification has not come yet, and the last one's time.
    unnotified: u32,
    applied: Option<Instant>,
    /// Since when there is a reason to check.
    doubted: Option<Instant>,
    last_check: Option<Instant>,
    pause: Duration,
}

impl Drift {
    /// A transaction of ours has succeeded; its notification will come.
    pub(super) fn applied(&mut self, now: Instant) {
        self.unnotified += 1;
        self.applied = Some(now);
    }

    /// Takes in a notification.
    pub(super) fn notice(&mut self, event: TableEvent, now: Instant) {
        if self.applied.is_none_or(|at| now - at > NOTIFIED_WITHIN) {
            self.unnotified = 0;
        }
        match event {
            TableEvent::Changed if self.unnotified > 0 => self.unnotified -= 1,
            TableEvent::Changed => self.doubt(now),
            TableEvent::Missed => {
                self.unnotified = 0;
                self.doubt(now);
            }
        }
    }

    /// Another program may have changed the table.
    pub(super) fn doubt(&mut self, now: Instant) {
        self.doubted.get_or_insert(now);
    }

    /// When to check the table; `None` while there is no reason to.
    #[must_use]
    pub(super) fn check_at(&self) -> Option<Instant> {
        let paused_until = self.last_check.map(|last| last + self.pause);
        self.doubted
            .map(|since| paused_until.map_or(since, |until| until.max(since)))
    }

    /// Whether to check now.
    #[must_use]
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.check_at().is_some_and(|at| at <= now)
    }

    /// The table is being read: what comes later is another reason.
    pub(super) fn checked(&mut self, now: Instant) {
        let calm = self.last_check.is_none_or(|last| now - last > CALM);
        self.pause = if calm {
            FIRST_PAUSE
        } else {
            (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE)
        };
        self.last_check = Some(now);
        self.doubted = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_transactions_are_no_reason_to_check() {
        let now = Instant::now();
        let mut drift = Drift::default();
        drift.applied(now);
        drift.applied(now);
        drift.notice(TableEvent::Changed, now);
        drift.notice(TableEvent::Changed, now);
        assert!(!drift.is_due(now));
        drift.notice(TableEvent::Changed, now);
        assert!(drift.is_due(now), "one more than we did");
    }

    #[test]
    fn after_a_loss_no_change_counts_as_ours() {
        let now = Instant::now();
        let mut drift = Drift::default();
        drift.applied(now);
        drift.notice(TableEvent::Missed, now);
        assert!(drift.is_due(now));
        drift.checked(now);
        assert_eq!(drift.check_at(), None);
        drift.notice(TableEvent::Changed, now);
        assert!(drift.check_at().is_some());
    }

    #[test]
    fn a_notification_that_never_comes_hides_nothing_for_long() {
        let now = Instant::now();
        let mut drift = Drift::default();
        drift.applied(now);
        let later = now + NOTIFIED_WITHIN + Duration::from_millis(1);
        drift.notice(TableEvent::Changed, later);
        assert!(drift.is_due(later));
    }

    #[test]
    fn checks_that_repeat_become_rare_until_there_is_calm() {
        let mut now = Instant::now();
        let mut drift = Drift::default();
        let mut pauses = Vec::new();
        for _ in 0..10 {
            drift.notice(TableEvent::Missed, now);
            let at = drift.check_at().unwrap().max(now);
            pauses.push(at - now);
            now = at;
            drift.checked(now);
        }
        assert_eq!(pauses[0], Duration::ZERO, "the first at once");
        assert!(
            pauses.windows(2).all(|pair| pair[0] <= pair[1]),
            "{pauses:?}"
        );
        assert_eq!(pauses[9], LONGEST_PAUSE);
        now += CALM + Duration::from_millis(1);
        drift.notice(TableEvent::Changed, now);
        assert!(drift.is_due(now));
        drift.checked(now);
        drift.notice(TableEvent::Changed, now);
        assert_eq!(drift.check_at(), Some(now + FIRST_PAUSE));
    }
}
