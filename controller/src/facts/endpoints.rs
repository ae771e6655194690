//! EndpointSlice → fact: on which nodes each Service has ready endpoints.

use std::collections::{BTreeMap, BTreeSet};

use highwire_api::{Family, ServiceKey, names::SERVICE_NAME_LABEL};
use highwire_runtime::mirror::Mirror;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::Event;

/// What matters of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceFacts {
    /// The Service it belongs to, if any.
    pub service: Option<ServiceKey>,
    /// The family of its addresses; `None` if they are names, which kube-proxy ignores.
    pub family: Option<Family>,
    /// The nodes that have a ready endpoint in it.
    pub ready_nodes: BTreeSet<String>,
}

impl SliceFacts {
    /// Reads an EndpointSlice object. An endpoint that does not say whether it is ready
    /// is (discovery/v1 `EndpointConditions`). One that is terminating is not, though
    /// kube-proxy still sends it traffic while there is no other: so a node leaves the
    /// ingress when its health check node port begins to fail.
    pub fn of(slice: &EndpointSlice) -> Self {
        let labels = slice.metadata.labels.as_ref();
        let service = labels.and_then(|labels| labels.get(SERVICE_NAME_LABEL));
        let ready = slice.endpoints.iter().filter(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            conditions.and_then(|conditions| conditions.ready) != Some(false)
        });
        Self {
            service: service.map(|name| ServiceKey {
                namespace: slice
                    .metadata
                    .namespace
                    .as_deref()
                    .unwrap_or_default()
                    .into(),
                name: name.as_str().into(),
            }),
            family: match slice.address_type.as_str() {
                "IPv4" => Some(Family::V4),
                "IPv6" => Some(Family::V6),
                _ => None,
            },
            ready_nodes: ready.filter_map(|end| end.node_name.clone()).collect(),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Endpoints {
    slices: Mirror<SliceFacts>,
    of_service: BTreeMap<ServiceKey, BTreeSet<String>>,
}

impl Endpoints {
    /// Takes in an event. Returns the Services whose nodes may be others now.
    pub(super) fn apply(&mut self, event: Event<EndpointSlice>) -> BTreeSet<ServiceKey> {
        let mut services = BTreeSet::new();
        for change in self
            .slices
            .changes(event, |slice| Some(SliceFacts::of(slice)))
        {
            if let Some(service) = change.before.and_then(|before| before.service) {
                let slices = self.of_service.entry(service.clone()).or_default();
                slices.remove(&change.key);
                if slices.is_empty() {
                    self.of_service.remove(&service);
                }
                services.insert(service);
            }
            let now = self.slices.get(&change.key);
            if let Some(service) = now.and_then(|now| now.service.clone()) {
                let slices = self.of_service.entry(service.clone()).or_default();
                slices.insert(change.key);
                services.insert(service);
            }
        }
        services
    }

    /// Whether the first list is complete.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.slices.known().is_some()
    }

    /// The nodes on which the Service has a ready endpoint of that family.
    #[must_use]
    pub fn ready_nodes(&self, service: &ServiceKey, family: Family) -> BTreeSet<String> {
        let slices = self.of_service.get(service).into_iter().flatten();
        slices
            .filter_map(|slice| self.slices.get(slice))
            .filter(|slice| slice.family == Some(family))
            .flat_map(|slice| slice.ready_nodes.iter().cloned())
            .collect()
    }

    /// Whether the Service has a ready endpoint of that family on the node.
    #[must_use]
    pub fn is_ready(&self, service: &ServiceKey, node: &str, family: Family) -> bool {
        let slices = self.of_service.get(service).into_iter().flatten();
        slices
            .filter_map(|slice| self.slices.get(slice))
            .any(|slice| slice.family == Some(family) && slice.ready_nodes.contains(node))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn key(name: &str) -> ServiceKey {
        format!("shop/{name}").parse().unwrap()
    }

    fn object(slice: &Value) -> EndpointSlice {
        serde_json::from_value(slice.clone()).unwrap()
    }

    fn set(endpoints: &mut Endpoints, slice: &Value) -> BTreeSet<ServiceKey> {
        endpoints.apply(Event::Apply(object(slice)))
    }

    fn slice(name: &str, service: &str, ends: &Value) -> Value {
        json!({
            "metadata": {"namespace": "shop", "name": name,
                         "labels": {SERVICE_NAME_LABEL: service}},
            "addressType": "IPv4", "endpoints": ends,
        })
    }

    fn end(node: &str, conditions: &Value) -> Value {
        json!({"addresses": ["10.244.1.2"], "nodeName": node, "conditions": conditions})
    }

    #[test]
    fn an_endpoint_counts_as_kube_proxys_health_check_counts_it() {
        for (conditions, ready) in [
            (json!({}), true),
            (json!({"ready": true}), true),
            (json!({"ready": false, "serving": false}), false),
            (
                json!({"ready": false, "serving": true, "terminating": true}),
                false,
            ),
        ] {
            let mut endpoints = Endpoints::default();
            set(
                &mut endpoints,
                &slice("a", "web", &json!([end("n1", &conditions)])),
            );
            assert_eq!(
                endpoints.is_ready(&key("web"), "n1", Family::V4),
                ready,
                "{conditions}"
            );
            assert!(!endpoints.is_ready(&key("web"), "n2", Family::V4));
            assert!(!endpoints.is_ready(&key("api"), "n1", Family::V4));
        }
    }

    #[test]
    fn each_family_has_endpoints_of_its_own() {
        let (mut endpoints, ready) = (Endpoints::default(), json!({}));
        let mut six = slice("six", "web", &json!([end("n1", &ready)]));
        six["addressType"] = json!("IPv6");
        let mut names = slice("names", "web", &json!([end("n2", &ready)]));
        names["addressType"] = json!("FQDN");
        set(&mut endpoints, &six);
        set(&mut endpoints, &names);
        let ready = |node, family| endpoints.is_ready(&key("web"), node, family);
        assert!(ready("n1", Family::V6) && !ready("n1", Family::V4));
        assert!(Family::ALL.iter().all(|family| !ready("n2", *family)));
    }

    #[test]
    fn all_slices_of_a_service_count_until_they_go() {
        let (mut endpoints, ready) = (Endpoints::default(), json!({}));
        let both = BTreeSet::from([key("web")]);
        let (a, b) = (
            slice("a", "web", &json!([end("n1", &ready)])),
            slice("b", "web", &json!([end("n2", &ready)])),
        );
        assert_eq!(set(&mut endpoints, &a), both);
        assert_eq!(set(&mut endpoints, &b), both);
        assert!(set(&mut endpoints, &b).is_empty(), "nothing has changed");
        assert!(
            endpoints.is_ready(&key("web"), "n1", Family::V4)
                && endpoints.is_ready(&key("web"), "n2", Family::V4)
        );

        assert_eq!(endpoints.apply(Event::Delete(object(&b))), both);
        assert!(
            endpoints.is_ready(&key("web"), "n1", Family::V4)
                && !endpoints.is_ready(&key("web"), "n2", Family::V4)
        );

        let moved = slice("a", "api", &json!([end("n1", &ready)]));
        assert_eq!(
            set(&mut endpoints, &moved),
            BTreeSet::from([key("api"), key("web")])
        );
        assert!(!endpoints.is_ready(&key("web"), "n1", Family::V4));
        assert_eq!(
            endpoints.of_service.len(),
            1,
            "nothing is kept of the Service it left"
        );
    }
}
