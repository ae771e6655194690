//! Writes the status of Services.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use highwire_api::{ClassPolicy, names::FIELD_MANAGER};
use highwire_runtime::errors::explain;
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
    index::service::ServiceView,
    metrics::Metrics,
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
        let patch = Patch::Strategic(patch(write));
        let answer = timeout(
            TIMEOUT,
            services.patch_status(&write.key.name, &params, &patch),
        )
        .await;
        let (label, result) = match answer {
            Ok(Ok(service)) => {
                self.succeeded();
                info!(service = %write.key, "status written: {}", summary(write));
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

/// What was written, in words.
fn summary(write: &StatusWrite) -> String {
    let addresses = write.ingress.as_ref().map(ToString::to_string);
    let conditions = write.conditions.iter().map(|condition| {
        let (type_, status) = (&condition.type_, &condition.status);
        format!("{type_} {status}: {}", condition.message)
    });
    let parts: Vec<String> = addresses.into_iter().chain(conditions).collect();
    parts.join("; ")
}

/// A strategic merge patch: it replaces the ingress as a whole, and of the conditions,
/// a list by type, only ours, so that those of others and whatever else is in the
/// status stay. With UID and version, so that it only hits what was looked at.
fn patch(write: &StatusWrite) -> Value {
    let mut status = json!({});
    if let Some(ingress) = &write.ingress {
        let entries = ingress.to_api(write.primary);
        let entries = if entries.is_empty() {
            Value::Null
        } else {
            json!(entries)
        };
        status["loadBalancer"] = json!({ "ingress": entries });
    }
    if !write.conditions.is_empty() {
        status["conditions"] = json!(write.conditions);
    }
    json!({
        "metadata": { "uid": write.uid, "resourceVersion": write.version.to_string() },
        "status": status,
    })
}

#[cfg(test)]
mod tests {
    use highwire_api::{Family, ResourceVersion};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

    use super::*;
    use crate::{condition::PORTS_ERROR, ingress::Ingress, testing::key};

    #[test]
    fn a_patch_holds_what_was_looked_at_and_no_condition_that_is_right() {
        let mut write = StatusWrite {
            key: key("web"),
            uid: "u1".into(),
            version: ResourceVersion(7),
            ingress: Some(Ingress::default()),
            primary: Family::V4,
            conditions: Vec::new(),
        };
        let looked_at = json!({"uid": "u1", "resourceVersion": "7"});
        assert_eq!(
            patch(&write),
            json!({"metadata": looked_at, "status": {"loadBalancer": {"ingress": null}}})
        );
        let condition: Condition = serde_json::from_value(json!({
            "type": PORTS_ERROR, "status": "True", "reason": "HostPort", "message": "m",
            "lastTransitionTime": "2026-01-02T03:04:05Z",
        }))
        .unwrap();
        write.conditions = vec![condition.clone()];
        assert_eq!(patch(&write)["status"]["conditions"], json!([condition]));
        write.ingress = None;
        assert_eq!(patch(&write)["status"], json!({"conditions": [condition]}));
    }
}
