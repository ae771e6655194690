//! When to look at which Service: at once after quiet times, and at a bounded rate
//! when many agents report one after the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use highwire_api::ServiceKey;

/// How long to wait for more before the first write. Agents answer within a few
/// milliseconds of each other.
const SETTLE: Duration = Duration::from_millis(20);

/// The shortest time between two writes to one Service.
const INTERVAL: Duration = Duration::from_millis(250);

/// The first and the longest wait after a write that failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// Which Services are to be looked at, and when.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    due: BTreeSet<(Instant, ServiceKey)>,
    entries: BTreeMap<ServiceKey, Entry>,
}

/// Where one Service stands.
#[derive(Debug, Default)]
struct Entry {
    phase: Phase,
    /// No write before this.
    not_before: Option<Instant>,
    failures: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// Nothing to do. Goes to `Queued` when touched.
    #[default]
    Idle,
    /// To be looked at, at that time. Goes to `Writing` when taken.
    Queued(Instant),
    /// A write is under way. Goes to `Idle` or `Queued` when it ends.
    Writing {
        /// Whether something happened meanwhile.
        touched: bool,
    },
}

impl Schedule {
    /// Something happened to the Service.
    pub(crate) fn touch(&mut self, key: &ServiceKey, now: Instant) {
        let entry = self.entries.entry(key.clone()).or_default();
        match entry.phase {
            Phase::Queued(at) => {
                // Who only waits until things have settled need not wait any more.
                let sooner = entry.not_before.unwrap_or(now).max(now + SETTLE);
                if sooner < at {
                    self.due.remove(&(at, key.clone()));
                    self.queue(key, sooner);
                }
            }
            Phase::Writing { .. } => entry.phase = Phase::Writing { touched: true },
            Phase::Idle => {
                let at = entry.not_before.unwrap_or(now).max(now + SETTLE);
                self.queue(key, at);
            }
        }
    }

    fn queue(&mut self, key: &ServiceKey, at: Instant) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.phase = Phase::Queued(at);
            self.due.insert((at, key.clone()));
        }
    }

    /// The next Service whose time has come. It must be [`settled`](Self::settled)
    /// or its write reported.
    pub(crate) fn take(&mut self, now: Instant) -> Option<ServiceKey> {
        if self.due.first()?.0 > now {
            return None;
        }
        let (_, key) = self.due.pop_first()?;
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.phase = Phase::Writing { touched: false };
        }
        Some(key)
    }

    /// When the next Service is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// There was nothing to write.
    pub(crate) fn settled(&mut self, key: &ServiceKey) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.phase = Phase::Idle;
            entry.failures = 0;
        }
    }

    /// There is something to write, but not before `at` unless more happens.
    pub(crate) fn wait(&mut self, key: &ServiceKey, at: Instant) {
        self.settled(key);
        self.queue(key, at);
    }

    /// The write ended well, or in a conflict, which the watch will explain.
    pub(crate) fn done(&mut self, key: &ServiceKey, now: Instant) {
        self.end(key, now, |entry| {
            entry.failures = 0;
            INTERVAL
        });
    }

    /// The write failed: once more later.
    pub(crate) fn failed(&mut self, key: &ServiceKey, now: Instant) {
        let (first, longest) = RETRY;
        self.end(key, now, |entry| {
            entry.failures = entry.failures.saturating_add(1);
            entry.phase = Phase::Writing { touched: true };
            first
                .saturating_mul(1 << (entry.failures - 1).min(10))
                .min(longest)
        });
    }

    fn end(&mut self, key: &ServiceKey, now: Instant, wait: impl FnOnce(&mut Entry) -> Duration) {
        let Some(entry) = self.entries.get_mut(key) else {
            return; // the Service is gone
        };
        let at = now + wait(entry);
        entry.not_before = Some(at);
        if entry.phase == (Phase::Writing { touched: true }) {
            self.queue(key, at);
        } else if matches!(entry.phase, Phase::Writing { .. }) {
            entry.phase = Phase::Idle;
        }
    }

    /// The Service is gone.
    pub(crate) fn forget(&mut self, key: &ServiceKey) {
        if let Some(Entry {
            phase: Phase::Queued(at),
            ..
        }) = self.entries.remove(key)
        {
            self.due.remove(&(at, key.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ServiceKey {
        ServiceKey {
            namespace: "ns".into(),
            name: name.into(),
        }
    }

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn the_first_change_is_written_at_once_and_a_burst_at_the_interval() {
        let (mut schedule, start, web) = (Schedule::default(), Instant::now(), key("web"));
        let mut writes = Vec::new();
        for at in 0..1000 {
            let now = start + ms(at);
            schedule.touch(&web, now);
            if schedule.take(now).is_some() {
                writes.push(at);
                schedule.done(&web, now);
            }
        }
        assert_eq!(writes, [20, 270, 520, 770]);
    }

    #[test]
    fn what_happens_during_a_write_is_looked_at_after_it() {
        let (mut schedule, start, web) = (Schedule::default(), Instant::now(), key("web"));
        schedule.touch(&web, start);
        assert_eq!(schedule.take(start + ms(20)), Some(web.clone()));
        schedule.touch(&web, start + ms(30));
        assert_eq!(schedule.next(), None, "one write at a time");
        schedule.done(&web, start + ms(40));
        assert_eq!(schedule.next(), Some(start + ms(290)));
    }

    #[test]
    fn who_waits_is_looked_at_sooner_when_something_happens() {
        let (mut schedule, start, web) = (Schedule::default(), Instant::now(), key("web"));
        schedule.touch(&web, start);
        schedule.take(start + ms(20)).unwrap();
        schedule.wait(&web, start + ms(400));
        assert_eq!(schedule.next(), Some(start + ms(400)));
        schedule.touch(&web, start + ms(100));
        schedule.touch(&web, start + ms(110));
        assert_eq!(schedule.next(), Some(start + ms(120)));
        assert_eq!(schedule.due.len(), 1);
    }

    #[test]
    fn failures_are_retried_ever_more_slowly_until_one_succeeds() {
        let (mut schedule, mut now, web) = (Schedule::default(), Instant::now(), key("web"));
        schedule.touch(&web, now);
        let mut waits = Vec::new();
        for _ in 0..8 {
            now = schedule.next().unwrap();
            schedule.take(now).unwrap();
            schedule.failed(&web, now);
            waits.push(schedule.next().unwrap() - now);
        }
        assert_eq!(waits[..4], [ms(500), ms(1000), ms(2000), ms(4000)]);
        assert_eq!(waits[7], RETRY.1);
        now = schedule.next().unwrap();
        schedule.take(now).unwrap();
        schedule.done(&web, now);
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn nothing_is_kept_of_what_is_gone() {
        let (mut schedule, now) = (Schedule::default(), Instant::now());
        schedule.touch(&key("queued"), now);
        schedule.forget(&key("queued"));
        schedule.touch(&key("writing"), now);
        schedule.take(now + SETTLE).unwrap();
        schedule.forget(&key("writing"));
        schedule.done(&key("writing"), now);
        assert!(schedule.due.is_empty() && schedule.entries.is_empty());
    }
}
