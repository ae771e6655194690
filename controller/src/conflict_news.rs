//! What the owner of one Service is to be told of its refused ports.
//!
//! A cause is told once, on however many nodes it is so, and the port's release when
//! nothing stands in its way any more. Neither is told before it has lasted for
//! [`SETTLE`] and the condition in the status says so: then a new leader, who reads
//! the condition, knows what was told.

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
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Whether the condition is True.
    stated: bool,
    /// What the condition says.
    telling: Told,
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
        self.stated = is_true(condition);
        self.telling = condition
            .filter(|_| self.stated)
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
        let unnamed = refusals.causes().filter(|_| self.telling.and_more);
        for cause in self.telling.causes.iter().chain(unnamed) {
            let known = Known {
                present: true,
                since: now,
                told: true,
            };
            self.causes.insert(cause.clone(), known);
            self.refused.insert(cause.port);
        }
    }

    /// When something may be to be told.
    pub(crate) fn next(&self) -> Option<Instant> {
        let open = self.causes.values().filter(|known| {
            let untold = known.present && !known.told && self.stated;
            untold || !known.present
        });
        open.map(|known| known.since + SETTLE).min()
    }

    /// What is to be told now.
    pub(crate) fn take(&mut self, now: Instant) -> Vec<ConflictNews> {
        let mut news = Vec::new();
        let settled = |known: &Known| known.since + SETTLE <= now;
        for (cause, known) in &mut self.causes {
            if known.present && !known.told && self.stated && settled(known) {
                known.told = true;
                self.refused.insert(cause.port);
                news.push(ConflictNews::Refused(cause.clone()));
            }
        }
        let telling = &self.telling;
        self.causes.retain(|cause, known| {
            known.present || !settled(known) || telling.names(cause.port)
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
