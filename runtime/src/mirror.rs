//! The objects of one watch, each pruned to a view of it.

use std::{collections::BTreeMap, mem};

use kube::{Resource, ResourceExt, runtime::watcher::Event};

/// Objects by `namespace/name`, each as the view `V` of it; objects without a view
/// are left out.
#[derive(Debug)]
pub struct Mirror<V> {
    known: BTreeMap<String, V>,
    /// What a running (re-)list has brought so far; replaces `known` at its end.
    listing: BTreeMap<String, V>,
    synced: bool,
}

impl<V> Default for Mirror<V> {
    fn default() -> Self {
        Self {
            known: BTreeMap::new(),
            listing: BTreeMap::new(),
            synced: false,
        }
    }
}

impl<V: PartialEq> Mirror<V> {
    /// The objects; `None` until the first list is complete.
    #[must_use]
    pub fn known(&self) -> Option<&BTreeMap<String, V>> {
        self.synced.then_some(&self.known)
    }

    /// One object, by its [`key`].
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&V> {
        self.known.get(key)
    }

    /// Takes in one watch event. Says whether anything changed.
    pub fn absorb<T: Resource>(&mut self, event: Event<T>, view: impl Fn(&T) -> Option<V>) -> bool {
        let synced = self.synced;
        let changed = !self.changes(event, view).is_empty();
        changed || synced != self.synced
    }

    /// Takes in one watch event. Returns the objects that it added, changed or removed.
    pub fn changes<T: Resource>(
        &mut self,
        event: Event<T>,
        mut view: impl FnMut(&T) -> Option<V>,
    ) -> Vec<Change<V>> {
        match event {
            Event::Init => {
                self.listing.clear();
                Vec::new()
            }
            Event::InitApply(object) => {
                if let Some(view) = view(&object) {
                    self.listing.insert(key(&object), view);
                }
                Vec::new()
            }
            Event::InitDone => {
                self.synced = true;
                let listed = mem::take(&mut self.listing);
                let gone = self.known.keys().filter(|key| !listed.contains_key(*key));
                let gone: Vec<String> = gone.cloned().collect();
                let removed = gone.into_iter().map(|key| (key, None));
                let listed = listed.into_iter().map(|(key, view)| (key, Some(view)));
                removed
                    .chain(listed)
                    .filter_map(|(key, view)| self.set(key, view))
                    .collect()
            }
            Event::Apply(object) => {
                let view = view(&object);
                self.set(key(&object), view).into_iter().collect()
            }
            Event::Delete(object) => self.set(key(&object), None).into_iter().collect(),
        }
    }

    fn set(&mut self, key: String, view: Option<V>) -> Option<Change<V>> {
        if self.known.get(&key) == view.as_ref() {
            return None;
        }
        let before = match view {
            Some(view) => self.known.insert(key.clone(), view),
            None => self.known.remove(&key),
        };
        Some(Change { key, before })
    }
}

/// That an object is no longer what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<V> {
    /// The object's [`key`].
    pub key: String,
    /// What was known of it before; `None` if nothing.
    pub before: Option<V>,
}

/// The key of an object in a [`Mirror`].
pub fn key<T: Resource>(object: &T) -> String {
    let namespace = object.namespace().unwrap_or_default();
    format!("{namespace}/{}", object.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn pod(name: &str, uid: &str) -> Pod {
        let metadata = json!({"namespace": "ns", "name": name, "uid": uid});
        serde_json::from_value(json!({ "metadata": metadata })).unwrap()
    }

    /// Takes in events and says of each whether it changed anything. A Pod without a
    /// UID has no view.
    fn absorb<const N: usize>(mirror: &mut Mirror<String>, events: [Event<Pod>; N]) -> [bool; N] {
        events.map(|event| mirror.absorb(event, |pod| pod.uid().filter(|uid| !uid.is_empty())))
    }

    fn known(mirror: &Mirror<String>) -> Vec<(&str, &str)> {
        let known = mirror.known().unwrap().iter();
        known
            .map(|(key, view)| (key.as_str(), view.as_str()))
            .collect()
    }

    #[test]
    fn events_are_followed_and_only_changes_are_reported() {
        use Event::{Apply, Delete, Init, InitApply, InitDone};
        let mut mirror = Mirror::default();
        let list = [Init, InitApply(pod("a", "1")), InitApply(pod("b", ""))];
        assert_eq!(absorb(&mut mirror, list), [false; 3]);
        assert!(mirror.known().is_none(), "half a list is no list");
        assert_eq!(absorb(&mut mirror, [InitDone]), [true]);
        assert_eq!(known(&mirror), [("ns/a", "1")]);

        let changes = [
            Apply(pod("a", "1")),
            Apply(pod("a", "2")),
            Apply(pod("b", "3")),
        ];
        assert_eq!(absorb(&mut mirror, changes), [false, true, true]);
        assert_eq!(known(&mirror), [("ns/a", "2"), ("ns/b", "3")]);
        let losses = [
            Apply(pod("a", "")),
            Delete(pod("b", "3")),
            Delete(pod("b", "3")),
        ];
        assert_eq!(absorb(&mut mirror, losses), [true, true, false]);
        assert!(known(&mirror).is_empty());
    }

    #[test]
    fn a_new_list_replaces_what_was_known_at_its_end() {
        use Event::{Init, InitApply, InitDone};
        let mut mirror = Mirror::default();
        absorb(&mut mirror, [Init, InitApply(pod("a", "1")), InitDone]);
        absorb(&mut mirror, [Init]);
        assert_eq!(
            known(&mirror),
            [("ns/a", "1")],
            "a running list takes nothing away"
        );
        let again = [InitApply(pod("a", "1")), InitDone];
        assert_eq!(absorb(&mut mirror, again), [false; 2]);
        assert_eq!(absorb(&mut mirror, [Init, InitDone]), [false, true]);
        assert!(known(&mirror).is_empty());
    }

    #[test]
    fn a_change_names_its_object_and_what_was_known_before() {
        use Event::{Apply, Delete, Init, InitApply, InitDone};
        let mut mirror = Mirror::default();
        absorb(
            &mut mirror,
            [
                Init,
                InitApply(pod("a", "1")),
                InitApply(pod("b", "2")),
                InitDone,
            ],
        );
        let mut changed = |event| {
            let changes = mirror.changes(event, |pod: &Pod| pod.uid());
            let named = changes
                .into_iter()
                .map(|change| (change.key, change.before));
            named.collect::<Vec<_>>()
        };
        let one = |key: &str, before: Option<&str>| vec![(key.into(), before.map(str::to_owned))];
        assert_eq!(changed(Apply(pod("a", "3"))), one("ns/a", Some("1")));
        assert_eq!(changed(Apply(pod("c", "4"))), one("ns/c", None));
        assert_eq!(changed(Delete(pod("c", "4"))), one("ns/c", Some("4")));
        // A new list: only what differs is a change.
        assert_eq!(changed(Init), []);
        assert_eq!(changed(InitApply(pod("a", "3"))), []);
        assert_eq!(changed(InitDone), one("ns/b", Some("2")));
    }
}
