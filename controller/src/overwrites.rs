//! Whether another program writes the same addresses as we do, so that we do not fight with
//! it: after the second time it replaces ours, a Service is left to it.
//!
//! Only a leader needs this, and a new one starts anew: that costs two more writes.

use std::time::{Duration, Instant};

use highwire_api::{Problem, ownership::IngressAuthor};

use crate::facts::{ingress::Listed, service::ServiceFacts};

/// How often within [`WINDOW`] others may replace our work before we give up.
const MOST: usize = 2;

/// A program that insists does so at once; a person who edits a status by hand twice a
/// day does not.
const WINDOW: Duration = Duration::from_secs(600);

/// What became of the addresses that this leader wrote in a Service, since what people ask
/// of it last changed.
#[derive(Clone, Debug, Default)]
pub struct Overwrites {
    /// The status after our last write, or as others left it when that was counted.
    known: Option<Listed>,
    /// When others replaced what we had written.
    replaced: Vec<Instant>,
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
    /// The status is like this, by a write of ours.
    pub fn wrote(&mut self, now: Listed) {
        self.known = Some(now);
    }

    /// The addresses of the Service should be others than they are.
    pub fn verdict(&mut self, service: &ServiceFacts, now: Instant) -> Verdict {
        if self.replaced.len() >= MOST {
            return Verdict::Leave;
        }
        let listed = &service.status.listed;
        if self.known.as_ref().is_some_and(|known| known != listed) {
            self.known = Some(listed.clone());
            self.replaced.retain(|at| now.duration_since(*at) < WINDOW);
            self.replaced.push(now);
        }
        if self.replaced.len() < MOST {
            return Verdict::Write;
        }
        Verdict::GiveUp(Problem::Overwritten {
            manager: match &service.author {
                IngressAuthor::Other(manager) => Some(manager.clone()),
                IngressAuthor::Nobody | IngressAuthor::Highwire => None,
            },
        })
    }
}
