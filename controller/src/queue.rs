//! When to decide about which Service: the one place where changes are collected.
//!
//! A change of addresses waits 20 ms for more, a change of a condition as long as the
//! decision says, a list that would become empty for its hold. Writes to one Service keep an
//! interval, those to all Services a budget, and failed ones are repeated ever more slowly.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use highwire_api::ServiceKey;

/// How long to wait for more before addresses are written. Agents answer within a few
/// milliseconds of each other.
const SETTLE: Duration = Duration::from_millis(20);

/// The shortest time between two writes to one Service.
const INTERVAL: Duration = Duration::from_millis(250);

/// The first and the longest wait after a write that failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// A refresh is sent to the watches of every node, so the shortest time between two, over all
/// Services and after a burst, is so much for each node …
const PACE_PER_NODE: Duration = Duration::from_micros(200);

/// … and at least and at most this: 200 a second with up to 25 nodes, 50 with 100 and more.
const PACE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(20));

/// How many refreshes a burst may have after a quiet time.
const BURST: u32 = 100;

/// How much a Service's next write matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rank {
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

/// What of a status may have to wait longer than addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// An empty list.
    Empty,
    /// The condition about refused ports.
    PortsError,
    /// The condition about addresses.
    Serving,
}

/// A token bucket for the refreshes of all Services (as GCRA).
#[derive(Debug)]
struct Budget {
    /// When it will be full again.
    full: Option<Instant>,
    /// How long what one refresh takes needs to come back.
    pace: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            full: None,
            pace: PACE.1,
        }
    }
}

impl Budget {
    /// When there is something in it; `None` if always.
    fn ready(&self) -> Option<Instant> {
        // An instant so early that it cannot be said is long past.
        self.full?.checked_sub(self.pace * (BURST - 1))
    }

    fn spend(&mut self, now: Instant) {
        self.full = Some(self.full.map_or(now, |full| full.max(now)) + self.pace);
    }
}

/// The Services that are due, or will be.
#[derive(Debug, Default)]
pub struct Queue {
    /// Those that are due and not taken, by [`Rank`].
    due: [BTreeSet<(Instant, ServiceKey)>; 2],
    entries: BTreeMap<ServiceKey, Entry>,
    budget: Budget,
}

/// How many Services there is something to do for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// To decide about now. They wait for the budget, or for a write to end.
    pub due: usize,
    /// To decide about at a later time.
    pub later: usize,
    /// Being written.
    pub writing: usize,
}

impl Depth {
    /// The counts with their names in metrics.
    #[must_use]
    pub fn states(self) -> [(&'static str, usize); 3] {
        [
            ("due", self.due),
            ("later", self.later),
            ("writing", self.writing),
        ]
    }
}

/// The state of one Service.
#[derive(Debug, Default)]
struct Entry {
    /// When to decide about it, if there is anything to decide.
    due: Option<Instant>,
    /// Whether it is being decided, or written; it is not taken again until that ends.
    taken: bool,
    rank: Rank,
    /// No write before this.
    not_before: Option<Instant>,
    failures: u32,
    /// Since when each [`Part`] of the status should be another.
    since: [Option<Instant>; 3],
}

impl Entry {
    fn end(&mut self, at: Instant) {
        self.taken = false;
        self.not_before = Some(at);
        self.due = self.due.map(|due| due.max(at));
    }
}

impl Queue {
    /// Changes an entry, if there is one, and its place in the queue.
    fn update(&mut self, key: &ServiceKey, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.entries.get_mut(key) {
            if let Some(at) = entry.due {
                self.due[entry.rank as usize].remove(&(at, key.clone()));
            }
            change(entry);
            if let Some(at) = entry.due.filter(|_| !entry.taken) {
                self.due[entry.rank as usize].insert((at, key.clone()));
            }
        }
    }

    /// So many nodes watch what is written.
    pub fn watched_by(&mut self, nodes: usize) {
        let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
        let (least, most) = PACE;
        self.budget.pace = PACE_PER_NODE.saturating_mul(nodes).clamp(least, most);
    }

