//! What earlier versions of the Services still mean.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    time::Instant,
};

use highwire_api::{Interpretation, ResourceVersion, ServiceKey, ServiceSpec};

use crate::facts::service::ServiceFacts;

/// The history of one Service, as far as this process followed it.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// What a node must have observed to serve it as it is now. The first version this
    /// process saw, if it never saw a relevant change.
    pub changed: ResourceVersion,
    /// What it asked for before a value became invalid, while it is.
    pub last_valid: Option<ServiceSpec>,
    /// Whether it was edited since its addresses were last written.
    pub edited: bool,
    /// When it was created, until it has an address.
    pub waiting_since: Option<Instant>,
}

impl History {
    /// The history after a change from `before` to `now`. `created` is the time, if the
    /// Service is new.
    #[must_use]
    pub fn after(
        old: Option<&Self>,
        before: Option<&ServiceFacts>,
        now: &ServiceFacts,
        created: Option<Instant>,
    ) -> Self {
        let Some((old, before)) = old.zip(before).filter(|(_, before)| before.uid == now.uid)
        else {
            return Self {
                changed: now.version,
                waiting_since: created,
                ..Self::default()
            };
        };
        let last_valid = match (&now.asks, &before.asks) {
            (Interpretation::Invalid(_), Interpretation::Serve(spec)) => Some(spec.clone()),
            (Interpretation::Invalid(_), _) => old.last_valid.clone(),
            _ => None,
        };
        Self {
            changed: if before.needs_same_rules(now) {
                old.changed
            } else {
                now.version
            },
            last_valid,
            edited: old.edited || before.asks != now.asks,
            waiting_since: old.waiting_since,
        }
    }
}

/// The Services by the version a node must have observed to serve them, so that its
/// progress finds those it newly covers without asking the others.
#[derive(Debug, Default)]
pub struct ByChange(BTreeMap<ResourceVersion, BTreeSet<ServiceKey>>);

impl ByChange {
    /// The Service changed at that version.
    pub fn insert(&mut self, version: ResourceVersion, key: &ServiceKey) {
        self.0.entry(version).or_default().insert(key.clone());
    }

    /// Takes an insertion back.
    pub fn remove(&mut self, version: ResourceVersion, key: &ServiceKey) {
        if let Some(keys) = self.0.get_mut(&version) {
            keys.remove(key);
            if keys.is_empty() {
                self.0.remove(&version);
            }
        }
    }

    /// The Services that one of these observed versions covers and the other does not.
    pub fn between(
        &self,
        one: Option<ResourceVersion>,
        other: Option<ResourceVersion>,
    ) -> impl Iterator<Item = &ServiceKey> {
        let (low, high) = (one.min(other), one.max(other));
        let low = low.map_or(Bound::Unbounded, Bound::Excluded);
        // BTreeMap::range panics if a bound is excluded and included at once.
        let high = high.filter(|high| low != Bound::Excluded(*high));
        high.into_iter()
            .flat_map(move |high| self.0.range((low, Bound::Included(high))))
            .flat_map(|(_, keys)| keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ServiceKey {
        format!("ns/{name}").parse().unwrap()
    }

    #[test]
    fn progress_finds_what_it_newly_covers() {
        let mut by_change = ByChange::default();
        for (version, name) in [(5, "a"), (7, "b"), (7, "c"), (9, "d")] {
            by_change.insert(ResourceVersion(version), &key(name));
        }
        by_change.remove(ResourceVersion(7), &key("c"));
        let between = |one: Option<u64>, other: Option<u64>| {
            let found = by_change.between(one.map(ResourceVersion), other.map(ResourceVersion));
            found.map(|key| key.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(between(None, Some(7)), ["a", "b"]);
        assert_eq!(between(Some(5), Some(8)), ["b"]);
        assert_eq!(
            between(Some(8), Some(5)),
            ["b"],
            "going back uncovers as much"
        );
        assert!(between(Some(7), Some(7)).is_empty());
        assert!(between(None, None).is_empty());
    }
}
