//! Writes the status of Services.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use highwire_api::ClassPolicy;
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::{
    engine::{StatusWrite, WriteResult},
    explain::explain,
    index::service::ServiceView,
    metrics::Metrics,
    names::FIELD_MANAGER,
};

const TIMEOUT: Duration = Duration::from_secs(10);

/// The writer of statuses.
pub(crate) struct Writer {
    client: Client,
    policy: ClassPolicy,
    metrics: Metrics,
    /// The last failure, told once however many Services it hits.
    failure: Mutex<Option<String>>,
}

impl Writer {
    /// A writer.
    pub(crate) fn new(client: Client, policy: ClassPolicy, metrics: Metrics) -> Self {
        Self {
            client,
            policy,
            metrics,
            failure: Mutex::default(),
        }
    }

    /// Writes a status.
    pub(crate) async fn write(&self, write: &StatusWrite) -> WriteResult {
        let services = Api::<Service>::namespaced(self.client.clone(), &write.key.namespace);
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patch = Patch::Merge(patch(write));
        let answer = timeout(
            TIMEOUT,
            services.patch_status(&write.key.name, &params, &patch),
        )
        .await;
        let (label, result) = match answer {
            Ok(Ok(service)) => {
                self.succeeded();
                info!(service = %write.key, "status written: {}", write.ingress);
                let view = ServiceView::of(&service, self.policy);
                ("ok", WriteResult::Written(Box::new(view)))
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
                debug!(service = %write.key, "changed meanwhile: {}", status.message);
                ("conflict", WriteResult::Conflict)
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => ("gone", WriteResult::Gone),
            Ok(Err(error)) => ("error", self.failed(write, explain(&error))),
            Err(_) => {
                let message = format!("no answer within {} s", TIMEOUT.as_secs());
                ("error", self.failed(write, message))
            }
        };
        self.metrics.status_write(label);
        result
    }

    fn failed(&self, write: &StatusWrite, message: String) -> WriteResult {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.as_ref() != Some(&message) {
            warn!(service = %write.key, "cannot write the status, will retry: {message}");
        }
        *failure = Some(message);
        WriteResult::Failed
    }

    fn succeeded(&self) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A merge patch, so that the conditions and whatever else others write into the
/// status stay; with UID and version, so that it only hits what was looked at.
fn patch(write: &StatusWrite) -> Value {
    let entries = write.ingress.to_api();
    let entries = if entries.is_empty() {
        Value::Null
    } else {
        json!(entries)
    };
    json!({
        "metadata": { "uid": write.uid, "resourceVersion": write.version.to_string() },
        "status": { "loadBalancer": { "ingress": entries } },
    })
}
