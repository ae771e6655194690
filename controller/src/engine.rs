//! The whole controller without its effects: watch events, time and the results of
//! writes go in; writes and Events come out. Only the leader is given any.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use highwire_api::{Family, Problem, ResourceVersion, ServiceKey};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::{
    absence::{GRACE, Shortage},
    condition::{self, PORTS_ERROR, SERVING, amended},
    conflict_news::SETTLE,
    desired::{Advertising, Decision},
    index::{
        Index, Input,
        service::{ServiceRecord, ServiceView},
    },
    ingress::Ingress,
    liveness::Now,
    notice_text::{Announcement, announce},
    notices::Notices,
    overwrites::Overwrites,
    refusals::Refusals,
    schedule::Schedule,
};

/// A status to be written, if the Service is still as it was when this was decided.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StatusWrite {
    /// The Service.
    pub(crate) key: ServiceKey,
    /// Its UID.
    pub(crate) uid: String,
    /// The version of the Service that was looked at.
    pub(crate) version: ResourceVersion,
    /// What the status should advertise, if that is anything else than now.
    pub(crate) ingress: Option<Ingress>,
    /// The family that comes first there.
    pub(crate) primary: Family,
    /// Our conditions that should say anything else than now.
    pub(crate) conditions: Vec<Condition>,
}

/// How a write ended.
#[derive(Debug)]
pub(crate) enum WriteResult {
    /// The Service as it is now.
    Written(Box<ServiceView>),
    /// The Service had changed; the watch brings the change and with it the next try.
    Conflict,
    /// The Service is gone.
    Gone,
    /// Try again later.
    Failed,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Engine {
    index: Index,
    leading: Option<Leading>,
}

/// What only a leader has. A new one starts from nothing: everything it must know is
/// in the objects.
#[derive(Debug, Default)]
struct Leading {
    schedule: Schedule,
    notices: Notices,
    overwrites: Overwrites,
    /// Since when the conditions of these Services are wrong.
    unexplained: BTreeMap<ServiceKey, Unexplained>,
}

/// Since when the conditions of a Service are wrong, as far as they are.
#[derive(Debug, Default)]
struct Unexplained {
    ports: Since,
    serving: Since,
}

/// What the conditions of a Service are to be about.
struct Findings<'a> {
    /// Who refuses it, if that is known.
    refusals: Option<&'a Refusals>,
    /// What of that has lasted long enough to be told.
    settled: Option<&'a Refusals>,
    /// What the condition `highwire.dev/Serving` should say, if anything else than now.
    serving: Option<Condition>,
    /// How long that must have been so.
    grace: Duration,
}

/// Since when something is so.
#[derive(Debug, Default)]
struct Since(Option<Instant>);

impl Since {
    /// It is so now, or not. Returns when it will have been so for that long.
    fn due(&mut self, is_so: bool, long: Duration, now: Instant) -> Option<Instant> {
        self.0 = is_so.then(|| self.0.unwrap_or(now));
        self.0.map(|since| since + long)
    }
}

impl Leading {
    /// What is to be written now; if nothing, the schedule knows when to look again.
    fn consider(
        &mut self,
        key: &ServiceKey,
        service: &ServiceRecord,
        decision: Decision,
        now: Now,
    ) -> Option<StatusWrite> {
        let (ingress, limited, shortage, refusals) = match decision {
            Decision::Leave => (None, None, None, None),
            Decision::Publish {
                ingress,
                limited,
                shortage,
                refusals,
            } => (ingress, limited, shortage, Some(refusals)),
        };
        let listed = match &ingress {
            Some(ingress) => !ingress.is_empty(),
            None => !service.listed.is_empty(),
        };
        let ingress = ingress.filter(|ingress| !service.listed.says(ingress));
        if ingress.is_some() && self.overwrites.is_lost(key, service, now.instant) {
            self.look_at_problems(key, service, now);
            self.schedule.settled(key);
            return None;
        }
        let moves = ingress.is_some();
        let footing = service.footing(listed, limited, shortage.as_ref());
        let serving = footing.and_then(|footing| {
            let stated = service.serving.as_ref();
            let words = condition::serving(stated, footing)?;
            amended(stated, SERVING, words, service.generation, now.wall)
        });
        self.look_at_shortage(key, service, shortage.as_ref(), now);
        let settled = refusals
            .clone()
            .map(|refusals| self.look_at_conflicts(key, service, refusals, now));
        let findings = Findings {
            refusals: refusals.as_ref(),
            settled: settled.as_ref(),
            serving,
            // What is said already should not stay wrong for longer than it must.
            grace: match (&service.serving, &shortage) {
                (None, Some(shortage)) => shortage.grace(),
                _ => GRACE,
            },
        };
        let conditions = self.conditions(key, service, findings, moves, now);
        if !moves && conditions.is_empty() {
            return None;
        }
        self.unexplained.remove(key);
        Some(StatusWrite {
            key: key.clone(),
            uid: service.uid.clone(),
            version: service.version,
            ingress,
            primary: service.primary,
            conditions,
        })
    }

