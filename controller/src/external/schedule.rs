//! When to send what to one box. Pure: time goes in, the next request comes out.
//!
//! Of each backend it is known what is wanted and what the box took last. There is never more
//! than one request for a backend; what changes meanwhile goes out after it. What fails is
//! sent again, ever more slowly. What the box has is sent again when it is older than the
//! resync interval, since a box may have been restarted.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU16,
    time::{Duration, Instant},
};

use highwire_api::{Protocol, external::spec::RecordedBackend};

use super::backend::Backend;

/// The first and the longest wait after a request that failed.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How long to wait for more before a change is sent.
const SETTLE: Duration = Duration::from_millis(100);

/// A request to the box.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Which backend it is about.
    pub name: RecordedBackend,
    /// What it should be; `None` to delete it.
    pub backend: Option<Backend>,
}

/// One backend on the box.
#[derive(Debug, Default)]
struct Entry {
    /// What it should be; `None` to be deleted.
    wanted: Option<Backend>,
    /// What the box took, and when.
    taken: Option<(Option<Backend>, Instant)>,
    /// What is being sent.
    sending: Option<Option<Backend>>,
    failures: u32,
    /// Nothing is sent before this.
    not_before: Option<Instant>,
}

/// What may be sent.
struct Sendable<'a> {
    /// When; without a time at once.
    at: Option<Instant>,
    name: &'a RecordedBackend,
    backend: Option<&'a Backend>,
}

/// What one box should have.
#[derive(Debug)]
pub struct Schedule {
    entries: BTreeMap<RecordedBackend, Entry>,
    resync: Duration,
}

impl Schedule {
    /// Nothing is wanted yet.
    #[must_use]
    pub fn new(resync: Duration) -> Self {
        Self {
            entries: BTreeMap::new(),
            resync,
        }
    }

    /// Sends what the box has again after this time from now on.
    pub fn resync_after(&mut self, resync: Duration) {
        self.resync = resync;
    }

    /// Sends what failed at once: what made it fail may be mended.
    pub fn retry_now(&mut self) {
        for entry in self.entries.values_mut().filter(|it| it.failures > 0) {
            entry.not_before = None;
        }
    }

    /// Wants these backends, and those to be deleted that were wanted before and are not among
    /// them.
    pub fn want(&mut self, mut wanted: BTreeMap<RecordedBackend, Backend>, now: Instant) {
        for (name, entry) in &mut self.entries {
            let new = wanted.remove(name);
            if entry.wanted != new {
                entry.change(new, now);
            }
        }
        for (name, backend) in wanted {
            let entry = Entry {
                wanted: Some(backend),
                not_before: Some(now + SETTLE),
                ..Entry::default()
            };
            self.entries.insert(name, entry);
        }
    }

    /// Remembers a backend that has to be deleted, unless it is wanted.
    pub fn forget(&mut self, name: RecordedBackend) {
        self.entries.entry(name).or_default();
    }

    /// The next request, if one is due. Its end must be reported by [`Self::ended`].
    pub fn next(&mut self, now: Instant) -> Option<Request> {
        let due = self.sendable().filter(|it| it.at <= Some(now));
        let Sendable { name, backend, .. } = due.min_by_key(|it| (it.at, it.name))?;
        let request = Request {
            name: name.clone(),
            backend: backend.cloned(),
        };
        let entry = self.entries.get_mut(&request.name)?;
        entry.sending = Some(request.backend.clone());
        Some(request)
    }

    /// When the next request is due.
    #[must_use]
    pub fn wake(&self, now: Instant) -> Option<Instant> {
        self.sendable().map(|it| it.at.unwrap_or(now)).min()
    }

    /// What may be sent. A backend waits for its port while another has that, and gives up
    /// its own meanwhile, since the other may wait for that one.
    fn sendable(&self) -> impl Iterator<Item = Sendable<'_>> {
        let mut holders = BTreeMap::<_, BTreeSet<_>>::new();
        for (name, entry) in &self.entries {
            for backend in entry.there() {
                holders.entry(port(name, backend)).or_default().insert(name);
            }
        }
        self.entries.iter().filter_map(move |(name, entry)| {
            let at = entry.due(self.resync)?;
            let wanted = entry.wanted.as_ref();
            let held = wanted.and_then(|it| holders.get(&port(name, it)));
            let is_held = held.is_some_and(|all| all.iter().any(|holder| *holder != name));
            let is_there = entry.there().next().is_some();
            let backend = wanted.filter(|_| !is_held);
            (!is_held || is_there).then_some(Sendable { at, name, backend })
        })
    }

    /// A request has ended; `jitter` (0 to 1) keeps retries apart.
    pub fn ended(&mut self, name: &RecordedBackend, is_taken: bool, jitter: f64, now: Instant) {
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        let Some(sent) = entry.sending.take() else {
            return;
        };
        if !is_taken {
            // It may have been carried out all the same.
            entry.taken = None;
            let (first, longest) = RETRY;
            let wait = first
                .saturating_mul(1 << entry.failures.min(10))
                .min(longest);
            entry.failures += 1;
            entry.not_before = Some(now + wait.mul_f64(1.0 + jitter.clamp(0.0, 1.0) / 2.0));
            return;
        }
        entry.failures = 0;
        let is_gone = sent.is_none() && entry.wanted.is_none();
        entry.taken = Some((sent, now));
        if is_gone {
            self.entries.remove(name);
        }
    }

    /// Whether the box has taken that backend as it is wanted.
    #[must_use]
    pub fn has(&self, name: &RecordedBackend) -> bool {
        self.entries.get(name).is_some_and(Entry::is_taken)
    }

    /// Whether the box has, or has deleted, all as it is wanted.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.entries.values().all(Entry::is_taken)
    }

    /// Whether something of that name is wanted, or has to be deleted still.
    #[must_use]
    pub fn knows(&self, name: &RecordedBackend) -> bool {
        self.entries.contains_key(name)
    }
}

impl Entry {
    fn is_taken(&self) -> bool {
        let taken = self.taken.as_ref();
        taken.is_some_and(|(taken, _)| *taken == self.wanted)
    }

    /// Something else is wanted. The first change waits for more; those behind it, and what
    /// fails, do not wait anew.
    fn change(&mut self, wanted: Option<Backend>, now: Instant) {
        if self.is_taken() {
            self.not_before = Some(now + SETTLE);
        }
        self.wanted = wanted;
    }

    /// What the box may have of it.
    fn there(&self) -> impl Iterator<Item = &Backend> {
        let taken = self.taken.iter().filter_map(|(taken, _)| taken.as_ref());
        taken.chain(self.sending.iter().flatten())
    }

    /// When to send it, `Some(None)` at once; `None` while it is being sent.
    fn due(&self, resync: Duration) -> Option<Option<Instant>> {
        if self.sending.is_some() {
            return None;
        }
        match &self.taken {
            Some((_, at)) if self.is_taken() => Some(Some(*at + resync)),
            _ => Some(self.not_before),
        }
    }
}

/// A port of the box at that URL.
fn port<'a>(name: &'a RecordedBackend, backend: &Backend) -> (&'a str, Protocol, NonZeroU16) {
    (&name.url, backend.protocol, backend.port)
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
