//! Writes the status of Services.

use std::sync::{Mutex, PoisonError};

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
    metrics::Metrics,
    status_write::{StatusWrite, WriteResult},
};

/// The writer of statuses.
pub struct Writer {
    client: Client,
    metrics: Metrics,
    /// The last failure, logged once however many Services it hits.
    failure: Mutex<Option<String>>,
}

impl Writer {
    /// A writer. The client's requests have a deadline.
    pub fn new(client: Client, metrics: Metrics) -> Self {
        Self {
            client,
            metrics,
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
        let (label, result) = match answer.await {
            Ok(service) => {
                self.succeeded();
                info!(service = %write.key, "status written: {}", summary(write));
                ("ok", WriteResult::Written(Box::new(service)))
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                debug!(service = %write.key, "changed meanwhile: {}", status.message);
                ("conflict", WriteResult::Conflict)
            }
            Err(kube::Error::Api(status)) if status.code == 404 => ("gone", WriteResult::Gone),
            Err(error) => {
                self.failed(write, explain(&error));
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

    fn failed(&self, write: &StatusWrite, message: String) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.as_ref() != Some(&message) {
            warn!(service = %write.key, "cannot write the status, will retry: {message}");
        }
        *failure = Some(message);
    }

    fn succeeded(&self) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
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
