//! What the owner of one Service is to be told of its refused ports.
//!
//! A cause is told once, on however many nodes it is so, and the port's release when
//! nothing stands in its way any more. Each is told when the condition in the status
//! says the same, so that a new leader, who reads the condition, knows what was told.
//! And the condition speaks of no cause that has not lasted for [`SETTLE`].

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use highwire_api::PortKey;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::{
    condition::is_true,
    refusals::{Cause, Refusals, Told},
};

/// How long to collect what the nodes report before it is told or written.
pub(crate) const SETTLE: Duration = Duration::from_millis(400);

/// Something to be told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ConflictNews {
    /// This stands in the way.
    Refused(Cause),
    /// Nothing stands in the way of this port any more.
    Resolved(PortKey),
}

/// What was told and what is to be told.
#[derive(Debug, Default)]
pub(crate) struct ConflictBoard {
    /// Whether the condition was read to learn what was told before.
    begun: bool,
    causes: BTreeMap<Cause, Known>,
    /// The ports of which a refusal was told and no release.
    refused: BTreeSet<PortKey>,
    /// What the condition says.
    stated: Told,
}

/// What is known of a cause.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Whether it stands in the way.
    present: bool,
    /// Since when it does, or does not.
    since: Instant,
    /// Whether it was told.
    told: bool,
}

impl ConflictBoard {
    /// Looks at what stands in the way now, and at what the condition says of it.
    pub(crate) fn look(
        &mut self,
        refusals: &Refusals,
        condition: Option<&Condition>,
        now: Instant,
    ) {
        self.stated = condition
            .filter(|_| is_true(condition))
            .map(|condition| Told::of(&condition.message))
            .unwrap_or_default();
        if !self.begun {
            self.begin(refusals, now);
        }
        for cause in refusals.causes() {
            self.causes.entry(cause.clone()).or_insert(Known {
                present: true,
                since: now,
                told: false,
            });
        }
        for (cause, known) in &mut self.causes {
            let present = refusals.may_contain(cause);
            if present != known.present {
                known.present = present;
                known.since = now;
            }
        }
    }

    /// Takes for told what the condition told before this process led.
    fn begin(&mut self, refusals: &Refusals, now: Instant) {
        self.begun = true;
        let unnamed = refusals.causes().filter(|_| self.stated.and_more);
        for cause in self.stated.causes.iter().chain(unnamed) {
            let known = Known {
                present: true,
                since: now,
                told: true,
            };
            self.causes.insert(cause.clone(), known);
            self.refused.insert(cause.port);
        }
    }

    /// Whether the cause has stood in the way long enough to be told.
    pub(crate) fn has_settled(&self, cause: &Cause, now: Instant) -> bool {
        let known = self.causes.get(cause);
        known.is_some_and(|known| known.told || known.since + SETTLE <= now)
    }

    /// When something may be to be told.
    pub(crate) fn next(&self) -> Option<Instant> {
        let due = self.causes.iter().filter_map(|(cause, known)| {
            // What waits for the condition is looked at when that is written.
            let covered = self.stated.covers(cause);
            if known.present {
                (covered && !known.told).then(|| known.since + SETTLE)
            } else if covered {
                (!self.stated.causes.contains(cause)).then(|| known.since + SETTLE)
            } else {
                Some(known.since)
            }
        });
        due.min()
    }

    /// What is to be told now.
    pub(crate) fn take(&mut self, now: Instant) -> Vec<ConflictNews> {
        let mut news = Vec::new();
        let settled = |known: &Known| known.since + SETTLE <= now;
        for (cause, known) in &mut self.causes {
            if known.present && !known.told && self.stated.covers(cause) && settled(known) {
                known.told = true;
                self.refused.insert(cause.port);
                news.push(ConflictNews::Refused(cause.clone()));
            }
        }
        let stated = &self.stated;
        self.causes.retain(|cause, known| {
            known.present || stated.causes.contains(cause) || stated.and_more && !settled(known)
        });
        let causes = &self.causes;
        self.refused.retain(|port| {
            let refused = causes.keys().any(|cause| cause.port == *port);
            if !refused {
                news.push(ConflictNews::Resolved(*port));
            }
            refused
        });
        news
    }
}

#[cfg(test)]
#[path = "conflict_news_tests.rs"]
mod tests;
