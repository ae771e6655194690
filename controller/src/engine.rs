//! The whole controller without its effects: watch events, time and the results of
//! writes go in; writes and Events come out. Only the leader is given any.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use highwire_api::{Problem, ResourceVersion, ServiceKey};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::{
    condition::{Finding, amended},
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
    /// What our condition shall say, if that is anything else than now.
    pub(crate) condition: Option<Condition>,
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
    /// Since when nothing but the condition of these Services was to be written.
    unexplained: BTreeMap<ServiceKey, Instant>,
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
        let Decision::Publish {
            ingress,
            shortage,
            refusals,
        } = decision
        else {
            self.schedule.settled(key);
            return None;
        };
        let ingress = ingress.filter(|ingress| !service.listed.says(ingress));
        if ingress.is_some() && self.overwrites.is_lost(key, service, now.instant) {
            self.look_at_problems(key, service, now);
            self.schedule.settled(key);
            return None;
        }
        let shortage = shortage.and_then(|shortage| shortage.to_tell());
        self.notices
            .shortage(key, &service.uid, shortage, now.instant);
        let settled = self.look_at_conflicts(key, service, refusals.clone(), now);
        let amend = |refusals: &Refusals| {
            let stated = service.condition.as_ref();
            let finding = match service.unsupported() {
                Some(problems) => Finding::Unsupported(problems),
                None => Finding::Refusals(refusals),
            };
            amended(stated, finding, service.generation, now.wall)
        };
        let moves = ingress.is_some();
        if !moves && !self.is_to_be_explained(key, amend(&refusals).is_some(), now) {
            return None;
        }
        // A cause that has not settled must not look like none.
        let condition = Some(settled)
            .filter(|settled| settled.is_empty() == refusals.is_empty())
            .and_then(|settled| amend(&settled));
        if !moves && condition.is_none() {
            self.schedule.wait(key, now.instant + SETTLE);
            return None;
        }
        self.unexplained.remove(key);
        Some(StatusWrite {
            key: key.clone(),
            uid: service.uid.clone(),
            version: service.version,
            ingress,
            condition,
        })
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

    /// Whether the condition alone is worth a write now: it has been wrong for a while,
    /// in which all nodes that have to say the same could say it.
    fn is_to_be_explained(&mut self, key: &ServiceKey, wrong: bool, now: Now) -> bool {
        if !wrong {
            self.unexplained.remove(key);
            self.schedule.settled(key);
            return false;
        }
        let since = self.unexplained.entry(key.clone()).or_insert(now.instant);
        let due = *since + SETTLE;
        if due > now.instant {
            self.schedule.wait(key, due);
        }
        due <= now.instant
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
                    leading.schedule.touch(&key, now.instant);
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
        if let WriteResult::Written(view) = result {
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
