//! Writing objects of our own at the API server, within a limit of time.

use std::{fmt, fmt::Debug, time::Duration};

use highwire_runtime::errors::explain;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api, Resource,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

/// Longer than this no API call may hold up the next Lease renewal.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two tries.
pub(super) const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How long a stopping agent waits for the API server when it deletes its objects.
const DELETION_LIMIT: Duration = Duration::from_secs(20);

/// Why a call failed.
#[derive(Debug)]
pub(super) enum CallError {
    /// The API server refused, or could not be reached.
    Failed(kube::Error),
    /// There was no answer in time.
    NoAnswer,
}

impl CallError {
    /// The status code of the API server's answer, if there was one.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Failed(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => f.write_str(&explain(error)),
            Self::NoAnswer => {
                let seconds = CALL_TIMEOUT.as_secs();
                write!(f, "no answer from the API server within {seconds} s")
            }
        }
    }
}

/// Requests that together may take [`CALL_TIMEOUT`].
pub(super) async fn call<T>(
    requests: impl Future<Output = kube::Result<T>>,
) -> Result<T, CallError> {
    match timeout(CALL_TIMEOUT, requests).await {
        Ok(answer) => answer.map_err(CallError::Failed),
        Err(_) => Err(CallError::NoAnswer),
    }
}

/// Patches an object, or its `subresource`, and creates it first if it is not there.
pub(super) async fn patch_or_create<K>(
    api: &Api<K>,
    name: &str,
    patch: &Value,
    subresource: Option<&str>,
    create: impl Fn() -> K,
) -> Result<K, CallError>
where
    K: Resource + Clone + Debug + Serialize + DeserializeOwned,
{
    let params = PatchParams::default();
    let write = async || {
        let patch = Patch::Merge(patch);
        match subresource {
            Some(subresource) => {
                api.patch_subresource(subresource, name, &params, &patch)
                    .await
            }
            None => api.patch(name, &params, &patch).await,
        }
    };
    call(async {
        match write().await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                api.create(&PostParams::default(), &create()).await?;
                write().await
            }
            other => other,
        }
    })
    .await
}

/// Deletes an object of ours. Waits for an API server that is away, and not for rights
/// that are gone: the object goes with those.
pub(super) async fn delete<K>(api: &Api<K>, name: &str, object: &str)
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let (end, params) = (Instant::now() + DELETION_LIMIT, DeleteParams::default());
    while let Err(error) = call(api.delete(name, &params)).await {
        match error.code() {
            Some(404) => return,
            // It is overloaded, or starts.
            Some(429 | 500..) if Instant::now() < end => sleep(RETRY_PAUSE).await,
            Some(_) => {
                info!(object, "goes with Highwire or its Node: {error}");
                return;
            }
            None if Instant::now() >= end => {
                warn!(
                    object,
                    "could not be deleted; it goes with the Node: {error}"
                );
                return;
            }
            None => sleep(RETRY_PAUSE).await,
        }
    }
}

/// The metadata of an object that the garbage collector deletes with the Node.
pub(super) fn owned_by_node(name: &str, node: &str, uid: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        owner_references: Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node.to_owned(),
            uid: uid.to_owned(),
            ..OwnerReference::default()
        }]),
        ..ObjectMeta::default()
    }
}
