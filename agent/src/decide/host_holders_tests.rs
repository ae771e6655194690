use highwire_api::{ClassPolicy, Interpretation, service::interpret};
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

use super::*;
use crate::{
    config::Policy,
    facts::{
        listener_history::Listeners, node::NodeFacts, service_proxy::ServiceProxy,
        services::Services, sysctls::Sysctls,
    },
};

fn service(name: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut object = json!({
        "metadata": {"name": name, "namespace": "ns"},
        "spec": {"type": "LoadBalancer", "clusterIPs": ["10.96.0.10"],
                 "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 80}]},
    });
    change(&mut object);
    object
}

fn spec(object: &Value) -> ServiceSpec {
    let service = serde_json::from_value(object.clone()).unwrap();
    match interpret(&service, ClassPolicy::DefaultAndOurs) {
        Interpretation::Serve(spec) => spec,
        other => panic!("{other:?}"),
    }
}

fn pod(name: &str, change: impl FnOnce(&mut Value)) -> LocalPod {
    let mut object = json!({
        "metadata": {"name": name, "namespace": "ns", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "name": "http"}]}]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    });
    change(&mut object);
    LocalPod::of(&serde_json::from_value(object).unwrap()).unwrap()
}

fn listener(bound: &str) -> Listener {
    let bound = bound.parse().unwrap();
    Listener {
        protocol: Protocol::Tcp,
        bound,
        v6_only: false,
        device: None,
        uid: 0,
        inode: 1,
    }
}

/// What has IPv4 port 80/TCP, seen from the Service, on node 192.0.2.11.
fn holder_of(
    of: &Value,
    listeners: Listeners,
    pods: Vec<LocalPod>,
    others: &[Value],
    reserved: &str,
) -> Option<Holder> {
    let mut services = Services::default();
    let others = others.iter().cloned();
    let others = others.map(|other| Event::InitApply(serde_json::from_value(other).unwrap()));
    for event in [Event::Init]
        .into_iter()
        .chain(others)
        .chain([Event::InitDone])
    {
        services.absorb(event);
    }
    let address = HostAddress {
        address: "192.0.2.11".parse().unwrap(),
        interface: "eth0".into(),
        devices: BTreeSet::new(),
        global: true,
        on_default_route: true,
    };
    let pods = pods.into_iter().map(|pod| (pod.name.clone(), pod));
    let facts = Facts {
        services: services.known().unwrap(),
        node: &NodeFacts::default(),
        addresses: std::slice::from_ref(&address),
        pods: &pods.collect(),
        listeners: &listeners,
        sysctls: &Sysctls::default(),
        proxy: &ServiceProxy::default(),
        slices: None,
        policy: &Policy {
            reserved_ports: reserved.parse().unwrap(),
            ..Policy::default()
        },
        left_out: &BTreeMap::new(),
    };
    let slot = Slot {
        family: Family::V4,
        port: PortKey::new(Protocol::Tcp, 80).unwrap(),
    };
    HostHolders::new(&facts, &[address.address].into()).holder(slot, &spec(of))
}

fn holder(
    of: &Value,
    listeners: &[Listener],
    pods: Vec<LocalPod>,
    others: &[Value],
) -> Option<String> {
    let listeners = Listeners {
        open: listeners.to_vec(),
        held: Vec::new(),
    };
    holder_of(of, listeners, pods, others, "").map(|holder| holder.to_string())
}

fn web() -> Value {
    service("web", |_| {})
}

#[test]
fn a_socket_on_a_served_address_has_the_port() {
    for (bound, expected) in [
        ("0.0.0.0:80", Some("socket 0.0.0.0:80 uid 0")),
        ("[::]:80", Some("socket [::]:80 uid 0")),
        ("192.0.2.11:80", Some("socket 192.0.2.11:80 uid 0")),
        ("127.0.0.1:80", None),
        ("203.0.113.1:80", None),
        ("0.0.0.0:81", None),
    ] {
        let found = holder(&web(), &[listener(bound)], vec![], &[]);
        assert_eq!(found.as_deref(), expected, "{bound}");
    }
}

#[test]
fn the_services_own_host_network_pod_is_no_conflict() {
    let own = |change: fn(&mut Value)| {
        let pod = pod("own", |p| {
            p["spec"]["hostNetwork"] = json!(true);
            change(p);
        });
        holder(&web(), &[listener("0.0.0.0:80")], vec![pod], &[])
    };
    let refused = Some("socket 0.0.0.0:80 uid 0".to_owned());
    assert_eq!(own(|_| {}), None);
    assert_eq!(
        own(|p| p["metadata"]["labels"]["app"] = json!("other")),
        refused
    );
    assert_eq!(
        own(|p| p["metadata"]["namespace"] = json!("elsewhere")),
        refused
    );
    assert_eq!(
        own(|p| p["status"]["conditions"][0]["status"] = json!("False")),
        refused
    );
    assert_eq!(own(|p| p["spec"]["hostNetwork"] = json!(false)), refused);
}

