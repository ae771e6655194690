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

/// The shortest time between two refreshes, over all Services, after a burst: 50 a second.
const PACE: Duration = Duration::from_millis(20);

/// How many refreshes a burst may have after a quiet time.
const BURST: u32 = 100;

/// Which Services are to be looked at, and when.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    /// Those that wait for their first address, and the others.
    due: [BTreeSet<(Instant, ServiceKey)>; 2],
    entries: BTreeMap<ServiceKey, Entry>,
    budget: Budget,
}

/// How much a Service's next write matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Rank {
    /// It brings the first address of a new Service. The API server has taken a write
    /// for each of those, so it can take another: they cost no budget.
    First,
    /// It can wait a little.
    #[default]
    Refresh,
}

impl Rank {
    const ALL: [Self; 2] = [Self::First, Self::Refresh];
}

/// A token bucket for the refreshes of all Services (as GCRA): the time at which it will
/// be full again.
#[derive(Debug, Default)]
struct Budget(Option<Instant>);

impl Budget {
    /// When there is something in it; `None` if always.
    fn ready(&self) -> Option<Instant> {
        // An instant so early that it cannot be said is long past.
        self.0?.checked_sub(PACE * (BURST - 1))
    }

    fn spend(&mut self, now: Instant) {
        self.0 = Some(self.0.map_or(now, |full| full.max(now)) + PACE);
    }
}

/// Where one Service stands.
#[derive(Debug, Default)]
struct Entry {
    phase: Phase,
    /// No write before this.
    not_before: Option<Instant>,
    failures: u32,
    rank: Rank,
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
    pub(crate) fn touch(&mut self, key: &ServiceKey, rank: Rank, now: Instant) {
        let entry = self.entries.entry(key.clone()).or_default();
        let old = std::mem::replace(&mut entry.rank, rank);
        match entry.phase {
            Phase::Queued(at) => {
                // Who only waits until things have settled need not wait any more.
                let sooner = entry.not_before.unwrap_or(now).max(now + SETTLE);
                if sooner < at || rank != old {
                    self.due[old as usize].remove(&(at, key.clone()));
                    self.queue(key, sooner.min(at));
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
            self.due[entry.rank as usize].insert((at, key.clone()));
        }
    }

    /// The next Service whose time has come, new ones first. It must be
    /// [`settled`](Self::settled) or its write reported.
    pub(crate) fn take(&mut self, now: Instant) -> Option<ServiceKey> {
        let rank = Rank::ALL
            .into_iter()
            .find(|rank| self.next_of(*rank).is_some_and(|at| at <= now))?;
        let (_, key) = self.due[rank as usize].pop_first()?;
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.phase = Phase::Writing { touched: false };
        }
        Some(key)
    }

    /// When the next Service is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        let next = Rank::ALL.into_iter().filter_map(|rank| self.next_of(rank));
        next.min()
    }

    fn next_of(&self, rank: Rank) -> Option<Instant> {
        let (at, _) = self.due[rank as usize].first()?;
        let ready = match rank {
            Rank::First => None,
            Rank::Refresh => self.budget.ready(),
        };
        Some(ready.map_or(*at, |ready| ready.max(*at)))
    }

    /// A write to the Service begins.
    pub(crate) fn spend(&mut self, key: &ServiceKey, now: Instant) {
        let rank = self.entries.get(key).map(|entry| entry.rank);
        if rank == Some(Rank::Refresh) {
            self.budget.spend(now);
        }
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
            rank,
            ..
        }) = self.entries.remove(key)
        {
            self.due[rank as usize].remove(&(at, key.clone()));
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
            schedule.touch(&web, Rank::Refresh, now);
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
        schedule.touch(&web, Rank::Refresh, start);
        assert_eq!(schedule.take(start + ms(20)), Some(web.clone()));
        schedule.touch(&web, Rank::Refresh, start + ms(30));
        assert_eq!(schedule.next(), None, "one write at a time");
        schedule.done(&web, start + ms(40));
        assert_eq!(schedule.next(), Some(start + ms(290)));
    }

    #[test]
    fn who_waits_is_looked_at_sooner_when_something_happens() {
        let (mut schedule, start, web) = (Schedule::default(), Instant::now(), key("web"));
        schedule.touch(&web, Rank::Refresh, start);
        schedule.take(start + ms(20)).unwrap();
        schedule.wait(&web, start + ms(400));
        assert_eq!(schedule.next(), Some(start + ms(400)));
        schedule.touch(&web, Rank::Refresh, start + ms(100));
        schedule.touch(&web, Rank::Refresh, start + ms(110));
        assert_eq!(schedule.next(), Some(start + ms(120)));
        assert_eq!(schedule.due[1].len(), 1);
    }

    #[test]
    fn failures_are_retried_ever_more_slowly_until_one_succeeds() {
        let (mut schedule, mut now, web) = (Schedule::default(), Instant::now(), key("web"));
        schedule.touch(&web, Rank::Refresh, now);
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
        schedule.touch(&key("queued"), Rank::Refresh, now);
        schedule.forget(&key("queued"));
        schedule.touch(&key("writing"), Rank::Refresh, now);
        schedule.take(now + SETTLE).unwrap();
        schedule.forget(&key("writing"));
        schedule.done(&key("writing"), now);
        assert!(schedule.due[1].is_empty() && schedule.entries.is_empty());
    }

    #[test]
    fn refreshes_share_a_budget_and_first_addresses_go_before_them() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        for number in 0..1000 {
            schedule.touch(&key(&format!("old-{number}")), Rank::Refresh, start);
        }
        let pass = |schedule: &mut Schedule, from: u64, to: u64| {
            let mut written = Vec::new();
            for now in (from..to).map(|at| start + ms(at)) {
                while let Some(key) = schedule.take(now) {
                    schedule.spend(&key, now);
                    schedule.done(&key, now);
                    written.push(key.name);
                }
            }
            written
        };
        assert_eq!(pass(&mut schedule, 0, 21).len(), 100);
        assert_eq!(
            schedule.next(),
            Some(start + ms(40)),
            "it sleeps until then"
        );
        assert_eq!(pass(&mut schedule, 21, 1021).len(), 50, "a second's worth");
        for number in 0..200 {
            let new = key(&format!("new-{number}"));
            schedule.touch(&new, Rank::First, start + ms(1021));
        }
        let written = pass(&mut schedule, 1021, 1061);
        assert!(written[1..201].iter().all(|name| name.starts_with("new")));
        assert_eq!(written.len(), 202);
        let rest = pass(&mut schedule, 1061, 60_000);
        assert_eq!(100 + 50 + 2 + rest.len(), 1000, "none is forgotten");
    }

    #[test]
    fn a_service_that_becomes_new_or_old_is_queued_once() {
        let (mut schedule, now, web) = (Schedule::default(), Instant::now(), key("web"));
        for rank in [Rank::Refresh, Rank::First, Rank::First, Rank::Refresh] {
            schedule.touch(&web, rank, now);
            let queued: Vec<usize> = schedule.due.iter().map(BTreeSet::len).collect();
            assert_eq!(queued[rank as usize], 1);
            assert_eq!(queued.iter().sum::<usize>(), 1);
        }
    }
}
