//! What the API server has of a test's own: Services, EndpointSlices, Pods; a line or a few
//! for each.

use std::fmt::Debug;

use anyhow::Result;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::api::{Api, ListParams};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Of each kind.
const MOST_OBJECTS: u32 = 12;
/// Of each slice.
const MOST_ENDPOINTS: usize = 12;

/// The lines about that namespace.
pub(super) async fn lines(client: &Client, namespace: &str) -> Result<Vec<String>> {
    let services = some::<Service>(client, namespace).await?;
    let slices = some::<EndpointSlice>(client, namespace).await?;
    let pods = some::<Pod>(client, namespace).await?;
    let lines = services.iter().map(of_service);
    let lines = lines.chain(slices.iter().flat_map(of_slice));
    Ok(lines.chain(pods.iter().map(of_pod)).collect())
}

async fn some<K>(client: &Client, namespace: &str) -> Result<Vec<K>>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    K: Clone + Debug + DeserializeOwned,
{
    let objects: Api<K> = Api::namespaced(client.clone(), namespace);
    let some = ListParams::default().limit(MOST_OBJECTS);
    Ok(objects.list(&some).await?.items)
}

fn of_service(service: &Service) -> String {
    let spec = service.spec.as_ref();
    let ports = spec.and_then(|spec| spec.ports.as_ref());
    let ports = ports.into_iter().flatten().map(|port| {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        format!("{}/{protocol}", port.port)
    });
    let policy = spec.and_then(|spec| spec.external_traffic_policy.as_deref());
    let distribution = spec.and_then(|spec| spec.traffic_distribution.as_deref());
    let status = service.status.as_ref();
    let ingress = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    let ingress = ingress.into_iter().flatten().filter_map(|it| it.ip.clone());
    format!(
        "Service {}: {}, policy {}, distribution {}, ingress [{}]",
        service.name_any(),
        ports.collect::<Vec<_>>().join(" "),
        policy.unwrap_or("-"),
        distribution.unwrap_or("-"),
        ingress.collect::<Vec<_>>().join(" "),
    )
}

fn of_slice(slice: &EndpointSlice) -> Vec<String> {
    let ports = slice.ports.iter().flatten().map(|port| {
        let number = port.port.map_or("?".to_owned(), |port| port.to_string());
        format!("{number}/{}", port.protocol.as_deref().unwrap_or("TCP"))
    });
    let head = format!(
        "EndpointSlice {}: {}, ports {}, generation {}",
        slice.name_any(),
        slice.address_type,
        ports.collect::<Vec<_>>().join(" "),
        slice.metadata.generation.unwrap_or_default(),
    );
    let endpoints = slice.endpoints.iter();
    let mut lines = vec![head];
    lines.extend(endpoints.take(MOST_ENDPOINTS).map(of_endpoint));
    if slice.endpoints.len() > MOST_ENDPOINTS {
        let more = slice.endpoints.len() - MOST_ENDPOINTS;
        lines.push(format!("  … and {more} more"));
    }
    lines
}

fn of_endpoint(endpoint: &Endpoint) -> String {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let states = [
        ("ready", conditions.ready),
        ("serving", conditions.serving),
        ("terminating", conditions.terminating),
    ];
    let states = states.iter().filter(|(_, is_so)| *is_so == Some(true));
    let states: Vec<&str> = states.map(|(state, _)| *state).collect();
    let pod = endpoint.target_ref.as_ref().and_then(|it| it.name.clone());
    let hints = endpoint.hints.as_ref().map_or(Value::Null, |it| json!(it));
    format!(
        "  {} {} on {}: [{}], zone {}, hints {hints}",
        endpoint.addresses.join(" "),
        pod.as_deref().unwrap_or("-"),
        endpoint.node_name.as_deref().unwrap_or("-"),
        states.join(" "),
        endpoint.zone.as_deref().unwrap_or("-"),
    )
}

fn of_pod(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    let ready = status.and_then(|status| {
        let conditions = status.conditions.as_ref()?;
        let ready = conditions.iter().find(|it| it.type_ == "Ready")?;
        Some(ready.status.as_str())
    });
    let address = status.and_then(|status| status.pod_ip.as_deref());
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let is_leaving = pod.metadata.deletion_timestamp.is_some();
    format!(
        "Pod {} on {}: {}, ready {}{}",
        pod.name_any(),
        node.unwrap_or("-"),
        address.unwrap_or("-"),
        ready.unwrap_or("-"),
        if is_leaving { ", terminating" } else { "" },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_says_who_is_ready_and_for_whom() {
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": { "name": "web-x", "generation": 3 },
            "addressType": "IPv4",
            "ports": [{ "port": 8080, "protocol": "TCP" }],
            "endpoints": [
                { "addresses": ["10.244.1.4"], "nodeName": "n1", "zone": "east",
                  "conditions": { "ready": true, "serving": true, "terminating": false },
                  "hints": { "forZones": [{ "name": "east" }] },
                  "targetRef": { "kind": "Pod", "name": "web-1" } },
                { "addresses": ["10.244.2.4"], "conditions": { "ready": false } },
            ],
        }))
        .unwrap();
        let wanted = [
            "EndpointSlice web-x: IPv4, ports 8080/TCP, generation 3",
            r#"  10.244.1.4 web-1 on n1: [ready serving], zone east, hints {"forZones":[{"name":"east"}]}"#,
            "  10.244.2.4 - on -: [], zone -, hints null",
        ];
        assert_eq!(of_slice(&slice), wanted);
    }
}
