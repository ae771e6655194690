//! What was asked, and what became of it.

use std::collections::BTreeMap;

use crate::faulty_api::request::{Asked, Verb};
use crate::faulty_api::rule::Requests;

/// What became of a request, or of an event of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The API server got it, maybe late.
    PassedOn,
    /// It was late.
    Delayed,
    /// Nobody answered.
    Unanswered,
    /// Its connection was closed.
    Closed,
    /// It was answered with this status code.
    Refused(u16),
    /// The answer, or an event, was no JSON.
    Garbage,
    /// The list was an old one.
    OldList,
    /// An event was cut.
    Cut,
    /// An event came twice.
    Repeated,
    /// An event came before one of another object that was older.
    Reordered,
    /// A watch fell silent.
    Silenced,
    /// A watch ended with an ERROR event 410.
    GoneEvent,
}

/// How often what happened. Its size does not grow with the time.
#[derive(Clone, Debug, Default)]
pub struct Counts(BTreeMap<(Verb, String, Outcome), u64>);

impl Counts {
    pub(super) fn count(&mut self, asked: &Asked, outcome: Outcome) {
        let key = (asked.verb, asked.resource.clone(), outcome);
        *self.0.entry(key).or_default() += 1;
    }

    /// How often this became of such requests.
    #[must_use]
    pub fn of(&self, requests: &Requests, outcome: Outcome) -> u64 {
        self.sum(requests, |it| it == outcome)
    }

    /// How often something went wrong with such requests on purpose.
    #[must_use]
    pub fn faults(&self, requests: &Requests) -> u64 {
        self.sum(requests, |it| it != Outcome::PassedOn)
    }

    fn sum(&self, requests: &Requests, is_wanted: impl Fn(Outcome) -> bool) -> u64 {
        let included = self.0.iter().filter(|((verb, resource, outcome), _)| {
            let (verb, resource, name) = (*verb, resource.clone(), None);
            is_wanted(*outcome)
                && requests.include(&Asked {
                    verb,
                    resource,
                    name,
                })
        });
        included.map(|(_, count)| count).sum()
    }
}
