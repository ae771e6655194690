//! Whether another program writes the same addresses as we do, so that we do not
//! fight with it: after the second time it replaces ours, a Service is left to it.
//!
//! Only a leader needs this, and a new one starts anew: that costs two more writes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use highwire_api::{Problem, ResourceVersion, ServiceKey, ownership::IngressAuthor};

use crate::{index::service::ServiceRecord, ingress::Listed};

/// How often within [`WINDOW`] others may replace our work before we give up.
const MOST: usize = 2;

/// A program that insists does so at once; a person who edits a status by hand twice a
/// day does not.
const WINDOW: Duration = Duration::from_secs(600);

/// What became of the addresses that this leader wrote, by Service.
#[derive(Debug, Default)]
pub(crate) struct Overwrites(BTreeMap<ServiceKey, History>);

#[derive(Debug)]
struct History {
    /// Who edits the Service, or hands it over, wants another try.
    intent: Intent,
    /// The status after our last write, or as others left it when that was counted.
    known: Listed,
    /// When others replaced what we had written.
    replaced: Vec<Instant>,
    /// Why we do not write any more.
    lost: Option<Problem>,
}

/// What people asked for: another value is another try.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Intent {
    uid: String,
    changed: ResourceVersion,
    adopted: bool,
}

impl Intent {
    fn of(service: &ServiceRecord) -> Self {
        Self {
            uid: service.uid.clone(),
            changed: service.changed,
            adopted: service.adopted,
        }
    }
}

impl Overwrites {
    /// We wrote the addresses of the Service. The API server answered that its status
    /// is `known` now; others may have written it since.
    pub(crate) fn wrote(&mut self, key: &ServiceKey, service: &ServiceRecord, known: Listed) {
        let intent = Intent::of(service);
        let replaced = self.0.remove(key).filter(|old| old.intent == intent);
        let history = History {
            intent,
            known,
            replaced: replaced.map(|old| old.replaced).unwrap_or_default(),
            lost: None,
        };
        self.0.insert(key.clone(), history);
    }

    /// The addresses of the Service are to be written, and are now like this. Says
    /// whether to leave them to others instead.
    pub(crate) fn is_lost(
        &mut self,
        key: &ServiceKey,
        service: &ServiceRecord,
        now: Instant,
    ) -> bool {
        let Some(history) = self.0.get_mut(key) else {
            return false;
        };
        if history.intent != Intent::of(service) {
            self.0.remove(key);
            return false;
        }
        if history.known != service.listed {
            history.known = service.listed.clone();
            history
                .replaced
                .retain(|at| now.duration_since(*at) < WINDOW);
            history.replaced.push(now);
            if history.replaced.len() >= MOST {
                let manager = match &service.author {
                    IngressAuthor::Other(manager) => Some(manager.clone()),
                    IngressAuthor::Nobody | IngressAuthor::Highwire => None,
                };
                history.lost = Some(Problem::Overwritten { manager });
            }
        }
        history.lost.is_some()
    }

    /// Why the Service is left to others, if so.
    pub(crate) fn problem(&self, key: &ServiceKey) -> Option<&Problem> {
        self.0.get(key)?.lost.as_ref()
    }

    /// The Service is gone, or not ours any more.
    pub(crate) fn forget(&mut self, key: &ServiceKey) {
        self.0.remove(key);
    }
}
