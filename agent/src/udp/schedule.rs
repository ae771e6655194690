//! When to look for stale flows.

use std::time::{Duration, Instant};

/// When to look after a change. kube-proxy learns of the same change in its own
/// time, 1 s or more after us by its default `minSyncPeriod`, and until then sends
/// a client whose flow we deleted to the dead Pod again.
const AFTER_CHANGE: [Duration; 7] = [
    Duration::ZERO,
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(1000),
    Duration::from_millis(1500),
    Duration::from_millis(3000),
    Duration::from_millis(6000),
];
/// A look that found something is followed by another one so soon: a client that
/// sends steadily has got to the dead Pod again unless kube-proxy is done.
const AGAIN: Duration = Duration::from_millis(150);
/// However many changes there are, no look is sooner after another.
const SHORTEST_GAP: Duration = Duration::from_millis(100);
/// If there is still something at the end, kube-proxy is late: the next look is later
/// by a tenth of the time since the change, so that a client waits at most so much
/// longer than kube-proxy lets it, but at least by …
const SHORTEST_EXTRA: Duration = Duration::from_secs(2);
/// … this, and at most by this.
const LONGEST_EXTRA: Duration = Duration::from_secs(10);

/// When the next look is due. Without a change, and after one once all is well,
/// never.
#[derive(Debug, Default)]
pub struct Schedule {
    due: Option<Instant>,
    last: Option<Instant>,
    changed: Option<Instant>,
}

impl Schedule {
    /// When the next look is due, if any is.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Something changed that can make flows stale.
    pub fn changed(&mut self, now: Instant) {
        self.changed = Some(now);
        self.due = Some(self.not_too_soon(now));
    }

    /// A look was taken and is over; `quiet` if it found nothing stale.
    pub fn looked(&mut self, now: Instant, quiet: bool) {
        self.last = Some(now);
        let changed = self.changed.unwrap_or(now);
        let mut planned = AFTER_CHANGE.iter().map(|after| changed + *after);
        self.due = match planned.find(|at| *at > now) {
            Some(at) if quiet => Some(self.not_too_soon(at)),
            Some(at) => Some(self.not_too_soon(at.min(now + AGAIN))),
            None if quiet => None,
            None => {
                let late = now.duration_since(changed);
                Some(now + (late / 10).clamp(SHORTEST_EXTRA, LONGEST_EXTRA))
            }
        };
    }

    fn not_too_soon(&self, at: Instant) -> Instant {
        self.last.map_or(at, |last| at.max(last + SHORTEST_GAP))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The next looks, in milliseconds since `start`, each of which takes no time.
    fn looks(schedule: &mut Schedule, start: Instant, quiet: bool, most: usize) -> Vec<u128> {
        let mut looks = Vec::new();
        while let Some(due) = schedule.due().filter(|_| looks.len() < most) {
            looks.push((due - start).as_millis());
            schedule.looked(due, quiet);
        }
        looks
    }

    #[test]
    fn a_change_is_looked_after_for_some_seconds_and_then_no_more() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.due(), None, "nothing has changed yet");
        let start = Instant::now();
        schedule.changed(start);
        assert_eq!(
            looks(&mut schedule, start, true, 99),
            [0, 250, 500, 1000, 1500, 3000, 6000]
        );
    }

    #[test]
    fn as_long_as_something_is_found_looks_are_close() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        schedule.changed(start);
        assert_eq!(
            looks(&mut schedule, start, false, 5),
            [0, 150, 250, 400, 500]
        );
        assert_eq!(
            looks(&mut schedule, start, true, 99),
            [650, 1000, 1500, 3000, 6000],
            "and once nothing is found, as planned"
        );
    }

    #[test]
    fn what_is_found_in_the_end_is_looked_after_a_tenth_slower() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        schedule.changed(start);
        let all = looks(&mut schedule, start, false, 100);
        let late: Vec<u128> = all.into_iter().filter(|at| *at > 6000).collect();
        assert_eq!(late[..3], [8_000, 10_000, 12_000]);
        let gaps: Vec<u128> = late.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(
            gaps.is_sorted() && gaps[gaps.len() - 1] == 10_000,
            "{gaps:?}"
        );
        let seen = looks(&mut schedule, start, true, 99);
        assert_eq!(seen.len(), 1, "it ends once nothing is found");
    }

    #[test]
    fn changes_close_together_cost_ten_looks_a_second() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        let mut seen = 0;
        for milliseconds in 0..1000 {
            let now = start + Duration::from_millis(milliseconds);
            schedule.changed(now);
            if schedule.due().is_some_and(|due| due <= now) {
                schedule.looked(now, true);
                seen += 1;
            }
        }
        assert_eq!(seen, 10);
    }

    #[test]
    fn a_slow_look_is_followed_by_a_pause() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        schedule.changed(start);
        let end = start + Duration::from_millis(700);
        schedule.looked(end, false);
        assert_eq!(schedule.due(), Some(end + AGAIN));
        let end = start + Duration::from_millis(2950);
        schedule.looked(end, true);
        assert_eq!(schedule.due(), Some(end + SHORTEST_GAP));
    }
}
