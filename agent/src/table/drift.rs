//! Whether another program may have changed our table. Pure.
//!
//! nftables' notifications tell of every transaction on the table, ours too, and some
//! may be lost. So they prove nothing: they say when to look.

use std::time::{Duration, Instant};

use super::notifications::TableEvent;

/// A transaction of ours is told within this time, or never.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
/// Between the first look and the second; each doubles it …
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// … up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// After as long without a reason to look, the next look is a first one again.
const CALM: Duration = Duration::from_secs(30);

/// What the notifications leave to be found out.
#[derive(Debug, Default)]
pub(super) struct Drift {
    /// Transactions of ours that the kernel has not told of yet, and the last one's time.
    untold: u32,
    applied: Option<Instant>,
    /// Since when there is a reason to look.
    doubted: Option<Instant>,
    last_look: Option<Instant>,
    pause: Duration,
}

impl Drift {
    /// A transaction of ours has succeeded; it will be told.
    pub(super) fn applied(&mut self, now: Instant) {
        self.untold += 1;
        self.applied = Some(now);
    }

    /// Takes in a notification.
    pub(super) fn notice(&mut self, event: TableEvent, now: Instant) {
        if self.applied.is_none_or(|at| now - at > TOLD_WITHIN) {
            self.untold = 0;
        }
        match event {
            TableEvent::Changed if self.untold > 0 => self.untold -= 1,
            TableEvent::Changed => self.doubt(now),
            TableEvent::Missed => {
                self.untold = 0;
                self.doubt(now);
            }
        }
    }

    fn doubt(&mut self, now: Instant) {
        self.doubted.get_or_insert(now);
    }

    /// When to look at the table; `None` while there is no reason to.
    #[must_use]
    pub(super) fn look_at(&self) -> Option<Instant> {
        let paused_until = self.last_look.map(|last| last + self.pause);
        self.doubted
            .map(|since| paused_until.map_or(since, |until| until.max(since)))
    }

    /// Whether to look now.
    #[must_use]
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.look_at().is_some_and(|at| at <= now)
    }

    /// The table is being looked at, or built anew: what comes later is another reason.
    pub(super) fn looked(&mut self, now: Instant) {
        let calm = self.last_look.is_none_or(|last| now - last > CALM);
        self.pause = if calm {
            FIRST_PAUSE
        } else {
            (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE)
        };
        self.last_look = Some(now);
        self.doubted = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_did_ourselves_is_no_reason_to_look() {
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
    fn after_a_loss_nothing_is_taken_for_ours() {
        let now = Instant::now();
        let mut drift = Drift::default();
        drift.applied(now);
        drift.notice(TableEvent::Missed, now);
        assert!(drift.is_due(now));
        drift.looked(now);
        assert_eq!(drift.look_at(), None);
        drift.notice(TableEvent::Changed, now);
        assert!(drift.look_at().is_some());
    }

    #[test]
    fn one_of_ours_that_was_never_told_hides_nothing_for_long() {
        let now = Instant::now();
        let mut drift = Drift::default();
        drift.applied(now);
        let later = now + TOLD_WITHIN + Duration::from_millis(1);
        drift.notice(TableEvent::Changed, later);
        assert!(drift.is_due(later));
    }

    #[test]
    fn looks_that_repeat_become_rare_and_calm_ends_that() {
        let mut now = Instant::now();
        let mut drift = Drift::default();
        let mut pauses = Vec::new();
        for _ in 0..10 {
            drift.notice(TableEvent::Missed, now);
            let at = drift.look_at().unwrap().max(now);
            pauses.push(at - now);
            now = at;
            drift.looked(now);
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
        drift.looked(now);
        drift.notice(TableEvent::Changed, now);
        assert_eq!(drift.look_at(), Some(now + FIRST_PAUSE));
    }
}