    /// The conditions to be written now. If there are none and the addresses don't move,
    /// the schedule knows when to look again.
    fn conditions(
        &mut self,
        key: &ServiceKey,
        service: &ServiceRecord,
        findings: Findings<'_>,
        moves: bool,
        now: Now,
    ) -> Vec<Condition> {
        let amend = |refusals: &Refusals| {
            let stated = service.condition.as_ref();
            let words = condition::ports_error(stated, refusals)?;
            amended(stated, PORTS_ERROR, words, service.generation, now.wall)
        };
        let Findings {
            refusals,
            settled,
            serving,
            grace,
        } = findings;
        let wrong = self.unexplained.entry(key.clone()).or_default();
        let ports_wrong = refusals.and_then(amend).is_some();
        let ports_due = wrong.ports.due(ports_wrong, SETTLE, now.instant);
        let serving_due = wrong.serving.due(serving.is_some(), grace, now.instant);
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now.instant);
        let ports_error = settled
            // A cause that has not settled must not look like none.
            .filter(|settled| Some(settled.is_empty()) == refusals.map(Refusals::is_empty))
            .filter(|_| moves || is_due(ports_due))
            .and_then(amend);
        // What passes within a moment is not said, but what is said is true: it goes along
        // with another write.
        let written = moves || ports_error.is_some();
        let serving = serving.filter(|said| {
            let at_once = service.serving.is_some() || condition::is_true(Some(said));
            is_due(serving_due) || written && at_once
        });
        let conditions: Vec<Condition> = ports_error.into_iter().chain(serving).collect();
        if !moves && conditions.is_empty() {
            // What is due and still not written waits for a cause to settle.
            let ports_due = ports_due.map(|at| {
                if is_due(Some(at)) {
                    now.instant + SETTLE
                } else {
                    at
                }
            });
            match ports_due.into_iter().chain(serving_due).min() {
                Some(at) => self.schedule.wait(key, at),
                None => {
                    self.unexplained.remove(key);
                    self.schedule.settled(key);
                }
            }
        }
        conditions
    }

    /// Lets the notices know why no node serves the Service, once its condition says so.
    fn look_at_shortage(
        &mut self,
        key: &ServiceKey,
        service: &ServiceRecord,
        shortage: Option<&Shortage>,
        now: Now,
    ) {
        let stated = service.serving.as_ref();
        let kind = shortage
            .and_then(Shortage::to_tell)
            .filter(|kind| stated.is_some_and(|stated| stated.reason == kind.reason()));
        self.notices.shortage(key, &service.uid, kind, now.instant);
    }

    /// Lets the notices know who refuses the Service, and returns what of it has
    /// lasted long enough to be told.
    fn look_at_conflicts(
        &mut self,
        key: &ServiceKey,
        service: &ServiceRecord,
        refusals: Refusals,
        now: Now,
    ) -> Refusals {
        let (uid, condition) = (&service.uid, service.condition.as_ref());
        self.notices
            .conflicts(key, uid, refusals, condition, now.instant)
    }

    /// Lets the notices know what is wrong with the Service.
    fn look_at_problems(&mut self, key: &ServiceKey, service: &ServiceRecord, now: Now) {
        let overwritten = self.overwrites.problem(key).cloned();
        let problems: Vec<Problem> = service
            .problems()
            .iter()
            .cloned()
            .chain(overwritten)
            .collect();
        self.notices
            .problems(key, &service.uid, &problems, now.instant);
    }
}

