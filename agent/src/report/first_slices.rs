//! Which endpoints are not known yet on a node without a kube-proxy. Until a Service's first
//! EndpointSlice has come, its clients would be refused here, so the report does not say that
//! the Service was observed. Pure.
//!
//! What changes later waits for nothing: a node that is listed stays listed.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use highwire_api::{ResourceVersion, ServiceKey, arbitration::Slot};

use super::done_up_to;
use crate::decide::Decision;

/// For how long a Service's first EndpointSlice is awaited. One without a selector may never
/// have one, and what is awaited holds back the Services that come after it. As long as a
/// kube-proxy that says nothing of its syncs is waited for ([`super::awaited`]).
const LONGEST: Duration = Duration::from_secs(3);

/// The served slots whose Services had no EndpointSlice when they were first served.
#[derive(Debug, Default)]
pub struct FirstSlices {
    /// What is forwarded.
    decision: Arc<Decision>,
    waiting: BTreeMap<(Slot, ServiceKey), Since>,
    /// How far the Services were read when the plan last changed, or later.
    observed: ResourceVersion,
}

/// Since when a slot is awaited.
#[derive(Debug)]
struct Since {
    seen: Instant,
    /// The last version before it was asked for.
    before: ResourceVersion,
}

impl FirstSlices {
    /// Takes in what is forwarded now, decided from the Services up to the version `observed`.
    pub fn plan(&mut self, decision: Arc<Decision>, observed: ResourceVersion, now: Instant) {
        self.waiting.retain(|it, _| decision.unheard.contains(it));
        let forwards = &self.decision.plan.forwards;
        let is_new = |(slot, service): &&(Slot, ServiceKey)| {
            let before = forwards.get(slot);
            before.is_none_or(|before| before.port_name.service != *service)
        };
        for new in decision.unheard.iter().filter(is_new) {
            let since = Since {
                seen: now,
                before: self.observed,
            };
            self.waiting.entry(new.clone()).or_insert(since);
        }
        (self.decision, self.observed) = (decision, observed);
    }

    /// No longer awaits what has been awaited for too long. Returns whose that is.
    pub fn give_up(&mut self, now: Instant) -> Vec<ServiceKey> {
        let is_late = |since: &Since| now.saturating_duration_since(since.seen) >= LONGEST;
        let late = self.waiting.extract_if(.., |_, since| is_late(since));
        let mut services: Vec<ServiceKey> = late.map(|((_, service), _)| service).collect();
        services.sort_unstable();
        services.dedup();
        services
    }

    /// How many slots are awaited.
    #[must_use]
    pub fn count(&self) -> usize {
        self.waiting.len()
    }

    /// The version up to which what the Services ask for is done, if it is in the kernel up
    /// to `observed`.
    pub fn observed(&mut self, observed: ResourceVersion) -> ResourceVersion {
        let awaited = self.waiting.values().map(|since| since.before);
        done_up_to(awaited, &mut self.observed, observed)
    }

    /// How long until something is given up; `None` if nothing is awaited.
    #[must_use]
    pub fn pause(&self, now: Instant) -> Option<Duration> {
        let oldest = self.waiting.values().map(|since| since.seen).min()?;
        Some((oldest + LONGEST).saturating_duration_since(now))
    }
}

#[cfg(test)]
#[path = "first_slices_tests.rs"]
mod tests;