    /// Something happened to the Service.
    pub fn touch(&mut self, key: &ServiceKey, rank: Rank, now: Instant) {
        self.entries.entry(key.clone()).or_default();
        self.update(key, |entry| {
            let at = Some(now + SETTLE).max(entry.not_before);
            entry.due = entry.due.into_iter().chain(at).min();
            entry.rank = rank;
        });
    }

    /// The next Service that is due, new ones first. One of [`Self::wait`], or
    /// [`Self::write`] and later [`Self::done`] or [`Self::failed`], must follow.
    pub fn take(&mut self, now: Instant) -> Option<ServiceKey> {
        let rank = Rank::ALL
            .into_iter()
            .find(|rank| self.next_of(*rank).is_some_and(|at| at <= now))?;
        let (_, key) = self.due[rank as usize].first()?.clone();
        self.update(&key, |entry| {
            entry.due = None;
            entry.taken = true;
        });
        Some(key)
    }

    /// When the next Service is due.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        let next = Rank::ALL.into_iter().filter_map(|rank| self.next_of(rank));
        next.min()
    }

    /// How many Services are in which state.
    #[must_use]
    pub fn depth(&self, now: Instant) -> Depth {
        let waiting: usize = self.due.iter().map(BTreeSet::len).sum();
        let begun = |due: &BTreeSet<(Instant, ServiceKey)>| {
            due.iter().take_while(|(at, _)| *at <= now).count()
        };
        let due = self.due.iter().map(begun).sum();
        Depth {
            due,
            later: waiting - due,
            writing: self.entries.values().filter(|entry| entry.taken).count(),
        }
    }

    fn next_of(&self, rank: Rank) -> Option<Instant> {
        let (at, _) = self.due[rank as usize].first()?;
        let ready = match rank {
            Rank::First => None,
            Rank::Refresh => self.budget.ready(),
        };
        Some(ready.map_or(*at, |ready| ready.max(*at)))
    }

    /// Notes whether a part of the status should be another. Returns when it will have been
    /// so for `delay`; `None` if it is not so.
    pub fn due(
        &mut self,
        key: &ServiceKey,
        part: Part,
        differs: bool,
        delay: Duration,
        now: Instant,
    ) -> Option<Instant> {
        let since = &mut self.entries.get_mut(key)?.since[part as usize];
        *since = differs.then(|| since.unwrap_or(now));
        since.map(|since| since + delay)
    }

    /// There is nothing to write before `at`, if ever, unless more happens.
    pub fn wait(&mut self, key: &ServiceKey, at: Option<Instant>) {
        self.update(key, |entry| {
            entry.taken = false;
            entry.failures = 0;
            entry.due = at;
        });
    }

    /// A write to the Service begins, of these parts and maybe of its addresses.
    pub fn write(&mut self, key: &ServiceKey, parts: impl Iterator<Item = Part>, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        parts.for_each(|part| entry.since[part as usize] = None);
        if entry.rank == Rank::Refresh {
            self.budget.spend(now);
        }
    }

    /// The API server said that the Service has changed, or is gone. The watch brings that,
    /// and with it the next try; if it was not so, there is one after the longest wait.
    pub fn refused(&mut self, key: &ServiceKey, now: Instant) {
        let (_, longest) = RETRY;
        self.update(key, |entry| {
            entry.failures = 0;
            entry.due = entry.due.or(Some(now + longest));
            entry.end(now + INTERVAL);
        });
    }

    /// The write ended well.
    pub fn done(&mut self, key: &ServiceKey, now: Instant) {
        self.update(key, |entry| {
            entry.failures = 0;
            entry.end(now + INTERVAL);
        });
    }

    /// The write failed: once more later.
    pub fn failed(&mut self, key: &ServiceKey, now: Instant) {
        let (first, longest) = RETRY;
        self.update(key, |entry| {
            let factor = 1 << entry.failures.min(10);
            entry.failures += 1;
            entry.due = Some(now);
            entry.end(now + first.saturating_mul(factor).min(longest));
        });
    }

    /// The Service is gone.
    pub fn forget(&mut self, key: &ServiceKey) {
        self.update(key, |entry| entry.due = None);
        self.entries.remove(key);
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
