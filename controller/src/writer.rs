//! Writes the status of Services.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use highwire_api::names::FIELD_MANAGER;
use highwire_runtime::errors::explain;
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use tracing::{debug, info, warn};

use crate::{
    decision::text,
    election::Term,
    metrics::Metrics,
    status_write::{StatusWrite, WriteResult},
};

/// How often the same failure is logged at most, of however many Services.
const QUIET: Duration = Duration::from_secs(30);

/// The writer of statuses.
pub struct Writer {
    client: Client,
    metrics: Metrics,
    term: Term,
    /// The kind of failure that was logged last, and when.
    failure: Mutex<Option<(String, Instant)>>,
}

impl Writer {
    /// A writer. The client's requests have a deadline, and are sent in this term only.
    pub fn new(client: Client, term: Term, metrics: Metrics) -> Self {
        Self {
            client,
            metrics,
            term,
            failure: Mutex::default(),
        }
    }

    /// Writes a status.
    pub async fn write(&self, write: &StatusWrite) -> WriteResult {
        let services = Api::<Service>::namespaced(self.client.clone(), &write.key.namespace);
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patch = Patch::Strategic(write.patch());
        let answer = services.patch_status(&write.key.name, &params, &patch);
        // A process that was stopped for a while may get here before it hears that its
        // time is over.
        if !self.term.lasts() {
            return WriteResult::Failed;
        }
        let (label, result) = match answer.await {
            Ok(service) => {
                info!(service = %write.key, "status written: {}", summary(write));
                ("ok", WriteResult::Written(Box::new(service)))
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                debug!(service = %write.key, "changed meanwhile: {}", status.message);
                ("conflict", WriteResult::Conflict)
            }
            Err(kube::Error::Api(status)) if status.code == 404 => ("gone", WriteResult::Gone),
            Err(error) => {
                self.failed(write, &error);
                match error {
                    kube::Error::Api(status) if matches!(status.code, 401 | 403) => {
                        ("error", WriteResult::Forbidden)
                    }
                    _ => ("error", WriteResult::Failed),
                }
            }
        };
        self.metrics.status_write(label);
        result
    }

    /// Logs a failure, unless one of its kind was just logged.
    fn failed(&self, write: &StatusWrite, error: &kube::Error) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        let (kind, message) = (kind(error), explain(error));
        let known = failure.as_ref().filter(|(known, _)| *known == kind);
        if known.is_none_or(|(_, logged)| logged.elapsed() >= QUIET) {
            warn!(service = %write.key, "cannot write the status, will retry: {message}");
            *failure = Some((kind, Instant::now()));
        }
    }
}

/// What failures of several Services have in common: most texts name the Service.
fn kind(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} {}", status.code, status.reason),
        other => explain(other),
    }
}

/// What is written, for the log.
fn summary(write: &StatusWrite) -> String {
    let difference = &write.difference;
    let addresses = difference.ingress.as_ref().map(text::addresses);
    let removed = difference.removed.iter().map(|type_| format!("no {type_}"));
    let conditions = difference.conditions().map(|condition| {
        let (type_, status) = (&condition.type_, &condition.status);
        format!("{type_} {status}: {}", condition.message)
    });
    let parts: Vec<String> = addresses
        .into_iter()
        .chain(conditions)
        .chain(removed)
        .collect();
    parts.join("; ")
}
