//! Objects as the API server would send them.
//!
//! Addresses: nodes 192.0.2.0/24 and 2001:db8:1::/64, their ExternalIPs 203.0.113.0/24
//! and 2001:db8:2::/64, ClusterIPs 10.96.0.0/16 and fd00:96::/112.

use highwire_api::ServiceKey;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The key of a Service in the namespace of all tests.
pub fn key(name: &str) -> ServiceKey {
    format!("shop/{name}").parse().unwrap()
}

/// An object of the API.
pub fn object<T: DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

/// A Service for port 80/TCP.
pub fn service(name: &str) -> Value {
    json!({
        "metadata": {
            "name": name, "namespace": "shop", "uid": format!("uid-{name}"),
            "creationTimestamp": "2026-01-02T03:04:05Z",
        },
        "spec": {
            "type": "LoadBalancer",
            "clusterIPs": ["10.96.0.10"],
            "ports": [{"port": 80}],
        },
    })
}

/// A Ready, opted-in Node `nI` with InternalIP 192.0.2.I.
pub fn node(number: u8) -> Value {
    json!({
        "metadata": {"name": format!("n{number}"), "labels": {"highwire.dev/enabled": "true"}},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": format!("192.0.2.{number}")},
                {"type": "InternalIP", "address": format!("2001:db8:1::{number}")},
                {"type": "Hostname", "address": format!("n{number}")},
            ],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

/// A Service's EndpointSlice with a ready endpoint on each of these nodes.
pub fn slice(service: &str, nodes: &[u8]) -> Value {
    let ends = nodes.iter().map(|number| {
        json!({"addresses": [format!("10.244.{number}.2")], "nodeName": format!("n{number}")})
    });
    json!({
        "metadata": {"name": format!("{service}-abcde"), "namespace": "shop",
                     "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": ends.collect::<Vec<_>>(),
    })
}

/// A ready agent's report.
pub fn report(number: u8, observed: u64) -> Value {
    json!({
        "metadata": {"name": format!("n{number}")},
        "spec": {},
        "status": {
            "observedResourceVersion": observed.to_string(),
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "Programmed", "message": "",
                "lastTransitionTime": "2026-01-02T03:04:05Z",
            }],
        },
    })
}

/// A Lease of that name, renewed at that time.
pub fn lease(name: &str, renewed: Timestamp, observed: Option<u64>) -> Value {
    let annotations = observed
        .map(|version| json!({"highwire.dev/observed-resource-version": version.to_string()}));
    json!({
        "metadata": {"name": name, "namespace": "highwire-system", "annotations": annotations},
        "spec": {"holderIdentity": "x", "leaseDurationSeconds": 12, "renewTime": renewed},
    })
}

/// `managedFields` of a Service whose ingress `manager` wrote.
pub fn managed_by(manager: &str) -> Value {
    json!([{
        "manager": manager, "operation": "Update", "subresource": "status",
        "apiVersion": "v1", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:status": {
            "f:loadBalancer": {"f:ingress": {}},
            "f:conditions": {
                "k:{\"type\":\"LoadBalancerPortsError\"}": {},
                "k:{\"type\":\"highwire.dev/Serving\"}": {},
            },
        }},
    }])
}
