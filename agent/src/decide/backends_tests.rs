use highwire_api::{ClassPolicy, Interpretation, service::interpret};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::facts::endpoints::Kept;

fn spec(change: impl FnOnce(&mut Value)) -> ServiceSpec {
    let mut object = json!({
        "metadata": {"name": "web", "namespace": "ns"},
        "spec": {"type": "LoadBalancer", "clusterIPs": ["10.96.0.10", "fd00:96::10"],
                 "ports": [{"name": "http", "port": 80, "nodePort": 30080}]},
    });
    change(&mut object["spec"]);
    match interpret(
        &serde_json::from_value(object).unwrap(),
        ClassPolicy::DefaultAndOurs,
    ) {
        Interpretation::Serve(spec) => spec,
        other => panic!("{other:?}"),
    }
}

fn local(spec: &mut Value) {
    spec["externalTrafficPolicy"] = json!("Local");
}

/// A slice of port 8080, with endpoints of these addresses, each with what is said of it.
fn slice(endpoints: &[(&str, Value)]) -> Slice {
    slice_of(json!([{"name": "http", "port": 8080}]), endpoints)
}

fn slice_of(ports: Value, endpoints: &[(&str, Value)]) -> Slice {
    let endpoints = endpoints.iter().map(|(address, about)| {
        let mut endpoint = json!({"addresses": [address], "nodeName": "n2"});
        let about = about.as_object().unwrap().clone();
        endpoint.as_object_mut().unwrap().extend(about);
        endpoint
    });
    let object = json!({
        "metadata": {"name": "web-1", "namespace": "ns",
                     "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": endpoints.collect::<Vec<_>>(),
    });
    let object: EndpointSlice = serde_json::from_value(object).unwrap();
    Slice::of(&object, "n1", Kept::All).unwrap()
}

fn ready() -> Value {
    json!({"conditions": {"ready": true, "serving": true, "terminating": false}})
}

fn terminating() -> Value {
    json!({"conditions": {"ready": false, "serving": true, "terminating": true}})
}

fn here(mut about: Value) -> Value {
    about["nodeName"] = json!("n1");
    about
}

fn hinted(zones: &[&str], nodes: &[&str]) -> Value {
    let names = |all: &[&str]| -> Vec<Value> { all.iter().map(|it| json!({"name": it})).collect() };
    json!({"hints": {"forZones": names(zones), "forNodes": names(nodes)}})
}

/// What becomes of port 80 of a Service on node n1, in zone a.
fn picked(spec: &ServiceSpec, slices: &[Slice], family: Family) -> Backends {
    let labels = BTreeMap::from([(ZONE_LABEL.to_owned(), "a".to_owned())]);
    let (key, port) = spec.ports.iter().next().unwrap();
    Answering::new(slices, &labels).backends(spec, *key, port, family)
}

fn hosts(sockets: &BTreeSet<SocketAddr>) -> Vec<String> {
    let hosts = sockets.iter().map(|socket| socket.ip().to_string());
    let last = |host: String| host.rsplit('.').next().unwrap_or_default().to_owned();
    hosts.map(last).collect()
}

/// The last numbers of the addresses of the targets, and of those that drain.
fn of(spec: &ServiceSpec, endpoints: &[(&str, Value)]) -> (Vec<String>, Vec<String>) {
    let backends = picked(spec, &[slice(endpoints)], Family::V4);
    (hosts(&backends.targets), hosts(&backends.draining))
}

fn texts(all: &[&str]) -> Vec<String> {
    all.iter().map(ToString::to_string).collect()
}

#[test]
fn what_is_ready_gets_new_clients_and_what_serves_keeps_its_own() {
    let serving = json!({"conditions": {"ready": false, "serving": true}});
    let dead = json!({"conditions": {"ready": false, "serving": false}});
    let endpoints = [
        ("10.244.1.1", ready()),
        ("10.244.1.2", terminating()),
        ("10.244.1.3", serving),
        ("10.244.1.4", dead),
        // publishNotReadyAddresses
        (
            "10.244.1.5",
            json!({"conditions": {"ready": true, "serving": false}}),
        ),
        ("10.244.1.6", json!({})),
    ];
    let expected = (texts(&["1", "5", "6"]), texts(&["2", "3"]));
    assert_eq!(of(&spec(|_| {}), &endpoints), expected);
}

#[test]
fn while_none_is_ready_those_that_terminate_get_new_clients() {
    let serving = json!({"conditions": {"ready": false, "serving": true}});
    let endpoints = [("10.244.1.2", terminating()), ("10.244.1.3", serving)];
    let expected = (texts(&["2"]), texts(&["3"]));
    assert_eq!(of(&spec(|_| {}), &endpoints), expected);
}

#[test]
fn with_the_policy_local_only_those_of_this_node_are_targets() {
    let local = spec(local);
    let there = ("10.244.2.1", ready());
    let both = [there.clone(), ("10.244.1.1", here(ready()))];
    assert_eq!(of(&local, &both), (texts(&["1"]), texts(&["1"])));
    assert!(picked(&local, &[slice(&both)], Family::V4).keeps_client);
    let ending = [there.clone(), ("10.244.1.1", here(terminating()))];
    assert_eq!(of(&local, &ending).0, texts(&["1"]), "better than refusing");
    assert_eq!(of(&local, &[there]).0, texts(&[]));
}

/// Kubernetes makes a slice without ports for a Service whose selector matches no Pod.
#[test]
fn that_there_is_no_endpoint_is_known_by_an_empty_slice() {
    let (spec, labels) = (spec(|_| {}), BTreeMap::new());
    let knows = |slices: &[Slice], family| Answering::new(slices, &labels).knows(&spec.key, family);
    assert!(!knows(&[], Family::V4));
    let empty = [slice_of(json!(null), &[])];
    assert!(knows(&empty, Family::V4));
    assert!(!knows(&empty, Family::V6), "it is of IPv4");
    assert!(picked(&spec, &empty, Family::V4).targets.is_empty());
}

#[test]
fn the_internal_policy_is_not_for_clients_from_outside() {
    let spec = spec(|spec| spec["internalTrafficPolicy"] = json!("Local"));
    let backends = picked(&spec, &[slice(&[("10.244.2.1", ready())])], Family::V4);
    assert_eq!(hosts(&backends.targets), ["1"]);
    assert!(!backends.keeps_client);
}

#[test]
fn hints_count_if_all_have_them_and_some_are_for_this_node() {
    let (a, b) = (hinted(&["a"], &[]), hinted(&["b"], &[]));
    let cluster = spec(|_| {});
    let all = |endpoints: &[Value]| {
        let addresses = ["10.244.1.1", "10.244.1.2", "10.244.1.3"];
        let endpoints = endpoints.iter().cloned();
        let endpoints: Vec<_> = addresses.into_iter().zip(endpoints).collect();
        of(&cluster, &endpoints).0
    };
    assert_eq!(all(&[a.clone(), b.clone()]), ["1"], "its zone");
    assert_eq!(all(&[a.clone(), b.clone(), ready()]), ["1", "2", "3"]);
    assert_eq!(all(&[b.clone(), b.clone()]), ["1", "2"], "no other");
    let (n1, n2) = (hinted(&["a"], &["n1"]), hinted(&["a"], &["n2"]));
    assert_eq!(all(&[n1.clone(), n2.clone()]), ["1"], "the node first");
    assert_eq!(all(&[n2.clone(), n2]), ["1", "2"], "then its zone");
    assert_eq!(all(&[n1, a]), ["1", "2"]);
}

#[test]
fn a_named_port_may_be_another_in_each_pod() {
    let number = |number: u16| json!([{"name": "http", "port": number}, {"name": "b", "port": 9}]);
    let slices = [
        slice_of(number(8080), &[("10.244.1.1", ready())]),
        slice_of(number(8081), &[("10.244.1.2", ready())]),
    ];
    let backends = picked(&spec(|_| {}), &slices, Family::V4);
    let targets: Vec<_> = backends.targets.iter().map(ToString::to_string).collect();
    assert_eq!(targets, ["10.244.1.1:8080", "10.244.1.2:8081"]);
    assert!(
        picked(&spec(|_| {}), &slices, Family::V6)
            .targets
            .is_empty()
    );
}

#[test]
fn only_ports_of_the_same_protocol_and_service_count() {
    let udp = json!([{"name": "http", "port": 8080, "protocol": "UDP"}]);
    let slices = [slice_of(udp, &[("10.244.1.1", ready())])];
    assert!(
        picked(&spec(|_| {}), &slices, Family::V4)
            .targets
            .is_empty()
    );
    let other = spec(|_| {});
    let other = ServiceSpec {
        key: "ns/other".parse().unwrap(),
        ..other
    };
    let slices = [slice(&[("10.244.1.1", ready())])];
    assert!(picked(&other, &slices, Family::V4).targets.is_empty());
}

#[test]
fn affinity_is_by_the_client() {
    let slices = [slice(&[("10.244.1.1", ready())])];
    let choice = |spec: &ServiceSpec| picked(spec, &slices, Family::V4).choice;
    assert_eq!(choice(&spec(|_| {})), Choice::Random);
    let sticky = spec(|spec| spec["sessionAffinity"] = json!("ClientIP"));
    let three_hours = Memory::at_least(Duration::from_secs(10_800));
    assert_eq!(choice(&sticky), Choice::ByClient(three_hours));
    for (asked, kept) in [(1, 10), (10, 10), (11, 60), (3600, 3600), (86_400, 86_400)] {
        let sticky = spec(|spec| {
            spec["sessionAffinity"] = json!("ClientIP");
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": asked}});
        });
        let Choice::ByClient(memory) = choice(&sticky) else {
            panic!("{asked}");
        };
        assert_eq!(memory.seconds(), kept);
    }
}

prop_compose! {
    fn any_endpoint()(
        host in 1_u8..20, conditions in any::<[Option<bool>; 3]>(), is_here in any::<bool>(),
        zone in prop::option::of(0..3_usize), node in prop::option::of(0..2_usize),
    ) -> (String, Value) {
        let [ready, serving, terminating] = conditions;
        let zones: Vec<&str> = zone.iter().map(|it| ["a", "b", "c"][*it]).collect();
        let nodes: Vec<&str> = node.iter().map(|it| ["n1", "n2"][*it]).collect();
        let mut about = hinted(&zones, &nodes);
        about["conditions"] = json!({"ready": ready, "serving": serving, "terminating": terminating});
        if is_here {
            about["nodeName"] = json!("n1");
        }
        (format!("10.244.1.{host}"), about)
    }
}

proptest! {
    /// Whatever the hints and conditions: a client is refused only if nobody could answer.
    #[test]
    fn somebody_who_can_answer_does(
        endpoints in prop::collection::vec(any_endpoint(), 0..8), is_local in any::<bool>(),
    ) {
        let spec = spec(|spec| if is_local { local(spec) });
        let endpoints: Vec<_> = endpoints.iter().map(|(ip, about)| (ip.as_str(), about.clone())).collect();
        let slice = slice(&endpoints);
        let backends = picked(&spec, std::slice::from_ref(&slice), Family::V4);
        let could = |it: &&Endpoint| it.state != State::Serving && (!is_local || it.is_here);
        prop_assert_eq!(backends.targets.is_empty(), !slice.endpoints.iter().any(|it| could(&it)));
        prop_assert!(backends.targets.is_disjoint(&backends.draining));
        let is_target = |it: &Endpoint| backends.targets.contains(&SocketAddr::new(it.address, 8080));
        for endpoint in &slice.endpoints {
            let twin = slice.endpoints.iter().filter(|it| it.address == endpoint.address).count() > 1;
            prop_assert!(twin || !is_target(endpoint) || could(&endpoint), "{:?}", endpoint);
        }
    }

    #[test]
    fn the_order_of_slices_does_not_count(
        endpoints in prop::collection::vec(any_endpoint(), 0..8), split in 0..8_usize,
    ) {
        let spec = spec(|_| {});
        let endpoints: Vec<_> = endpoints.iter().map(|(ip, about)| (ip.as_str(), about.clone())).collect();
        let (some, rest) = endpoints.split_at(split.min(endpoints.len()));
        let there = picked(&spec, &[slice(some), slice(rest)], Family::V4);
        let back = picked(&spec, &[slice(rest), slice(some)], Family::V4);
        prop_assert_eq!(there, back);
    }
}
