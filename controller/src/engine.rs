//! The whole controller without its effects: watch events, time and the results of
//! writes go in; writes and Events come out. Only the leader is given any.

use std::time::{Duration, Instant};

use highwire_api::{ResourceVersion, ServiceKey};

use crate::{
    desired::Decision,
    index::{Index, Input, service::ServiceView},
    ingress::Ingress,
    liveness::Now,
    notice_text::{Announcement, announce},
    notices::Notices,
    schedule::Schedule,
};

/// A status to be written, if the Service is still as it was when this was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StatusWrite {
    /// The Service.
    pub(crate) key: ServiceKey,
    /// Its UID.
    pub(crate) uid: String,
    /// The version of the Service that was looked at.
    pub(crate) version: ResourceVersion,
    /// What the status shall say.
    pub(crate) ingress: Ingress,
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
}

impl Engine {
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
                    leading
                        .notices
                        .problems(&key, &service.uid, service.problems(), now.instant);
                    leading.schedule.touch(&key, now.instant);
                }
                None => {
                    leading.schedule.forget(&key);
                    leading.notices.forget(&key);
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
            let Decision::Publish { ingress, shortage } = decision else {
                leading.schedule.settled(&key);
                continue;
            };
            let kind = shortage.map(|shortage| shortage.kind());
            leading
                .notices
                .shortage(&key, &service.uid, kind, now.instant);
            if service.listed.says(&ingress) {
                leading.schedule.settled(&key);
                continue;
            }
            let (uid, version) = (service.uid.clone(), service.version);
            return Some(StatusWrite {
                key,
                uid,
                version,
                ingress,
            });
        }
        None
    }

    /// A write ended. Returns how long a new Service had to wait for its first address.
    pub(crate) fn finish(
        &mut self,
        key: &ServiceKey,
        result: WriteResult,
        now: Now,
    ) -> Option<Duration> {
        let mut took = None;
        let mut written = None;
        if let WriteResult::Written(view) = result {
            written = Some(view.uid.clone());
            self.index.written(key, *view, now);
            let since = self.index.take_waiting(key);
            took = since.map(|since| now.instant.saturating_duration_since(since));
        } else if let Some(leading) = &mut self.leading {
            match result {
                WriteResult::Failed => leading.schedule.failed(key, now.instant),
                _ => leading.schedule.done(key, now.instant),
            }
        }
        if let (Some(uid), Some(leading)) = (written, &mut self.leading) {
            leading.schedule.done(key, now.instant);
            leading.notices.updated(key, &uid, now.instant);
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