#[test]
fn source_ranges_that_its_own_host_network_pod_would_bypass_are_a_conflict() {
    let guarded = service("web", |s| {
        s["spec"]["loadBalancerSourceRanges"] = json!(["198.51.100.0/24"]);
    });
    let own = pod("own", |p| p["spec"]["hostNetwork"] = json!(true));
    let found = holder(&guarded, &[listener("0.0.0.0:80")], vec![own.clone()], &[]);
    assert!(found.is_some_and(|text| text.contains("its own hostNetwork Pod")));
    // Its Pod listens somewhere else.
    let found = holder(&guarded, &[listener("0.0.0.0:81")], vec![own], &[]);
    assert_eq!(found, None);
}

#[test]
fn a_named_target_is_looked_up_in_the_pod() {
    let named = service("web", |s| {
        s["spec"]["ports"][0]["targetPort"] = json!("http")
    });
    let on = |port: i32| {
        let pod = pod("own", |p| {
            p["spec"]["hostNetwork"] = json!(true);
            p["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(port);
        });
        holder(&named, &[listener("0.0.0.0:80")], vec![pod], &[])
    };
    assert_eq!(on(80), None);
    assert!(
        on(8080).is_some(),
        "the Pod listens elsewhere, so port 80 is somebody else's"
    );
}

#[test]
fn host_ports_are_refused_unless_they_lead_to_the_same_pod() {
    let claiming = |change: fn(&mut Value)| {
        let pod = pod("p", |p| {
            p["spec"]["containers"][0]["ports"][0]["hostPort"] = json!(80);
            change(p);
        });
        holder(&web(), &[], vec![pod], &[])
    };
    let refused = Some("Pod ns/p hostPort".to_owned());
    assert_eq!(claiming(|_| {}), None, "its own");
    assert_eq!(claiming(|p| p["metadata"]["labels"] = json!({})), refused);
    assert_eq!(
        claiming(|p| p["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(8080)),
        refused,
        "the hostPort leads elsewhere than the Service"
    );
    let with_ip = |ip: &str| {
        let pod = pod("p", |p| {
            p["metadata"]["labels"] = json!({});
            p["spec"]["containers"][0]["ports"][0]["hostPort"] = json!(80);
            p["spec"]["containers"][0]["ports"][0]["hostIP"] = json!(ip);
        });
        holder(&web(), &[], vec![pod], &[])
    };
    assert_eq!(with_ip("127.0.0.1"), None);
    assert_eq!(with_ip("192.0.2.11"), Some("Pod ns/p hostPort".into()));
    assert_eq!(with_ip("0.0.0.0"), Some("Pod ns/p hostPort".into()));
}

#[test]
fn node_ports_of_others_are_refused_and_its_own_is_not() {
    let node_port = |name: &str| {
        service(name, |s| {
            s["spec"]["ports"] = json!([{"port": 80, "nodePort": 80}])
        })
    };
    assert_eq!(
        holder(&web(), &[], vec![], &[node_port("other")]).as_deref(),
        Some("Service ns/other nodePort")
    );
    assert_eq!(
        holder(&node_port("web"), &[], vec![], &[node_port("web")]),
        None
    );
    let crossed = service("web", |s| {
        s["spec"]["ports"] = json!([{"port": 80}, {"port": 443, "nodePort": 80}]);
    });
    assert_eq!(
        holder(&crossed, &[], vec![], std::slice::from_ref(&crossed)).as_deref(),
        Some("Service ns/web nodePort"),
        "it leads to another port of the Service"
    );
    let health = service("h", |s| s["spec"]["healthCheckNodePort"] = json!(80));
    assert_eq!(
        holder(&web(), &[], vec![], &[health]).as_deref(),
        Some("Service ns/h healthCheckNodePort")
    );
}

#[test]
fn external_ips_that_are_the_nodes_are_refused() {
    let external = |name: &str, ip: &str| {
        let ip = ip.to_owned();
        service(name, move |s| {
            s["spec"]["type"] = json!("ClusterIP");
            s["spec"]["externalIPs"] = json!([ip]);
        })
    };
    assert_eq!(
        holder(&web(), &[], vec![], &[external("x", "192.0.2.11")]).as_deref(),
        Some("Service ns/x externalIP 192.0.2.11")
    );
    assert_eq!(
        holder(&web(), &[], vec![], &[external("x", "203.0.113.1")]),
        None
    );
    assert_eq!(
        holder(&web(), &[], vec![], &[external("web", "192.0.2.11")]),
        None,
        "its own"
    );
}

#[test]
fn the_nodes_addresses_that_another_load_balancer_wrote_are_refused() {
    let balanced = |name: &str, ip: &str, mode: &str| {
        let ingress = json!([{ "ip": ip, "ipMode": mode }]);
        service(name, move |s| {
            s["status"] = json!({ "loadBalancer": { "ingress": ingress } });
        })
    };
    let holder = |service| holder(&web(), &[], vec![], &[service]);
    assert_eq!(
        holder(balanced("x", "192.0.2.11", "VIP")).as_deref(),
        Some("Service ns/x load balancer address 192.0.2.11"),
        "kube-proxy serves it"
    );
    assert_eq!(holder(balanced("x", "192.0.2.11", "Proxy")), None);
    assert_eq!(holder(balanced("x", "203.0.113.1", "VIP")), None);
    assert_eq!(
        holder(balanced("web", "192.0.2.11", "VIP")),
        None,
        "its own"
    );
}

/// As above, when only listeners matter.
fn holder_of_late(
    listeners: &[Listener],
    held: &[Held],
    reserved: &str,
    pods: Vec<LocalPod>,
) -> Option<Holder> {
    let listeners = Listeners {
        open: listeners.to_vec(),
        held: held.to_vec(),
    };
    holder_of(&web(), listeners, pods, &[], reserved)
}

fn left(bound: &str, beside: &[&str]) -> Held {
    let service = |name: &&str| ServiceKey {
        namespace: "ns".into(),
        name: (*name).into(),
    };
    Held {
        listener: listener(bound),
        beside: beside.iter().map(service).collect(),
    }
}

fn own_pod() -> LocalPod {
    pod("own", |p| p["spec"]["hostNetwork"] = json!(true))
}

#[test]
fn a_listener_that_left_has_the_port_for_a_while() {
    let text = |held: Held| holder_of_late(&[], &[held], "", vec![]).map(|h| h.to_string());
    assert_eq!(
        text(left("0.0.0.0:80", &[])).as_deref(),
        Some("socket 0.0.0.0:80 uid 0, closed a moment ago and still held")
    );
    assert_eq!(text(left("127.0.0.1:80", &[])), None);
    assert_eq!(text(left("0.0.0.0:81", &[])), None);
}

#[test]
fn the_port_of_its_own_pod_that_left_is_not_kept_from_a_service() {
    let held = [left("0.0.0.0:80", &["web"])];
    assert_eq!(holder_of_late(&[], &held, "", vec![]), None);
    let held = [left("0.0.0.0:80", &["other"])];
    assert!(holder_of_late(&[], &held, "", vec![]).is_some());
}

#[test]
fn its_own_pod_that_left_hides_no_other_listener_that_left() {
    let mut held = [left("0.0.0.0:80", &["web"]), left("192.0.2.11:80", &[])];
    for _ in 0..2 {
        let holder = holder_of_late(&[], &held, "", vec![]);
        assert!(matches!(holder, Some(Holder::Left { .. })), "{holder:?}");
        held.reverse();
    }
}

#[test]
fn the_same_listener_is_named_in_whatever_order_they_were_found() {
    let mut all = ["192.0.2.11:80", "0.0.0.0:80"].map(listener);
    let one = holder_of_late(&all, &[], "", vec![]);
    all.reverse();
    assert_eq!(holder_of_late(&all, &[], "", vec![]), one);
}

#[test]
fn where_something_listens_who_left_does_not_matter() {
    let held = [left("0.0.0.0:80", &[])];
    let own = holder_of_late(&[listener("[::]:80")], &held, "", vec![own_pod()]);
    assert_eq!(own, None, "its own Pod is there now");
    let other = holder_of_late(&[listener("[::]:80")], &held, "", vec![]);
    assert!(matches!(other, Some(Holder::Socket { .. })), "{other:?}");
}

#[test]
fn a_reserved_port_is_refused_to_everybody() {
    for listeners in [&[][..], &[listener("0.0.0.0:80")]] {
        let holder = holder_of_late(listeners, &[], "22,79-80", vec![own_pod()]);
        assert_eq!(
            holder,
            Some(Holder::Reserved),
            "also with its own Pod there"
        );
    }
    assert_eq!(holder_of_late(&[], &[], "81", vec![]), None);
}
