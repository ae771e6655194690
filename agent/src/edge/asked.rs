//! LoadBalancer → fact: what a Service asks of the box.

use std::sync::Arc;

use highwire_api::external::{EDGE_READY, LoadBalancer, LoadBalancerSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::core::DeserializeGuard;
use tracing::warn;

/// A LoadBalancer of this box.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    /// What its Service asks of the box.
    pub(super) spec: Arc<LoadBalancerSpec>,
    /// The generation of that.
    pub(super) generation: Option<i64>,
    /// What it says of the box now.
    pub(super) stated: Option<Condition>,
}

impl Asked {
    /// `None` if it is of another box, or cannot be read.
    pub(super) fn of(object: &DeserializeGuard<LoadBalancer>, name: &str) -> Option<Self> {
        let object = match &object.0 {
            Ok(object) => object,
            Err(invalid) => {
                warn!(
                    "a LoadBalancer cannot be read, so it does not count: {}",
                    invalid.error
                );
                return None;
            }
        };
        let conditions = object.status.iter().flat_map(|status| &status.conditions);
        let mut conditions = conditions.filter(|it| it.type_ == EDGE_READY);
        (object.spec.external_load_balancer == name).then(|| Self {
            spec: Arc::new(object.spec.clone()),
            generation: object.metadata.generation,
            stated: conditions.next().cloned(),
        })
    }
}
