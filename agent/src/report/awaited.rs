//! What kube-proxy has yet to program: until then a Service's clients would wait or be
//! refused here, so the report does not say that the Service was observed. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use highwire_api::{ResourceVersion, arbitration::Slot};
use jiff::Timestamp;

use crate::{
    decide::{Forward, Plan, Target},
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
/// kube-proxy has nothing to program if its last sync is so long ago, and nothing came since.
const IDLE: Duration = Duration::from_millis(1100);
/// A sync that ended so long after a Service was seen knew the Service and its endpoints:
/// they are made right after it, and kube-proxy often syncs in between.
const SETTLED: Duration = Duration::from_secs(1);
/// If kube-proxy does not say how its syncs went, a late entrance is awaited for so long.
const LONGEST: Duration = Duration::from_secs(3);

/// The entrances that the plan sends connections to, by whether kube-proxy has them.
#[derive(Debug, Default)]
pub struct Awaited {
    /// Those that were programmed once, or are no longer awaited.
    done: BTreeSet<Entrance>,
    waiting: BTreeMap<Entrance, Since>,
    /// How far the Services were read when the plan last changed, or later.
    observed: ResourceVersion,
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
    /// Takes in what the plan needs, made from the Services up to the version `observed`.
    pub fn plan(&mut self, plan: &Plan, observed: ResourceVersion, now: Now) {
        let wanted = entrances(plan);
        self.done.retain(|entrance| wanted.contains(entrance));
        self.waiting.retain(|entrance, _| wanted.contains(entrance));
        for entrance in wanted.difference(&self.done) {
            let since = || Since {
                seen: now,
                before: self.observed,
            };
            let waiting = self.waiting.entry(entrance.clone());
            waiting.or_insert_with(since);
        }
        self.observed = observed;
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
        let found = self.waiting.extract_if(.., |it, _| !missing.contains(it));
        self.done.extend(found.map(|(entrance, _)| entrance));
    }

    /// Whether one is late: then kube-proxy's own word on its syncs decides.
    #[must_use]
    pub fn is_late(&self, now: Instant) -> bool {
        let mut waiting = self.waiting.values();
        waiting.any(|since| now.duration_since(since.seen.instant) >= LATE)
    }

    /// No longer awaits what is late and will not come: kube-proxy has programmed all that it
    /// can know, so the Service has no endpoints, or it says nothing of its syncs. Returns
    /// those.
    pub fn give_up(&mut self, syncs: Option<&Syncs>, now: Now) -> Vec<Entrance> {
        let given_up = self.waiting.extract_if(.., |entrance, Since { seen, .. }| {
            let waited = now.instant.duration_since(seen.instant);
            let Some(syncs) = syncs else {
                return waited >= LONGEST;
            };
            let family = entrance.family();
            let Some(last) = syncs.last(family) else {
                return waited >= LONGEST;
            };
            let knew_it = last >= seen.time + SETTLED;
            let is_idle = syncs.queued(family) <= Some(last) && now.time >= last + IDLE;
            waited >= LATE && (knew_it || is_idle)
        });
        let given_up: Vec<Entrance> = given_up.map(|(entrance, _)| entrance).collect();
        self.done.extend(given_up.iter().cloned());
        given_up
    }

    /// The version up to which what the Services ask for is done, if it is in the kernel up
    /// to `observed`.
    pub fn observed(&mut self, observed: ResourceVersion) -> ResourceVersion {
        let awaited = self.waiting.values().map(|since| since.before).min();
        awaited.unwrap_or_else(|| {
            self.observed = observed;
            observed
        })
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

/// Where the plan sends connections.
fn entrances(plan: &Plan) -> BTreeSet<Entrance> {
    let entrance = |(slot, forward): (&Slot, &Forward)| Entrance {
        port_name: forward.port_name.clone(),
        protocol: slot.port.protocol,
        kind: match forward.target {
            Target::ClusterIp(_) => EntranceKind::ClusterIp,
            Target::NodePort { .. } => EntranceKind::NodePort,
        },
        socket: forward.entrance(*slot),
    };
    plan.forwards.iter().map(entrance).collect()
}

#[cfg(test)]
#[path = "awaited_tests.rs"]
mod tests;
