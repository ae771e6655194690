//! EndpointSlices written by hand: an agent forwards to what they say, whether it is there or
//! not.

use anyhow::{Context, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use highwire_e2e::Scope;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::control_path::Crowd;

/// Requests at a time.
const AT_A_TIME: usize = 16;

/// One for each Service.
#[derive(Clone)]
pub(crate) struct Slices {
    api: Api<EndpointSlice>,
    crowd: Crowd,
}

impl Slices {
    /// Those of such Services; none is created yet.
    pub(crate) fn of(scope: &Scope, crowd: Crowd) -> Self {
        let api = Api::namespaced(scope.cluster().client(), scope.namespace());
        Self { api, crowd }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.crowd.services
    }

    /// Creates them, with so many endpoints each.
    pub(crate) async fn create(&self, endpoints: usize) -> Result<()> {
        let all = (0..self.count()).map(|index| async move {
            let object = serde_json::from_value(self.object(index, endpoints))?;
            let created = self.api.create(&PostParams::default(), &object).await;
            created.map(drop).context("create an EndpointSlice")
        });
        stream::iter(all)
            .buffer_unordered(AT_A_TIME)
            .try_collect()
            .await
    }

    /// Gives all of them so many endpoints.
    pub(crate) async fn set_all(&self, endpoints: usize) -> Result<()> {
        let all = (0..self.count()).map(|index| self.set(index, endpoints));
        stream::iter(all)
            .buffer_unordered(AT_A_TIME)
            .try_collect()
            .await
    }

    /// Gives one of them so many endpoints: those that it had, and more or fewer.
    pub(crate) async fn set(&self, index: usize, endpoints: usize) -> Result<()> {
        let patch = json!({ "endpoints": Self::endpoints(index, endpoints) });
        self.patch(index, patch).await
    }

    /// Writes to one of them what no client depends on.
    pub(crate) async fn annotate(&self, index: usize, value: &str) -> Result<()> {
        let patch = json!({ "metadata": { "annotations": { "highwire.dev/bench": value } } });
        self.patch(index, patch).await
    }

    async fn patch(&self, index: usize, patch: Value) -> Result<()> {
        let (name, parameters) = (self.crowd.name(index), PatchParams::default());
        let patched = self
            .api
            .patch(&name, &parameters, &Patch::Merge(patch))
            .await;
        patched
            .map(drop)
            .with_context(|| format!("patch EndpointSlice {name}"))
    }

    fn object(&self, index: usize, endpoints: usize) -> Value {
        let name = self.crowd.name(index);
        json!({
            "metadata": {
                "name": name,
                "labels": {
                    "kubernetes.io/service-name": name,
                    "endpointslice.kubernetes.io/managed-by": "bench.highwire.dev",
                },
            },
            "addressType": "IPv4",
            "ports": [{ "name": self.crowd.port_name(index), "protocol": self.crowd.protocol,
                        "port": 8080 }],
            "endpoints": Self::endpoints(index, endpoints),
        })
    }

    /// Each Service has other addresses, up to 100 of them: 10.128.0.0 and above.
    fn endpoints(index: usize, endpoints: usize) -> Vec<Value> {
        let ready = json!({ "ready": true, "serving": true, "terminating": false });
        let address = |number: usize| {
            let host = index * 100 + number;
            let (high, middle, low) = (128 + host / 60_000, host / 240 % 250, 1 + host % 240);
            format!("10.{high}.{middle}.{low}")
        };
        let endpoint = |number| json!({ "addresses": [address(number)], "conditions": ready });
        (0..endpoints).map(endpoint).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_services_have_the_same_endpoint() {
        let all: Vec<Value> = (0..2000)
            .flat_map(|index| Slices::endpoints(index, 10))
            .collect();
        let addresses: BTreeSet<String> = all
            .iter()
            .map(|endpoint| endpoint["addresses"][0].to_string())
            .collect();
        assert_eq!(addresses.len(), all.len());
    }
}
