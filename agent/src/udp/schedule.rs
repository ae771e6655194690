//! When to sweep for stale flows.

use std::time::{Duration, Instant};

/// When to sweep after a change. kube-proxy programs the same change later, 1 s or more
/// after us by its default `minSyncPeriod`, and until then sends a client whose flow we
/// deleted to the dead Pod again.
const AFTER_CHANGE: [Duration; 7] = [
    Duration::ZERO,
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(1000),
    Duration::from_millis(1500),
    Duration::from_millis(3000),
    Duration::from_millis(6000),
];
/// After a sweep that found something, the next one comes so soon: a client that sends
/// steadily is at the dead Pod again unless kube-proxy is done.
const AGAIN: Duration = Duration::from_millis(150);
/// However many changes there are, sweeps are this far apart.
const SHORTEST_GAP: Duration = Duration::from_millis(100);
/// If there is still something at the end, kube-proxy is late: the next sweep comes after
/// a tenth of the time since the change, so that a client waits at most so much longer
/// than it has to wait for kube-proxy, but at least after …
const SHORTEST_EXTRA: Duration = Duration::from_secs(2);
/// … this, and at most by this: however late kube-proxy is, nobody waits longer for us.
const LONGEST_EXTRA: Duration = Duration::from_secs(4);
/// A client that sends now and then is at the dead Pod again only once it has sent. So
/// sweeps go on until none has found anything for this long.
const QUIET_END: Duration = Duration::from_secs(10);

/// When the next sweep is due. Never without a change, and never once nothing was found
/// at the end.
#[derive(Debug, Default)]
pub struct Schedule {
    due: Option<Instant>,
    last: Option<Instant>,
    changed: Option<Instant>,
    /// When something was found last.
    found: Option<Instant>,
}

impl Schedule {
    /// When the next sweep is due, if any is.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Something changed that can make flows stale.
    pub fn changed(&mut self, now: Instant) {
        self.changed = Some(now);
        self.due = Some(self.not_too_soon(now));
    }

    /// A sweep is over; `quiet` if it found nothing stale.
    pub fn swept(&mut self, now: Instant, quiet: bool) {
        self.last = Some(now);
        if !quiet {
            self.found = Some(now);
        }
        let changed = self.changed.unwrap_or(now);
        let mut planned = AFTER_CHANGE.iter().map(|after| changed + *after);
        self.due = match planned.find(|at| *at > now) {
            Some(at) if quiet => Some(self.not_too_soon(at)),
            Some(at) => Some(self.not_too_soon(at.min(now + AGAIN))),
            None => {
                let late = now.duration_since(changed);
                let next = now + (late / 10).clamp(SHORTEST_EXTRA, LONGEST_EXTRA);
                self.found
                    .is_some_and(|found| now < found + QUIET_END)
                    .then_some(next)
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

    /// The next sweeps, in milliseconds since `start`, each of which takes no time.
    fn sweeps(schedule: &mut Schedule, start: Instant, quiet: bool, most: usize) -> Vec<u128> {
        let mut sweeps = Vec::new();
        while let Some(due) = schedule.due().filter(|_| sweeps.len() < most) {
            sweeps.push((due - start).as_millis());
            schedule.swept(due, quiet);
        }
        sweeps
    }

    #[test]
    fn a_change_is_looked_after_for_some_seconds_and_then_no_more() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.due(), None, "nothing has changed yet");
        let start = Instant::now();
        schedule.changed(start);
        assert_eq!(
            sweeps(&mut schedule, start, true, 99),
            [0, 250, 500, 1000, 1500, 3000, 6000]
        );
    }

    #[test]
    fn as_long_as_something_is_found_sweeps_are_close() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        schedule.changed(start);
        assert_eq!(
            sweeps(&mut schedule, start, false, 5),
            [0, 150, 250, 400, 500]
        );
        assert_eq!(
            sweeps(&mut schedule, start, true, 99),
            [650, 1000, 1500, 3000, 6000, 8000, 10_000, 12_000],
            "and once nothing is found, as planned, and a little longer"
        );
    }

    #[test]
    fn what_is_found_in_the_end_is_looked_after_a_tenth_slower() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        schedule.changed(start);
        let all = sweeps(&mut schedule, start, false, 100);
        let late: Vec<u128> = all.into_iter().filter(|at| *at > 6000).collect();
        assert_eq!(late[..3], [8_000, 10_000, 12_000]);
        let gaps: Vec<u128> = late.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(
            gaps.is_sorted() && gaps[gaps.len() - 1] == 4_000,
            "{gaps:?}"
        );
    }

    #[test]
    fn late_sweeps_end_once_nothing_was_found_for_a_while() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        schedule.changed(start);
        sweeps(&mut schedule, start, true, 6);
        let found = sweeps(&mut schedule, start, false, 1);
        assert_eq!(found, [6_000]);
        // A client that sends every 7 s is found again.
        let quiet = sweeps(&mut schedule, start, true, 3);
        assert_eq!(quiet, [8_000, 10_000, 12_000]);
        let found = sweeps(&mut schedule, start, false, 1);
        assert_eq!(found, [14_000]);
        let quiet = sweeps(&mut schedule, start, true, 99);
        assert_eq!(quiet, [16_000, 18_000, 20_000, 22_000, 24_200]);
        schedule.changed(start + Duration::from_secs(60));
        let next = sweeps(&mut schedule, start, true, 99);
        assert_eq!(next.last(), Some(&66_000), "what was found is forgotten");
    }

    #[test]
    fn changes_close_together_cost_ten_sweeps_a_second() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        let mut seen = 0;
        for milliseconds in 0..1000 {
            let now = start + Duration::from_millis(milliseconds);
            schedule.changed(now);
            if schedule.due().is_some_and(|due| due <= now) {
                schedule.swept(now, true);
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
        schedule.swept(end, false);
        assert_eq!(schedule.due(), Some(end + AGAIN));
        let end = start + Duration::from_millis(2950);
        schedule.swept(end, true);
        assert_eq!(schedule.due(), Some(end + SHORTEST_GAP));
    }
}
