//! Following one watch: single events, and lists that replace everything.

use std::collections::BTreeSet;

use kube::runtime::watcher::Event;

/// What a watch says, with objects already read and pruned.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fed<K, V> {
    /// A list begins; what it does not contain is gone at `Complete`.
    Restart,
    /// An object of a list.
    Listed(K, V),
    /// The list is complete.
    Complete,
    /// An object is new or changed.
    Put(K, V),
    /// An object is gone.
    Drop(K),
}

impl<K, V> Fed<K, V> {
    /// Reads the objects of an event.
    pub(crate) fn of<T>(event: Event<T>, key: impl Fn(&T) -> K, view: impl Fn(&T) -> V) -> Self {
        match event {
            Event::Init => Self::Restart,
            Event::InitApply(object) => Self::Listed(key(&object), view(&object)),
            Event::InitDone => Self::Complete,
            Event::Apply(object) => Self::Put(key(&object), view(&object)),
            Event::Delete(object) => Self::Drop(key(&object)),
        }
    }
}

/// What to do about an event.
#[derive(Debug, PartialEq)]
pub(crate) enum Step<K, V> {
    /// Nothing.
    Wait,
    /// Take the object over as it is: it comes with a list, after which older
    /// versions than the known one are the truth (etcd was restored).
    Adopt(K, V),
    /// Take the object over unless a newer version is known.
    Update(K, V),
    /// Forget these.
    Forget(Vec<K>),
}

impl<K, V> Step<K, V> {
    /// The objects to take over, and those to forget (`None`), where no answer to a
    /// write of ours can overtake the watch.
    pub(crate) fn changes(self) -> Vec<(K, Option<V>)> {
        match self {
            Self::Wait => Vec::new(),
            Self::Adopt(key, value) | Self::Update(key, value) => vec![(key, Some(value))],
            Self::Forget(keys) => keys.into_iter().map(|key| (key, None)).collect(),
        }
    }
}

/// Where one watch stands.
#[derive(Clone, Debug)]
pub(crate) struct Listing<K> {
    complete: bool,
    seen: Option<BTreeSet<K>>,
}

impl<K> Default for Listing<K> {
    fn default() -> Self {
        Self {
            complete: false,
            seen: None,
        }
    }
}

impl<K: Ord + Clone> Listing<K> {
    /// Takes an event in. `known` is asked at the end of a list.
    pub(crate) fn step<V>(&mut self, fed: Fed<K, V>, known: impl FnOnce() -> Vec<K>) -> Step<K, V> {
        match fed {
            Fed::Restart => {
                self.seen = Some(BTreeSet::new());
                Step::Wait
            }
            Fed::Listed(key, value) => {
                self.seen.get_or_insert_default().insert(key.clone());
                Step::Adopt(key, value)
            }
            Fed::Complete => {
                self.complete = true;
                let seen = self.seen.take().unwrap_or_default();
                Step::Forget(
                    known()
                        .into_iter()
                        .filter(|key| !seen.contains(key))
                        .collect(),
                )
            }
            Fed::Put(key, value) => Step::Update(key, value),
            Fed::Drop(key) => Step::Forget(vec![key]),
        }
    }

    /// Whether a list was ever complete.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_list_lacks_is_forgotten_at_its_end() {
        let mut listing = Listing::default();
        assert_eq!(listing.step(Fed::<_, ()>::Restart, Vec::new), Step::Wait);
        assert_eq!(
            listing.step(Fed::Listed("a", ()), Vec::new),
            Step::Adopt("a", ())
        );
        assert!(!listing.is_complete());
        let known = || vec!["a", "b"];
        assert_eq!(
            listing.step(Fed::<_, ()>::Complete, known),
            Step::Forget(vec!["b"])
        );
        assert!(listing.is_complete());
        assert_eq!(listing.step(Fed::<_, ()>::Restart, Vec::new), Step::Wait);
        assert!(
            listing.is_complete(),
            "the cache stays warm while it is listed anew"
        );
    }
}
