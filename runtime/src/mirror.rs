//! The objects of one watch, each pruned to a view of it.

use std::collections::BTreeMap;

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

    /// Takes in one watch event. Says whether anything changed.
    pub fn absorb<T: Resource>(&mut self, event: Event<T>, view: impl Fn(&T) -> Option<V>) -> bool {
        match event {
            Event::Init => {
                self.listing.clear();
                false
            }
            Event::InitApply(object) => {
                if let Some(view) = view(&object) {
                    self.listing.insert(key(&object), view);
                }
                false
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listing);
                let changed = !self.synced || listed != self.known;
                self.known = listed;
                self.synced = true;
                changed
            }
            Event::Apply(object) => match view(&object) {
                Some(view) => self.put(key(&object), view),
                None => self.known.remove(&key(&object)).is_some(),
            },
            Event::Delete(object) => self.known.remove(&key(&object)).is_some(),
        }
    }

    fn put(&mut self, key: String, view: V) -> bool {
        let unchanged = self.known.get(&key) == Some(&view);
        if !unchanged {
            self.known.insert(key, view);
        }
        !unchanged
    }
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
}
