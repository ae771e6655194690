//! The Services in the order of their changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use highwire_api::{ResourceVersion, ServiceKey};

/// The Services by the version a node must have observed to serve them, so that its
/// progress finds those it newly covers without a look at the others.
#[derive(Debug, Default)]
pub(super) struct Changes(BTreeMap<ResourceVersion, BTreeSet<ServiceKey>>);

impl Changes {
    /// The Service changed at that version.
    pub(super) fn insert(&mut self, version: ResourceVersion, key: &ServiceKey) {
        self.0.entry(version).or_default().insert(key.clone());
    }

    /// Takes an insertion back.
    pub(super) fn remove(&mut self, version: ResourceVersion, key: &ServiceKey) {
        if let Some(keys) = self.0.get_mut(&version) {
            keys.remove(key);
            if keys.is_empty() {
                self.0.remove(&version);
            }
        }
    }

    /// The Services that one of these observed versions covers and the other does not.
    pub(super) fn between(
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
        ServiceKey {
            namespace: "ns".into(),
            name: name.into(),
        }
    }

    #[test]
    fn progress_finds_what_it_newly_covers() {
        let mut changes = Changes::default();
        for (version, name) in [(5, "a"), (7, "b"), (7, "c"), (9, "d")] {
            changes.insert(ResourceVersion(version), &key(name));
        }
        changes.remove(ResourceVersion(7), &key("c"));
        let between = |one: Option<u64>, other: Option<u64>| {
            let found = changes.between(one.map(ResourceVersion), other.map(ResourceVersion));
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
