//! The words of an Event.

use std::hash::{DefaultHasher, Hash, Hasher};

use highwire_api::ServiceKey;

use crate::{desired::Decision, index::Index, notices::Notice};

/// The API server's limit for `note`.
const LONGEST_NOTE: usize = 1024;

/// Whether an Event is good or bad news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    /// All went as it should.
    Normal,
    /// Somebody should look.
    Warning,
}

/// An Event to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Announcement {
    /// The Service it is about.
    pub(crate) key: ServiceKey,
    /// The Service's UID.
    pub(crate) uid: String,
    /// Good or bad news.
    pub(crate) severity: Severity,
    /// One of a fixed set.
    pub(crate) reason: &'static str,
    /// What happened.
    pub(crate) note: String,
    /// The same for the same cause on the same Service, whoever sends it.
    pub(crate) digest: u64,
}

/// Puts a notice in words, unless it has become untrue or the Service is gone.
pub(crate) fn announce(index: &Index, key: &ServiceKey, notice: Notice) -> Option<Announcement> {
    let service = index.service(key)?;
    let (severity, reason, note) = match notice {
        Notice::Updated => {
            let note = format!("Advertised at {}", service.listed.ingress);
            (Severity::Normal, "LoadBalancerUpdated", note)
        }
        Notice::NoReadyNodes => match index.decide(key)? {
            Decision::Publish {
                shortage: Some(shortage),
                ..
            } => (
                Severity::Warning,
                "NoReadyNodes",
                format!("Not advertised: {shortage}"),
            ),
            _ => return None,
        },
        Notice::Problem(ref problem) => (Severity::Warning, problem.reason(), problem.to_string()),
    };
    let mut hasher = DefaultHasher::new();
    (&service.uid, reason).hash(&mut hasher);
    match notice {
        // The version is the same after a restart as long as nobody wrote the Service.
        Notice::Updated | Notice::NoReadyNodes => service.version.hash(&mut hasher),
        Notice::Problem(problem) => problem.hash(&mut hasher),
    }
    Some(Announcement {
        key: key.clone(),
        uid: service.uid.clone(),
        severity,
        reason,
        note: shortened(note),
        digest: hasher.finish(),
    })
}

fn shortened(mut note: String) -> String {
    const MARK: &str = "…";
    if note.len() > LONGEST_NOTE {
        let end = (0..=LONGEST_NOTE - MARK.len())
            .rev()
            .find(|end| note.is_char_boundary(*end));
        note.truncate(end.unwrap_or(0));
        note.push_str(MARK);
    }
    note
}
