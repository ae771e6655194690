//! The agent's Lease: renewed by one request, as long as no other program writes it.

use std::time::Duration;

use highwire_api::{
    ResourceVersion,
    names::{AGENT_ABSENCE, OBSERVED_VERSION_ANNOTATION, REPORT_VERSION_ANNOTATION, agent_lease},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tracing::warn;

use super::objects::{CallError, call, delete, owned_by_node, patch_or_create};

/// What a Lease says of the Services that the agent has observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Observed {
    /// Every Service event up to this version is in the kernel …
    pub(super) version: ResourceVersion,
    /// … and what the node refuses of them is in this version of the report.
    pub(super) report: String,
}

/// The Lease of one node's agent.
#[derive(Debug)]
pub(super) struct AgentLease {
    api: Api<Lease>,
    node: String,
    name: String,
    /// As the API server last answered it, to be replaced by one request.
    last: Option<Lease>,
}

impl AgentLease {
    /// The Lease in this namespace, of the node of this name.
    pub(super) fn new(client: &Client, namespace: &str, node: &str) -> Self {
        Self {
            api: Api::namespaced(client.clone(), namespace),
            node: node.to_owned(),
            name: agent_lease(node),
            last: None,
        }
    }

    /// Makes it good for `duration` from now, and carry the version that was observed.
    pub(super) async fn renew(
        &mut self,
        node_uid: &str,
        duration: Duration,
        observed: Option<Observed>,
    ) -> Result<(), CallError> {
        let last = self.last.take();
        let Self {
            api, node, name, ..
        } = &*self;
        if let Some(mut lease) = last {
            renew(&mut lease, node, duration, observed.clone());
            match call(api.replace(name, &PostParams::default(), &lease)).await {
                Ok(lease) => {
                    self.last = Some(lease);
                    return Ok(());
                }
                // Another program has written or deleted it: below, as at the start.
                Err(error) if matches!(error.code(), Some(404 | 409)) => {}
                Err(error) => return Err(error),
            }
        }
        let mut lease = Lease {
            metadata: owned_by_node(name, node, node_uid),
            ..Lease::default()
        };
        renew(&mut lease, node, duration, observed);
        let patch = json!({
            "metadata": {
                "annotations": lease.metadata.annotations,
                "ownerReferences": lease.metadata.owner_references,
            },
            "spec": lease.spec,
        });
        self.last = Some(patch_or_create(api, name, &patch, None, || lease.clone()).await?);
        Ok(())
    }

    /// Makes it good until another agent is there, however long the pull of its image
    /// takes.
    pub(super) async fn extend(&self) {
        let patch = Patch::Merge(json!({ "spec": {
            "leaseDurationSeconds": AGENT_ABSENCE.as_secs(),
            "renewTime": MicroTime(Timestamp::now()),
        }}));
        let params = PatchParams::default();
        if let Err(error) = call(self.api.patch(&self.name, &params, &patch)).await {
            warn!("cannot leave a longer Lease: {error}");
        }
    }

    /// Deletes it.
    pub(super) async fn delete(&self) {
        delete(&self.api, &self.name, "Lease").await;
    }
}

/// Makes the Lease say that the agent of this node is alive. Without `observed`, it
/// keeps the version that it carries.
fn renew(lease: &mut Lease, node: &str, duration: Duration, observed: Option<Observed>) {
    if let Some(Observed { version, report }) = observed {
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.insert(OBSERVED_VERSION_ANNOTATION.to_owned(), version.to_string());
        annotations.insert(REPORT_VERSION_ANNOTATION.to_owned(), report);
    }
    // Written by us only, and needless to send.
    lease.metadata.managed_fields = None;
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(node.to_owned()),
        lease_duration_seconds: i32::try_from(duration.as_secs()).ok(),
        renew_time: Some(MicroTime(Timestamp::now())),
        ..LeaseSpec::default()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewal_changes_what_it_must_and_keeps_a_version_it_does_not_know() {
        let annotation = |lease: &Lease| {
            let annotations = lease.metadata.annotations.as_ref()?;
            let observed = annotations.get(OBSERVED_VERSION_ANNOTATION)?;
            Some(format!(
                "{observed} {}",
                annotations[REPORT_VERSION_ANNOTATION]
            ))
        };
        let observed = Observed {
            version: ResourceVersion(7),
            report: "9".to_owned(),
        };
        let mut lease = Lease::default();
        let mut renewed = |seconds, observed| {
            renew(&mut lease, "n1", Duration::from_secs(seconds), observed);
            lease.clone()
        };
        assert_eq!(annotation(&renewed(12, None)), None);
        renewed(12, Some(observed));
        let lease = renewed(30, None);
        assert_eq!(annotation(&lease).as_deref(), Some("7 9"));
        let spec = lease.spec.unwrap();
        assert_eq!(spec.holder_identity.as_deref(), Some("n1"));
        assert_eq!(spec.lease_duration_seconds, Some(30));
        assert!(spec.renew_time.is_some());
    }
}
