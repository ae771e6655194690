//! What the connections of one client share: its rules, and what was counted.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use crate::faulty_api::counts::{Counts, Outcome};
use crate::faulty_api::request::Asked;
use crate::faulty_api::rule::{Fault, Rule, Rules};

/// See the module; clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    rules: Arc<Mutex<Rules>>,
    counts: Arc<Mutex<Counts>>,
    /// As they were when the rules were set.
    before: Arc<Mutex<Counts>>,
    changed: watch::Sender<()>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            rules: Arc::default(),
            counts: Arc::default(),
            before: Arc::default(),
            changed: watch::Sender::new(()),
        }
    }
}

impl Shared {
    pub(super) fn set(&self, rules: Vec<Rule>) {
        let mut current = lock(&self.rules);
        // No request meets the new rules before the counts are kept.
        *lock(&self.before) = self.counts();
        *current = Rules::new(rules, Instant::now());
        drop(current);
        self.changed.send_replace(());
    }

    /// Says when there are other rules.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The fault of a request, which counts.
    pub(super) fn apply(&self, asked: &Asked) -> Option<Fault> {
        lock(&self.rules).apply(asked, Instant::now())
    }

    /// The fault that a request would have.
    pub(super) fn peek(&self, asked: &Asked) -> Option<Fault> {
        lock(&self.rules).find(asked, Instant::now())
    }

    pub(super) fn count(&self, asked: &Asked, outcome: Outcome) {
        lock(&self.counts).count(asked, outcome);
    }

    pub(super) fn before(&self) -> Counts {
        lock(&self.before).clone()
    }

    pub(super) fn counts(&self) -> Counts {
        lock(&self.counts).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
