//! What kube-proxy has yet to program: until then a Service's clients would wait or be
//! refused here, so the report does not say that the Service was observed. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use highwire_api::{Family, ResourceVersion, arbitration::Slot};
use itertools::Itertools as _;
use jiff::Timestamp;

use super::done_up_to;
use crate::{
    decide::{Decision, Forward, Target},
    facts::service_proxy::{
        Syncs,
        entrances::{Entrance, EntranceKind},
    },
};

/// How often the kernel is asked while something new is awaited, …
const CHECK: Duration = Duration::from_millis(50);
/// … and later.
const LATE_CHECK: Duration = Duration::from_millis(500);
/// When an entrance is late. By default kube-proxy syncs within a second of a change.
const LATE: Duration = Duration::from_millis(1200);
/// How often kube-proxy is asked about its syncs before anything is late: from two answers
/// follows how long those in between took.
const LISTEN: Duration = Duration::from_secs(1);
/// kube-proxy has nothing to program if its last sync is so long ago, and nothing came since
/// that began.
const IDLE: Duration = Duration::from_millis(1100);
/// A sync that began so long after a Service was seen knew the Service and its endpoints:
/// they are made right after it.
const SETTLED: Duration = Duration::from_secs(1);
/// In place of [`IDLE`] if it is not known whether the last sync began after the last change;
/// and how long a late entrance is awaited if kube-proxy says nothing of its syncs.
const LONGEST: Duration = Duration::from_secs(3);

/// The entrances that the plan sends connections to and kube-proxy may not have yet.
#[derive(Debug, Default)]
pub struct Awaited {
    /// What is forwarded.
    decision: Arc<Decision>,
    /// Those of its entrances that kube-proxy was not yet found to have.
    waiting: BTreeMap<Entrance, Since>,
    /// How far the Services were read when the plan last changed, or later.
    observed: ResourceVersion,
    /// When kube-proxy was last asked about its syncs.
    asked: Option<Instant>,
    /// Its last sync of each family.
    syncs: BTreeMap<Family, Sync>,
}

/// The last sync of a family.
#[derive(Debug)]
struct Sync {
    ended: Timestamp,
    /// Not earlier than this, if it is known; later if several ran between two answers.
    began: Option<Timestamp>,
    /// All syncs up to its end took so long together.
    spent: Option<Duration>,
    /// When a change last came.
    queued: Option<Timestamp>,
}

impl Sync {
    /// The last one that kube-proxy names, with what was known of the one before.
    fn of(syncs: &Syncs, family: Family, before: Option<&Self>) -> Option<Self> {
        let (ended, spent) = (syncs.last(family)?, syncs.spent(family));
        let began = match before {
            Some(before) if before.ended == ended => before.began,
            Some(before) => spent.zip(before.spent).map(|(now, then)| {
                // It has started anew if it is less.
                ended - now.checked_sub(then).unwrap_or(now)
            }),
            None => None,
        };
        Some(Self {
            ended,
            began,
            spent,
            queued: syncs.queued(family),
        })
    }

    /// Whether it had all that belongs to a Service that was first seen then.
    fn knew(&self, seen: Timestamp, now: Timestamp) -> bool {
        let took = self.began.map(|began| self.ended.duration_since(began));
        let is_idle = |began: Timestamp| self.queued <= Some(began) && now >= self.ended + IDLE;
        let began_late = |began: Timestamp| began >= seen + SETTLED;
        // One that runs since, and takes twice as long, would have ended.
        let next = LONGEST + took.unwrap_or_default().unsigned_abs() * 2;
        let is_long_idle = self.queued <= Some(self.ended) && now >= self.ended + next;
        is_long_idle
            || self
                .began
                .is_some_and(|began| began_late(began) || is_idle(began))
    }
}

/// A point in time, by both clocks: kube-proxy names its syncs by the wall clock.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// By the clock that is never set.
    pub instant: Instant,
    /// By the wall clock.
    pub time: Timestamp,
}

impl Now {
    /// Reads both clocks.
    #[must_use]
    pub fn read() -> Self {
        Self {
            instant: Instant::now(),
            time: Timestamp::now(),
        }
    }
}

/// Since when an entrance is awaited.
#[derive(Debug)]
struct Since {
    seen: Now,
    /// The last version before it was asked for.
    before: ResourceVersion,
}

