//! Which requests get which fault, how often, and for how long.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::faulty_api::request::{Asked, Verb};

/// Some of the requests of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// About this resource: `services` includes `services/status`; all if empty.
    pub resource: String,
    /// With one of these verbs; all if empty.
    pub verbs: Vec<Verb>,
}

impl Requests {
    /// All.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Those about a resource (`services`, which includes its subresources) or a
    /// subresource (`services/status`).
    #[must_use]
    pub fn of(resource: &str) -> Self {
        Self {
            resource: resource.to_owned(),
            verbs: Vec::new(),
        }
    }

    /// Those of them with one of these verbs.
    #[must_use]
    pub fn only(mut self, verbs: &[Verb]) -> Self {
        self.verbs = verbs.to_vec();
        self
    }

    /// Whether this is one of them.
    #[must_use]
    pub fn include(&self, asked: &Asked) -> bool {
        let of_it = |rest: &str| rest.is_empty() || rest.starts_with('/');
        let rest = asked.resource.strip_prefix(&self.resource);
        (self.resource.is_empty() || rest.is_some_and(of_it))
            && (self.verbs.is_empty() || self.verbs.contains(&asked.verb))
    }
}

/// What goes wrong with a request. A watch that is open already when the rule is set breaks
/// off, so that its client asks again and meets the fault; but see each of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// It is passed on after this time. Open watches go on.
    Delay(Duration),
    /// It is not passed on, and nothing is ever answered. Open watches fall silent.
    NoAnswer,
    /// It is not passed on, and the connection is closed.
    Close,
    /// It is not passed on, and this is the answer.
    Refuse(Refusal),
    /// It is not passed on. The answer is 200 with a body that is no JSON.
    Garbage,
    /// A list is answered as of this resourceVersion, by the API server from its history
    /// (etcd keeps it for five minutes here). Other requests are passed on.
    OldList(u64),
    /// A watch breaks; other requests are passed on.
    Watch(WatchFault),
}

/// An answer that refuses, in the API server's own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// 429 of its priority and fairness, with a Retry-After of so many seconds.
    TooManyRequests {
        /// For a well-behaved client to wait.
        retry_after: u32,
    },
    /// 500: etcd does not answer.
    InternalError,
    /// 401: the token is not valid.
    Unauthorized,
    /// 403: a role lacks the right.
    Forbidden,
    /// 404 as of a path that it does not serve, in plain text: a CRD that is not there, or
    /// a load balancer that sends requests elsewhere. It says nothing of an object.
    NotFound,
    /// 409: the object has another version.
    Conflict,
    /// 410: what was asked for is of a version too old.
    Gone,
}

/// How a watch breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WatchFault {
    /// In the middle of its next event, without an end.
    CutMidEvent,
    /// Every event comes twice.
    Repeat,
    /// Two events of different objects change places; those of one object never.
    Reorder,
    /// It stays open and brings nothing any more, also after the rule has gone.
    Silent,
    /// An ERROR event 410 ends it.
    GoneEvent,
    /// An event is no JSON; the next ones are as they were.
    Garbage,
}

/// A fault of some requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Which requests.
    pub requests: Requests,
    /// What goes wrong.
    pub fault: Fault,
    /// At most so often. A watch counts once.
    pub times: Option<u32>,
    /// At most for this time after it was set.
    pub lasting: Option<Duration>,
}

impl Rule {
    /// A fault until the rules are others.
    #[must_use]
    pub fn new(requests: Requests, fault: Fault) -> Self {
        Self {
            requests,
            fault,
            times: None,
            lasting: None,
        }
    }

    /// At most so often.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// At most for this time after it was set.
    #[must_use]
    pub fn lasting(mut self, time: Duration) -> Self {
        self.lasting = Some(time);
        self
    }
}

/// Rules, and how often they may still be applied.
#[derive(Debug, Default)]
pub(super) struct Rules {
    rules: Vec<(Rule, Option<Instant>)>,
}

impl Rules {
    /// These from `now` on.
    pub(super) fn new(rules: Vec<Rule>, now: Instant) -> Self {
        let until = |rule: &Rule| rule.lasting.map(|time| now + time);
        Self {
            rules: rules
                .into_iter()
                .map(|rule| {
                    let until = until(&rule);
                    (rule, until)
                })
                .collect(),
        }
    }

    /// The fault of the first rule that is about this request and still good.
    pub(super) fn find(&self, asked: &Asked, now: Instant) -> Option<Fault> {
        let index = self.index(asked, now)?;
        Some(self.rules[index].0.fault.clone())
    }

    /// The same, and one time less of it is left.
    pub(super) fn apply(&mut self, asked: &Asked, now: Instant) -> Option<Fault> {
        let index = self.index(asked, now)?;
        let (rule, _) = &mut self.rules[index];
        rule.times = rule.times.map(|times| times - 1);
        Some(rule.fault.clone())
    }

    fn index(&self, asked: &Asked, now: Instant) -> Option<usize> {
        self.rules.iter().position(|(rule, until)| {
            rule.requests.include(asked)
                && rule.times != Some(0)
                && until.is_none_or(|until| now < until)
                && rule.fault.concerns(asked)
        })
    }
}

impl Fault {
    /// Whether it can happen to this request.
    fn concerns(&self, asked: &Asked) -> bool {
        match self {
            Self::OldList(_) => asked.verb == Verb::List,
            Self::Watch(_) => asked.verb == Verb::Watch,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(verb: Verb, resource: &str) -> Asked {
        Asked {
            verb,
            resource: resource.to_owned(),
            name: None,
        }
    }

    #[test]
    fn the_first_rule_that_is_about_a_request_decides_until_it_is_used_up() {
        let now = Instant::now();
        let services = Requests::of("services");
        let mut rules = Rules::new(
            vec![
                Rule::new(services.clone().only(&[Verb::List]), Fault::Close).times(1),
                Rule::new(services.clone(), Fault::NoAnswer).lasting(Duration::from_secs(1)),
                Rule::new(Requests::all(), Fault::OldList(7)),
            ],
            now,
        );
        let list = asked(Verb::List, "services");
        assert_eq!(rules.apply(&asked(Verb::Get, "serviceaccounts"), now), None);
        assert_eq!(rules.apply(&list, now), Some(Fault::Close));
        assert_eq!(rules.apply(&list, now), Some(Fault::NoAnswer));
        let status = asked(Verb::Patch, "services/status");
        assert_eq!(rules.apply(&status, now), Some(Fault::NoAnswer));
        let later = now + Duration::from_secs(1);
        assert_eq!(rules.apply(&list, later), Some(Fault::OldList(7)));
        assert_eq!(rules.apply(&status, later), None);
        assert!(!Requests::of("services/status").include(&list));
    }
}
