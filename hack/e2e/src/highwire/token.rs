//! A token of a Pod, as its kubelet mounts it.

use anyhow::{Context as _, Result};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt as _};

/// Longer than any cluster lives.
const SECONDS: i64 = 7 * 24 * 3600;

/// A token of the Pod's ServiceAccount, bound to that Pod.
///
/// # Errors
/// If the Pod names no ServiceAccount, or the API server gives no token.
pub async fn of_pod(client: Client, pod: &Pod) -> Result<String> {
    let namespace = pod.namespace().context("the Pod has no namespace")?;
    let account = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.as_deref());
    let account = account.context("the Pod names no ServiceAccount")?;
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec!["https://kubernetes.default.svc".into()],
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
            }),
            expiration_seconds: Some(SECONDS),
        },
        ..TokenRequest::default()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(client, &namespace);
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .with_context(|| format!("token of ServiceAccount {namespace}/{account}"))?;
    Ok(answer.status.context("the API server gave no token")?.token)
}
