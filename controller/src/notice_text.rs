//! The words of an Event.

use std::hash::{DefaultHasher, Hash, Hasher};

use highwire_api::{Problem, ServiceKey};

use crate::{
    conflict_news::ConflictNews,
    desired::{Decision, Limited},
    index::Index,
    notices::Notice,
};

/// The API server's limit for `note`.
pub(crate) const LONGEST_NOTE: usize = 1024;

/// What a text ends with that was cut there.
pub(crate) const MARK: &str = "…";

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
            let mut note = format!("Advertised at {}", service.listed.ingress);
            if let Some(Decision::Publish {
                limited: Some(Limited { advertised, ready }),
                ..
            }) = index.decide(key)
            {
                note.push_str(&format!(", at {advertised} of {ready} ready nodes"));
            }
            (Severity::Normal, "LoadBalancerUpdated", note)
        }
        Notice::NoReadyNodes => {
            let stated = service
                .serving
                .as_ref()
                .filter(|said| said.status == "False")?;
            (Severity::Warning, "NoReadyNodes", stated.message.clone())
        }
        Notice::Conflict(ConflictNews::Refused(ref cause)) => {
            let sentence = match index.decide(key)? {
                Decision::Publish { refusals, .. } => refusals.sentence(cause),
                Decision::Leave => cause.to_string(),
            };
            let note = format!("{sentence}; the Service is not served there");
            (Severity::Warning, "PortConflict", note)
        }
        Notice::Conflict(ConflictNews::Resolved(port)) => {
            let note = format!("No node refuses {port} any more");
            (Severity::Normal, "PortConflictResolved", note)
        }
        Notice::Problem(ref problem) => {
            // That another load balancer does its work is no trouble.
            let severity = match problem {
                Problem::ManagedElsewhere { .. } => Severity::Normal,
                _ => Severity::Warning,
            };
            (severity, problem.reason(), problem.to_string())
        }
    };
    let mut hasher = DefaultHasher::new();
    (&service.uid, reason).hash(&mut hasher);
    match notice {
        // The version is the same after a restart as long as nobody wrote the Service.
        Notice::Updated => service.version.hash(&mut hasher),
        // The same for everyone as long as the condition says so.
        Notice::NoReadyNodes => {
            let condition = service.serving.as_ref();
            let said = condition.map(|said| (&said.reason, said.last_transition_time.0));
            said.hash(&mut hasher);
        }
        Notice::Problem(problem) => problem.hash(&mut hasher),
        // The same for everyone as long as the condition stays True, or False.
        Notice::Conflict(news) => {
            let condition = service.condition.as_ref();
            let since = condition.map(|condition| condition.last_transition_time.0);
            (news, since).hash(&mut hasher);
        }
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

/// Cuts what is longer than a note may be.
pub(crate) fn shortened(mut note: String) -> String {
    if note.len() > LONGEST_NOTE {
        let end = (0..=LONGEST_NOTE - MARK.len())
            .rev()
            .find(|end| note.is_char_boundary(*end));
        note.truncate(end.unwrap_or(0));
        note.push_str(MARK);
    }
    note
}