impl Awaited {
    /// Takes in what is forwarded now, decided from the Services up to the version `observed`.
    pub fn plan(&mut self, decision: Arc<Decision>, observed: ResourceVersion, now: Now) {
        let (before, after) = (&self.decision.plan.forwards, &decision.plan.forwards);
        let mut gone = BTreeMap::new();
        let mut new = BTreeSet::new();
        for pair in before
            .iter()
            .merge_join_by(after, |(a, _), (b, _)| a.cmp(b))
        {
            let (old, now) = pair.left_and_right();
            if let (Some((_, old)), Some((_, now))) = (old, now)
                && (&old.target, &old.port_name) == (&now.target, &now.port_name)
            {
                continue;
            }
            if let Some(old) = old.and_then(entrance) {
                let since = self.waiting.remove(&old);
                gone.insert(old, since);
            }
            new.extend(now.and_then(entrance));
        }
        for entrance in new {
            let since = match gone.remove(&entrance) {
                // Of another port of its Service now.
                Some(None) => continue,
                Some(Some(since)) => since,
                None => Since {
                    seen: now,
                    before: self.observed,
                },
            };
            self.waiting.insert(entrance, since);
        }
        (self.decision, self.observed) = (decision, observed);
    }

    /// Those that are awaited.
    #[must_use]
    pub fn entrances(&self) -> BTreeSet<Entrance> {
        self.waiting.keys().cloned().collect()
    }

    /// How many are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.waiting.len()
    }

    /// Takes in which of them are still missing.
    pub fn still_missing(&mut self, missing: &BTreeSet<Entrance>) {
        self.waiting
            .retain(|entrance, _| missing.contains(entrance));
    }

    /// Whether kube-proxy is to be asked about its syncs: if one is late, its own word decides.
    #[must_use]
    pub fn is_to_be_asked(&self, now: Instant) -> bool {
        let long_ago = |asked| now.duration_since(asked) >= LISTEN;
        let mut waiting = self.waiting.values();
        let is_late = waiting.any(|since| now.duration_since(since.seen.instant) >= LATE);
        is_late || !self.waiting.is_empty() && self.asked.is_none_or(long_ago)
    }

    /// Takes in what kube-proxy said of its syncs when it was asked `then`. No longer awaits
    /// what is late and will not come: kube-proxy has programmed all that it can know, so the
    /// Service has no endpoints, or it says nothing of its syncs. Returns those.
    pub fn heard(&mut self, syncs: Option<&Syncs>, then: Now) -> Vec<Entrance> {
        self.asked = Some(then.instant);
        let last = Family::ALL.into_iter().filter_map(|family| {
            let sync = Sync::of(syncs?, family, self.syncs.get(&family))?;
            Some((family, sync))
        });
        self.syncs = last.collect();
        let given_up = self.waiting.extract_if(.., |entrance, Since { seen, .. }| {
            let waited = then.instant.saturating_duration_since(seen.instant);
            match self.syncs.get(&entrance.family()) {
                Some(sync) => waited >= LATE && sync.knew(seen.time, then.time),
                None => waited >= LONGEST,
            }
        });
        given_up.map(|(entrance, _)| entrance).collect()
    }

    /// The version up to which what the Services ask for is done, if it is in the kernel up
    /// to `observed`.
    pub fn observed(&mut self, observed: ResourceVersion) -> ResourceVersion {
        let awaited = self.waiting.values().map(|since| since.before);
        done_up_to(awaited, &mut self.observed, observed)
    }

    /// How long until the kernel is to be asked again; `None` if nothing is awaited.
    #[must_use]
    pub fn pause(&self, now: Instant) -> Option<Duration> {
        let newest = self
            .waiting
            .values()
            .map(|since| since.seen.instant)
            .max()?;
        let is_new = now.duration_since(newest) < LATE;
        Some(if is_new { CHECK } else { LATE_CHECK })
    }
}

/// Where the forward of a slot sends connections; `None` if that is not to kube-proxy.
fn entrance((slot, forward): (&Slot, &Forward)) -> Option<Entrance> {
    Some(Entrance {
        port_name: forward.port_name.clone(),
        protocol: slot.port.protocol,
        kind: match forward.target {
            Target::ClusterIp(_) => EntranceKind::ClusterIp,
            Target::NodePort { .. } => EntranceKind::NodePort,
            Target::Backends(_) => return None,
        },
        socket: forward.entrance(*slot)?,
    })
}

#[cfg(test)]
#[path = "awaited_tests.rs"]
mod tests;