impl Engine {
    /// An engine that knows nothing yet and does not lead.
    pub(crate) fn new(advertising: Advertising) -> Self {
        Self {
            index: Index::new(advertising),
            leading: None,
        }
    }

    /// What the watches said.
    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    /// Takes an event of a watch in.
    pub(crate) fn feed(&mut self, input: Input, now: Now) {
        self.index.apply(input, now);
    }

    /// Leadership was won or lost.
    pub(crate) fn lead(&mut self, leading: bool) {
        if leading && self.leading.is_none() {
            self.index.touch_all();
            self.leading = Some(Leading::default());
        } else if !leading {
            self.leading = None;
        }
    }

    /// Lets time pass: dead agents are noticed, and what was touched is scheduled.
    pub(crate) fn turn(&mut self, now: Now) {
        self.index.expire(now);
        // What touches a follower, or one who doesn't know everything yet, need not
        // be remembered: leadership touches everything, and so does the end of a list.
        if !self.index.missing().is_empty() {
            self.index.touch_all();
            return;
        }
        let touched = self.index.take_touched();
        let Some(leading) = &mut self.leading else {
            return;
        };
        for key in touched {
            match self.index.service(&key) {
                Some(service) => {
                    leading.look_at_problems(&key, service, now);
                    leading.schedule.touch(&key, service.rank(), now.instant);
                }
                None => {
                    leading.schedule.forget(&key);
                    leading.notices.forget(&key);
                    leading.overwrites.forget(&key);
                    leading.unexplained.remove(&key);
                }
            }
        }
    }

    /// The next status to be written now. Its end must be reported.
    pub(crate) fn next_write(&mut self, now: Now) -> Option<StatusWrite> {
        let leading = self.leading.as_mut()?;
        while let Some(key) = leading.schedule.take(now.instant) {
            let decided = self.index.decide(&key).zip(self.index.service(&key));
            let Some((decision, service)) = decided else {
                leading.schedule.forget(&key);
                continue;
            };
            let write = leading.consider(&key, service, decision, now);
            if write.is_some() {
                leading.schedule.spend(&key, now.instant);
                return write;
            }
        }
        None
    }

    /// A write ended. Returns how long a new Service had to wait for its first address.
    pub(crate) fn finish(
        &mut self,
        write: &StatusWrite,
        result: WriteResult,
        now: Now,
    ) -> Option<Duration> {
        let key = &write.key;
        let mut took = None;
        let mut written = None;
        if let WriteResult::Written(mut view) = result {
            self.index.share(&mut view.listed);
            written = Some((view.uid.clone(), view.listed.clone()));
            self.index.written(key, *view, now);
            let since = self.index.take_waiting(key);
            took = since.map(|since| now.instant.saturating_duration_since(since));
        } else if let Some(leading) = &mut self.leading {
            match result {
                WriteResult::Failed => leading.schedule.failed(key, now.instant),
                _ => leading.schedule.done(key, now.instant),
            }
        }
        if let (Some((uid, listed)), Some(leading)) = (written, &mut self.leading) {
            leading.schedule.done(key, now.instant);
            if write.ingress.is_some() {
                leading.notices.updated(key, &uid, now.instant);
                if let Some(service) = self.index.service(key) {
                    leading.overwrites.wrote(key, service, listed);
                }
            }
            // What the condition says now may be told now.
            let decided = self.index.decide(key).zip(self.index.service(key));
            if let Some((Decision::Publish { refusals, .. }, service)) = decided {
                leading.look_at_conflicts(key, service, refusals, now);
            }
        }
        took
    }

    /// What is to be told now.
    pub(crate) fn announcements(&mut self, now: Now) -> Vec<Announcement> {
        let Some(leading) = &mut self.leading else {
            return Vec::new();
        };
        let notices = leading.notices.take(now.instant);
        notices
            .into_iter()
            .filter_map(|(key, notice)| announce(&self.index, &key, notice))
            .collect()
    }

    /// When there is something to do next. `writable` is whether a write could begin.
    pub(crate) fn next_turn(&self, writable: bool) -> Option<Instant> {
        let leading = self.leading.as_ref();
        let write = leading
            .filter(|_| writable)
            .and_then(|leading| leading.schedule.next());
        let notice = leading.and_then(|leading| leading.notices.next());
        [self.index.next_judgement(), write, notice]
            .into_iter()
            .flatten()
            .min()
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
