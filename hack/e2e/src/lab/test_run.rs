//! What a test leaves behind, to be taken away once it is known how the test ended.
//!
//! It belongs to the thread of the test. Where no test runs, things go when they are
//! dropped.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use crate::lab::state::State;

/// Something that a test has dropped and that still exists.
pub trait Leftover {
    /// Takes it away.
    fn remove(self: Box<Self>);
    /// Leaves it where it is, for people to inspect.
    fn keep(self: Box<Self>);
}

/// A test and what it used.
#[derive(Default)]
pub struct TestRun {
    states: BTreeMap<String, State>,
    /// Kubernetes namespaces, each with the name of its laboratory.
    namespaces: BTreeSet<(String, String)>,
    ports: BTreeSet<u16>,
    leftovers: Vec<Box<dyn Leftover>>,
}

thread_local! {
    static CURRENT: RefCell<Option<TestRun>> = const { RefCell::new(None) };
}

/// A test begins on this thread.
pub fn begin() {
    CURRENT.set(Some(TestRun::default()));
}

/// The test has ended.
pub fn end() -> TestRun {
    CURRENT.take().unwrap_or_default()
}

/// The test uses a laboratory.
pub(crate) fn uses(state: &State) {
    with(|run| run.states.insert(state.name().to_owned(), state.clone()));
}

/// The test made a Kubernetes namespace there.
pub(crate) fn uses_namespace(state: &State, namespace: &str) {
    let of_state = (state.name().to_owned(), namespace.to_owned());
    with(|run| run.namespaces.insert(of_state));
}

/// The test uses a port.
pub(crate) fn uses_port(port: u16) {
    with(|run| run.ports.insert(port));
}

/// Takes something away at the end of the test; now if there is none.
pub fn at_end(leftover: impl Leftover + 'static) {
    let mut leftover: Option<Box<dyn Leftover>> = Some(Box::new(leftover));
    with(|run| run.leftovers.extend(leftover.take()));
    if let Some(leftover) = leftover {
        leftover.remove();
    }
}

fn with<T>(change: impl FnOnce(&mut TestRun) -> T) {
    CURRENT.with_borrow_mut(|current| current.as_mut().map(change));
}

impl TestRun {
    /// The laboratories it used.
    pub fn states(&self) -> impl Iterator<Item = &State> {
        self.states.values()
    }

    /// The Kubernetes namespaces that it made in that laboratory.
    pub fn namespaces(&self, state: &State) -> impl Iterator<Item = &str> {
        let all = self.namespaces.iter();
        let of_state = all.filter(|(name, _)| name == state.name());
        of_state.map(|(_, namespace)| namespace.as_str())
    }

    /// The ports it was given.
    pub fn ports(&self) -> &BTreeSet<u16> {
        &self.ports
    }

    /// Takes away what it left, in the order in which it was dropped.
    pub fn remove(self) {
        self.leftovers.into_iter().for_each(Leftover::remove);
    }

    /// Leaves everything where it is.
    pub fn keep(self) {
        self.leftovers.into_iter().for_each(Leftover::keep);
    }
}
