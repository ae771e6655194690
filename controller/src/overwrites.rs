//! Whether another program writes the same addresses as we do, so that we do not fight with
//! it: after the second time it replaces ours, a Service is left to it.
//!
//! Only a leader needs this, and a new one starts anew: that costs two more writes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use highwire_api::{Problem, ResourceVersion, ServiceKey, ownership::IngressAuthor};

use crate::{
    facts::{ingress::Listed, service::ServiceFacts},
    history::History,
};

/// How often within [`WINDOW`] others may replace our work before we give up.
const MOST: usize = 2;

/// A program that insists does so at once; a person who edits a status by hand twice a
/// day does not.
const WINDOW: Duration = Duration::from_secs(600);

/// What became of the addresses that this leader wrote, by Service.
#[derive(Debug, Default)]
pub struct Overwrites(BTreeMap<ServiceKey, Written>);

#[derive(Debug)]
struct Written {
    intent: Intent,
    /// The status after our last write, or as others left it when that was counted.
    known: Listed,
    /// When others replaced what we had written.
    replaced: Vec<Instant>,
}

/// What people asked for: UID, last relevant change, whether it is handed over. Another
/// value is another try.
type Intent = (String, ResourceVersion, bool);

fn intent(service: &ServiceFacts, history: &History) -> Intent {
    (service.uid.clone(), history.changed, service.adopted)
}

/// Whether the addresses of a Service may be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They may.
    Write,
    /// They are left to others, for this reason from now on.
    GiveUp(Problem),
    /// They are left to others, as was said before.
    Leave,
}

impl Overwrites {
    /// The addresses of the Service are now `known`, by a write of ours.
    pub fn wrote(
        &mut self,
        key: &ServiceKey,
        service: &ServiceFacts,
        history: &History,
        known: Listed,
    ) {
        let intent = intent(service, history);
        let old = self.0.remove(key).filter(|old| old.intent == intent);
        let written = Written {
            intent,
            known,
            replaced: old.map(|old| old.replaced).unwrap_or_default(),
        };
        self.0.insert(key.clone(), written);
    }

    /// The addresses of the Service should be others than they are.
    pub fn verdict(
        &mut self,
        key: &ServiceKey,
        service: &ServiceFacts,
        history: &History,
        now: Instant,
    ) -> Verdict {
        let Some(written) = self.0.get_mut(key) else {
            return Verdict::Write;
        };
        if written.intent != intent(service, history) {
            self.0.remove(key);
            return Verdict::Write;
        }
        let gave_up = written.replaced.len() >= MOST;
        if written.known != service.status.listed {
            written.known = service.status.listed.clone();
            if !gave_up {
                written
                    .replaced
                    .retain(|at| now.duration_since(*at) < WINDOW);
                written.replaced.push(now);
            }
        }
        match (gave_up, written.replaced.len() >= MOST) {
            (true, _) => Verdict::Leave,
            (false, false) => Verdict::Write,
            (false, true) => Verdict::GiveUp(Problem::Overwritten {
                manager: match &service.author {
                    IngressAuthor::Other(manager) => Some(manager.clone()),
                    IngressAuthor::Nobody | IngressAuthor::Highwire => None,
                },
            }),
        }
    }

    /// The Service is gone.
    pub fn forget(&mut self, key: &ServiceKey) {
        self.0.remove(key);
    }
}
