use serde_json::{Value, json};

use super::*;

fn slice(name: &str, change: impl FnOnce(&mut Value)) -> EndpointSlice {
    let mut object = json!({
        "metadata": {"name": name, "namespace": "ns",
                     "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "dns", "protocol": "UDP", "port": 5353},
                  {"name": "dns-tcp", "protocol": "TCP", "port": 5353}],
        "endpoints": [{"addresses": ["10.244.1.7"], "nodeName": "n1",
                       "conditions": {"ready": true, "serving": true}}],
    });
    change(&mut object);
    serde_json::from_value(object).unwrap()
}

fn web() -> ServiceKey {
    ServiceKey {
        namespace: "ns".into(),
        name: "web".into(),
    }
}

/// What an event changes of the Service `web`.
fn absorb(index: &mut EndpointIndex, event: Event<EndpointSlice>) -> bool {
    index.absorb(event, &BTreeSet::from([web()]))
}

fn synced(slices: Vec<EndpointSlice>) -> EndpointIndex {
    let mut index = EndpointIndex::new("n1".into());
    absorb(&mut index, Event::Init);
    for slice in slices {
        assert!(!absorb(&mut index, Event::InitApply(slice)));
    }
    assert_eq!(
        index.of(&BTreeSet::from([web()])),
        None,
        "a part of a list tells nothing"
    );
    absorb(&mut index, Event::InitDone);
    index
}

fn found(index: &EndpointIndex, port: &str) -> Endpoints {
    let port = ServicePortName {
        service: web(),
        port: port.into(),
    };
    let mut all = index.of(&BTreeSet::from([web()])).unwrap();
    all.remove(&port).unwrap_or_default()
}

fn texts(index: &EndpointIndex, port: &str) -> Vec<String> {
    let all = found(index, port).all;
    all.iter().map(ToString::to_string).collect()
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
fn those_of_this_node_are_known_apart() {
    let both = slice("web", |s| {
        let mut other = s["endpoints"][0].clone();
        other["nodeName"] = json!("n2");
        other["addresses"] = json!(["10.244.2.8"]);
        let endpoints = s["endpoints"].as_array_mut().unwrap();
        endpoints.push(other);
    });
    let endpoints = found(&synced(vec![both]), "dns");
    assert_eq!(endpoints.all.len(), 2);
    assert_eq!(endpoints.here, ["10.244.1.7:5353".parse().unwrap()].into());
}

#[test]
fn what_serves_or_is_ready_counts() {
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
        // publishNotReadyAddresses: kube-proxy sends clients there.
        (json!({"ready": true, "serving": false}), true),
        (json!({"ready": false, "serving": false}), false),
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
    let labelled = slice("web", |s| s["metadata"]["labels"]["a"] = json!("b"));
    assert!(!absorb(&mut index, Event::Apply(labelled)));
    let moved = slice("web", |s| {
        s["endpoints"][0]["addresses"] = json!(["10.244.2.8"])
    });
    assert!(absorb(&mut index, Event::Apply(moved.clone())));
    assert_eq!(texts(&index, "dns"), ["10.244.2.8:5353"]);
    assert!(absorb(&mut index, Event::Delete(moved)));
    assert!(texts(&index, "dns").is_empty());
}

#[test]
fn other_services_are_known_but_cause_no_look() {
    let of = |service: &str| {
        slice("other-1", |s| {
            s["metadata"]["labels"]["kubernetes.io/service-name"] = json!(service);
        })
    };
    let mut index = synced(vec![]);
    assert!(!absorb(&mut index, Event::Apply(of("other"))));
    assert!(texts(&index, "dns").is_empty());
    assert!(
        absorb(&mut index, Event::Apply(of("web"))),
        "a slice that changes hands"
    );
    assert!(absorb(&mut index, Event::Apply(of("other"))), "and back");
    let other = ServiceKey {
        namespace: "ns".into(),
        name: "other".into(),
    };
    let known = index.of(&BTreeSet::from([other])).unwrap();
    assert_eq!(known.len(), 1, "in case it is served one day");
}

#[test]
fn slices_without_udp_take_no_memory() {
    let tcp = slice("web", |s| {
        s["ports"] = json!([{"protocol": "TCP", "port": 80}])
    });
    let index = synced(vec![tcp]);
    assert!(index.slices.known().unwrap().is_empty());
}
