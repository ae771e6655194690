//! The endpoints of one Service, kept up to date from its EndpointSlices.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::runtime::watcher::Event;

use crate::mirror::Mirror;

/// By port name, who serves there.
type Serving = BTreeMap<String, BTreeSet<SocketAddr>>;

/// The UDP endpoints of one Service that serve, of both families.
///
/// One that terminates serves until its Pod says otherwise. That, and not
/// readiness, is kube-proxy's own rule for UDP flows (pkg/proxy/conntrack/cleanup.go
/// since Kubernetes 1.32): a flow is not torn off because no new ones are wanted.
#[derive(Debug, Default)]
pub struct EndpointIndex(Mirror<Serving>);

impl EndpointIndex {
    /// Who serves the port of that name; `None` until the first list is complete.
    #[must_use]
    pub fn serving(&self, port: &str) -> Option<BTreeSet<SocketAddr>> {
        let slices = self.0.known()?.values();
        Some(
            slices
                .filter_map(|slice| slice.get(port))
                .flatten()
                .copied()
                .collect(),
        )
    }

    /// Takes in one watch event. Says whether anything changed.
    pub fn absorb(&mut self, event: Event<EndpointSlice>) -> bool {
        self.0.absorb(event, |slice| Some(serving(slice)))
    }
}

fn serving(slice: &EndpointSlice) -> Serving {
    let mut serving = Serving::new();
    let udp = slice
        .ports
        .iter()
        .flatten()
        .filter(|port| port.protocol.as_deref() == Some("UDP"));
    for port in udp {
        let Some(number) = port.port.and_then(|number| u16::try_from(number).ok()) else {
            continue;
        };
        let addresses = slice.endpoints.iter().filter(|e| serves(e)).flat_map(|e| {
            // The API server lets none of another type than the slice's in, and
            // names (type FQDN) are nothing that kube-proxy sends to.
            e.addresses
                .iter()
                .filter_map(|ip| ip.parse::<IpAddr>().ok())
        });
        serving
            .entry(port.name.clone().unwrap_or_default())
            .or_default()
            .extend(addresses.map(|ip| SocketAddr::new(ip, number)));
    }
    serving
}

/// An absent condition means yes, as for kube-proxy (pkg/proxy/endpointslicecache.go).
fn serves(endpoint: &Endpoint) -> bool {
    let conditions = endpoint.conditions.as_ref();
    conditions
        .and_then(|conditions| conditions.serving)
        .unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn slice(name: &str, change: impl FnOnce(&mut Value)) -> EndpointSlice {
        let mut object = json!({
            "metadata": {"name": name, "namespace": "ns"},
            "addressType": "IPv4",
            "ports": [{"name": "dns", "protocol": "UDP", "port": 5353},
                      {"name": "dns-tcp", "protocol": "TCP", "port": 5353}],
            "endpoints": [{"addresses": ["10.244.1.7"],
                           "conditions": {"ready": true, "serving": true}}],
        });
        change(&mut object);
        serde_json::from_value(object).unwrap()
    }

    fn synced(slices: Vec<EndpointSlice>) -> EndpointIndex {
        let mut index = EndpointIndex::default();
        index.absorb(Event::Init);
        for slice in slices {
            assert!(!index.absorb(Event::InitApply(slice)));
        }
        assert_eq!(index.serving("dns"), None, "a part of a list tells nothing");
        assert!(index.absorb(Event::InitDone));
        index
    }

    fn texts(index: &EndpointIndex, port: &str) -> Vec<String> {
        let serving = index.serving(port).unwrap();
        serving.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn all_slices_of_both_families_count() {
        let six = slice("web-6", |s| {
            s["addressType"] = json!("IPv6");
            s["endpoints"][0]["addresses"] = json!(["fd00:244:1::7"]);
        });
        let index = synced(vec![slice("web-4", |_| {}), six]);
        assert_eq!(
            texts(&index, "dns"),
            ["10.244.1.7:5353", "[fd00:244:1::7]:5353"]
        );
        assert!(texts(&index, "dns-tcp").is_empty(), "TCP is not ours");
        assert!(texts(&index, "other").is_empty());
    }

    #[test]
    fn serving_decides_and_not_readiness() {
        for (conditions, counts) in [
            (json!({"ready": true, "serving": true}), true),
            (
                json!({"ready": false, "serving": true, "terminating": true}),
                true,
            ),
            (
                json!({"ready": false, "serving": false, "terminating": true}),
                false,
            ),
            (json!({"ready": true}), true),
            (json!({}), true),
            (json!(null), true),
        ] {
            let one = slice("web", |s| {
                s["endpoints"][0]["conditions"] = conditions.clone()
            });
            let found = !texts(&synced(vec![one]), "dns").is_empty();
            assert_eq!(found, counts, "{conditions}");
        }
    }

    #[test]
    fn events_are_followed_and_only_changes_are_told() {
        let mut index = synced(vec![slice("web", |_| {})]);
        let labelled = slice("web", |s| s["metadata"]["labels"] = json!({"a": "b"}));
        assert!(!index.absorb(Event::Apply(labelled)));
        let moved = slice("web", |s| {
            s["endpoints"][0]["addresses"] = json!(["10.244.2.8"])
        });
        assert!(index.absorb(Event::Apply(moved.clone())));
        assert_eq!(texts(&index, "dns"), ["10.244.2.8:5353"]);
        assert!(index.absorb(Event::Delete(moved)));
        assert!(texts(&index, "dns").is_empty());
    }
}
