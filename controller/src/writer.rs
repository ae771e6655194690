//! Writes the status of Services.

use std::sync::{Mutex, PoisonError};

use highwire_api::names::FIELD_MANAGER;
use highwire_runtime::errors::explain;
use k8s_openapi::{api::core::v1::Service, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tracing::{debug, info, warn};

use crate::{
    decision::text,
    metrics::Metrics,
    reconciler::{StatusWrite, WriteResult},
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
        let patch = Patch::Strategic(patch(write));
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
            Err(error) => ("error", self.failed(write, explain(&error))),
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

/// What is written, for the log.
fn summary(write: &StatusWrite) -> String {
    let difference = &write.difference;
    let addresses = difference.ingress.as_ref().map(text::addresses);
    let conditions = conditions(write).map(|condition| {
        let (type_, status) = (&condition.type_, &condition.status);
        format!("{type_} {status}: {}", condition.message)
    });
    let parts: Vec<String> = addresses.into_iter().chain(conditions).collect();
    parts.join("; ")
}

fn conditions(write: &StatusWrite) -> impl Iterator<Item = &Condition> {
    let difference = &write.difference;
    difference.ports_error.iter().chain(&difference.serving)
}

/// A strategic merge patch: it replaces the ingress as a whole, and of the conditions,
/// a list by type, only ours, so that those of others and whatever else is in the
/// status stay. With UID and version, so that it only changes the version that was decided about.
#[must_use]
pub fn patch(write: &StatusWrite) -> Value {
    let mut status = json!({});
    if let Some(ingress) = &write.difference.ingress {
        let entries = ingress.to_api(write.primary);
        let entries = (!entries.is_empty()).then_some(entries);
        status["loadBalancer"] = json!({ "ingress": entries });
    }
    let conditions: Vec<&Condition> = conditions(write).collect();
    if !conditions.is_empty() {
        status["conditions"] = json!(conditions);
    }
    json!({
        "metadata": { "uid": write.uid, "resourceVersion": write.version.to_string() },
        "status": status,
    })
}

#[cfg(test)]
mod tests {
    use highwire_api::{Family, ResourceVersion};

    use super::*;
    use crate::{
        decision::conditions::Difference,
        facts::{
            ingress::Ingress,
            service::{PORTS_ERROR, ServiceStatus},
        },
    };

    #[test]
    fn a_patch_holds_what_was_decided_about_and_only_what_differs() {
        let mut write = StatusWrite {
            key: "shop/web".parse().unwrap(),
            uid: "u1".into(),
            version: ResourceVersion(7),
            primary: Family::V4,
            difference: Difference {
                ingress: Some(Ingress::default()),
                ..Difference::default()
            },
            after: ServiceStatus::default(),
            news: Vec::new(),
        };
        let decided_about = json!({"uid": "u1", "resourceVersion": "7"});
        assert_eq!(
            patch(&write),
            json!({"metadata": decided_about, "status": {"loadBalancer": {"ingress": null}}})
        );
        let condition: Condition = serde_json::from_value(json!({
            "type": PORTS_ERROR, "status": "True", "reason": "HostPort", "message": "m",
            "lastTransitionTime": "2026-01-02T03:04:05Z",
        }))
        .unwrap();
        write.difference.ports_error = Some(condition.clone());
        assert_eq!(patch(&write)["status"]["conditions"], json!([condition]));
        write.difference.ingress = None;
        assert_eq!(patch(&write)["status"], json!({"conditions": [condition]}));
    }
}
