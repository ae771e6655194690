use highwire_api::{ResourceVersion, node::ProxyMode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;

fn object<K: DeserializeOwned>(value: &Value) -> Box<K> {
    Box::new(serde_json::from_value(value.clone()).unwrap())
}

fn pod() -> Value {
    json!({
        "metadata": {"name": "web-1", "namespace": "ns", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80}]}]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn node() -> Value {
    json!({
        "metadata": {"name": "n1", "uid": "u", "labels": {"highwire.dev/enabled": "true"}},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.11"}],
                   "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn service(version: u64) -> Value {
    json!({
        "metadata": {"name": "web", "namespace": "ns", "resourceVersion": version.to_string()},
        "spec": {"type": "LoadBalancer", "clusterIPs": ["10.96.0.10"], "ports": [{"port": 80}]},
    })
}

/// Sources that have brought everything; the last news of each is what the functions above
/// say.
fn sources() -> Sources {
    let mut sources = Sources::new("n1".to_owned(), Policy::default(), Duration::ZERO);
    for news in [
        News::Service(Box::new(Event::Init)),
        News::Pod(Box::new(Event::Init)),
        News::Service(Box::new(Event::InitApply(*object(&service(5))))),
        News::Pod(Box::new(Event::InitApply(*object(&pod())))),
    ] {
        assert!(!sources.absorb(news), "a part of a list is no fact");
    }
    for news in [
        News::Service(Box::new(Event::InitDone)),
        News::Pod(Box::new(Event::InitDone)),
        News::Node(Some(object(&node()))),
        News::Addresses(Vec::new()),
    ] {
        assert!(sources.absorb(news));
        assert!(
            sources.facts(&BTreeMap::new()).is_none(),
            "not all is known"
        );
    }
    assert!(sources.absorb(News::Proxy(ServiceProxy::default())));
    assert!(sources.facts(&BTreeMap::new()).is_some());
    sources
}

#[test]
fn a_heartbeat_changes_no_fact() {
    let mut sources = sources();
    let (mut pod, mut node, mut service) = (pod(), node(), service(6));
    pod["status"]["conditions"][0]["lastProbeTime"] = json!("2026-01-02T03:04:05Z");
    pod["status"]["phase"] = json!("Running");
    node["status"]["conditions"][0]["lastHeartbeatTime"] = json!("2026-01-02T03:04:05Z");
    service["metadata"]["annotations"] = json!({"kubectl.example/last": "applied"});
    for news in [
        News::Pod(Box::new(Event::Apply(*object(&pod)))),
        News::Node(Some(object(&node))),
        News::Service(Box::new(Event::Apply(*object(&service)))),
        News::Addresses(Vec::new()),
        News::Proxy(ServiceProxy::default()),
    ] {
        let text = format!("{news:?}");
        assert!(!sources.absorb(news), "{text}");
    }
    let observed = sources.services().observed();
    assert_eq!(observed, ResourceVersion(6), "but it was read");
}

#[test]
fn endpoints_are_awaited_and_kept_only_where_no_kube_proxy_is() {
    let mut sources = sources();
    let left_out = BTreeMap::new();
    assert!(sources.facts(&left_out).unwrap().slices.is_none());
    let slice = json!({
        "metadata": {"name": "web-1", "namespace": "ns",
                     "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"port": 80}],
        "endpoints": [{"addresses": ["10.244.1.7"]}],
    });
    let proxy = |mode| {
        News::Proxy(ServiceProxy {
            mode: Some(mode),
            failing: None,
        })
    };
    let slices = |event| News::EndpointSlice(Box::new(event));
    for _ in 0..2 {
        assert!(sources.absorb(proxy(ProxyMode::Absent)));
        sources.absorb(slices(Event::Init));
        sources.absorb(slices(Event::InitApply(*object(&slice))));
        assert!(sources.facts(&left_out).is_none(), "not all is known");
        assert!(sources.absorb(slices(Event::InitDone)));
        assert_eq!(sources.facts(&left_out).unwrap().slices.unwrap().len(), 1);
        assert!(!sources.absorb(slices(Event::Apply(*object(&slice)))));
        assert!(sources.absorb(proxy(ProxyMode::Nftables)));
        assert!(sources.facts(&left_out).unwrap().slices.is_none());
    }
}

#[test]
fn what_a_decision_depends_on_changes_a_fact() {
    let mut sources = sources();
    let (mut pod, mut node, mut service) = (pod(), node(), service(6));
    pod["status"]["conditions"][0]["status"] = json!("False");
    node["metadata"]["labels"]["pool"] = json!("edge");
    // Who holds a port is in the status.
    service["status"] = json!({"loadBalancer": {"ingress": [
        {"ip": "192.0.2.11", "ipMode": "Proxy", "ports": [{"port": 80, "protocol": "TCP"}]}]}});
    service["spec"]["loadBalancerClass"] = json!("highwire.dev/node");
    for news in [
        News::Pod(Box::new(Event::Apply(*object(&pod)))),
        News::Node(Some(object(&node))),
        News::Service(Box::new(Event::Apply(*object(&service)))),
        News::Proxy(ServiceProxy {
            mode: Some(ProxyMode::Ipvs),
            failing: None,
        }),
        News::Node(None),
    ] {
        let text = format!("{news:?}");
        assert!(sources.absorb(news), "{text}");
    }
    let left_out = BTreeMap::new();
    let facts = sources.facts(&left_out).unwrap();
    assert!(!facts.node.enabled, "a deleted Node is opted out");
}
