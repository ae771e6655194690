//! At an uninstall, removes everything that Highwire wrote in the status of Services.
//!
//! Only the API server's `managedFields` say what that is, so nothing else of a Service is
//! read. What another manager wrote stays.

use std::time::Duration;

use futures::{StreamExt, stream};
use highwire_api::{
    ServiceKey,
    names::FIELD_MANAGER,
    ownership::{IngressAuthor, is_condition_ours},
};
use highwire_runtime::errors::explain;
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::sleep;
use tracing::{info, warn};

/// How many writes are done at once.
const WRITES: usize = 16;

/// Services per page of the list, which is in memory as a whole.
const PAGE: u32 = 500;

/// How long after a failure the next try comes.
const AGAIN: Duration = Duration::from_millis(500);

/// Clears what Highwire wrote in the status of all Services, again and again until nothing
/// of it is left, or the right to do so is gone. The client's requests have a deadline.
pub async fn clear(client: &Client) {
    let mut cleared = 0;
    loop {
        match sweep(client, &mut cleared).await {
            Ok(0) => {
                info!(
                    services = cleared,
                    "nothing of Highwire is left in Services"
                );
                return;
            }
            // Changed meanwhile: once more at once.
            Ok(_) => continue,
            Err(kube::Error::Api(status)) if matches!(status.code, 401 | 403) => {
                warn!(
                    services = cleared,
                    "the rights were removed before all Services were cleared; see the README, \
                     Uninstall: {}",
                    status.message
                );
                return;
            }
            Err(error) => warn!("not all Services could be cleared yet: {}", explain(&error)),
        }
        sleep(AGAIN).await;
    }
}

/// Reads all Services once. Returns how many there were to clear.
async fn sweep(client: &Client, cleared: &mut usize) -> kube::Result<usize> {
    let mut found = 0;
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let all = Api::<Service>::all(client.clone());
        let page = all.list(&params).await?;
        let next = page.metadata.continue_.filter(|token| !token.is_empty());
        let ours: Vec<(Service, Value)> = page
            .items
            .into_iter()
            .filter_map(|service| patch(&service).map(|patch| (service, patch)))
            .collect();
        found += ours.len();
        let mut writes = stream::iter(ours)
            .map(|(service, patch)| write(client, service, patch))
            .buffer_unordered(WRITES);
        while let Some(written) = writes.next().await {
            *cleared += usize::from(written?);
        }
        match next {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(found),
        }
    }
}

/// Whether it was written; if not, the Service has changed or is gone.
async fn write(client: &Client, service: Service, patch: Value) -> kube::Result<bool> {
    let key = ServiceKey::of(&service);
    let services = Api::<Service>::namespaced(client.clone(), &key.namespace);
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let patch = Patch::Strategic(patch);
    match services.patch_status(&key.name, &params, &patch).await {
        Ok(_) => {
            info!(service = %key, "status cleared");
            Ok(true)
        }
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The strategic merge patch that removes what Highwire wrote in a Service's status; `None` if
/// there is none. With UID and version, so that it only changes the version that was read.
fn patch(service: &Service) -> Option<Value> {
    let mut cleared = json!({});
    if IngressAuthor::of(service) == IngressAuthor::Highwire {
        cleared["loadBalancer"] = json!({ "ingress": null });
    }
    let stated = service
        .status
        .as_ref()
        .and_then(|it| it.conditions.as_ref());
    let conditions: Vec<Value> = stated
        .into_iter()
        .flatten()
        .filter(|it| is_condition_ours(service, &it.type_))
        .map(|it| json!({ "type": it.type_, "$patch": "delete" }))
        .collect();
    if !conditions.is_empty() {
        cleared["conditions"] = json!(conditions);
    }
    let empty = cleared.as_object().is_none_or(serde_json::Map::is_empty);
    (!empty).then(|| {
        json!({
            "metadata": { "uid": service.uid(), "resourceVersion": service.resource_version() },
            "status": cleared,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINE: &str = r#"k:{"type":"highwire.dev/Serving"}"#;
    const THEIRS: &str = r#"k:{"type":"Theirs"}"#;

    /// A Service with an ingress and two conditions, and the managers of its fields.
    fn service(managers: Value) -> Service {
        serde_json::from_value(json!({
            "metadata": {
                "name": "web", "namespace": "ns", "uid": "u", "resourceVersion": "7",
                "managedFields": managers,
            },
            "status": {
                "loadBalancer": { "ingress": [{ "ip": "192.0.2.11" }] },
                "conditions": [
                    { "type": "highwire.dev/Serving", "status": "True", "reason": "R",
                      "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z" },
                    { "type": "Theirs", "status": "True", "reason": "R",
                      "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z" },
                ],
            },
        }))
        .unwrap()
    }

    fn wrote(manager: &str, status: Value) -> Value {
        json!({ "manager": manager, "subresource": "status", "fieldsV1": { "f:status": status } })
    }

    #[test]
    fn what_is_ours_goes() {
        let all = json!({
            "f:loadBalancer": { "f:ingress": {} },
            "f:conditions": { ".": {}, MINE: { ".": {} } },
        });
        let others = json!({ "f:conditions": { THEIRS: { ".": {} } } });
        let cleared = patch(&service(json!([
            wrote(FIELD_MANAGER, all),
            wrote("other", others)
        ])));
        assert_eq!(
            cleared,
            Some(json!({
                "metadata": { "uid": "u", "resourceVersion": "7" },
                "status": {
                    "loadBalancer": { "ingress": null },
                    "conditions": [{ "type": "highwire.dev/Serving", "$patch": "delete" }],
                },
            }))
        );
    }

    #[test]
    fn what_others_wrote_stays() {
        let ingress = json!({ "f:loadBalancer": { "f:ingress": {} } });
        assert_eq!(patch(&service(json!([wrote("other", ingress)]))), None);
        assert_eq!(patch(&service(json!([]))), None);
        let elsewhere = json!([{ "manager": FIELD_MANAGER, "fieldsV1": { "f:metadata": {} } }]);
        assert_eq!(patch(&service(elsewhere)), None);
    }
}
