use super::*;
use serde_json::{Value, json};

fn service(change: impl FnOnce(&mut Value)) -> Service {
    let mut object = json!({
        "metadata": {
            "name": "web", "namespace": "shop", "uid": "u1",
            "creationTimestamp": "2026-01-02T03:04:05Z",
        },
        "spec": {
            "type": "LoadBalancer",
            "clusterIPs": ["10.96.0.10"],
            "ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}],
        },
    });
    change(&mut object);
    serde_json::from_value(object).unwrap()
}

fn read(change: impl FnOnce(&mut Value)) -> Interpretation {
    interpret(&service(change), ClassPolicy::DefaultAndOurs)
}

#[test]
fn reads_what_a_service_asks_for() {
    let Interpretation::Serve(spec) = read(|_| {}) else {
        panic!("not served")
    };
    assert_eq!(spec.key.to_string(), "shop/web");
    assert_eq!(
        spec.cluster_ips,
        ClusterIps::V4("10.96.0.10".parse().unwrap())
    );
    let ports: Vec<String> = spec.ports.keys().map(ToString::to_string).collect();
    assert_eq!(ports, ["80/TCP", "53/UDP"]);
    assert!(spec.node_selector.selects_all());
    assert_eq!(spec.created.to_string(), "2026-01-02T03:04:05Z");
}

#[test]
fn targets_are_numbers_or_names_and_default_to_the_port() {
    let Interpretation::Serve(spec) = read(|s| {
        s["spec"]["ports"] = json!([
            {"port": 80, "targetPort": "http", "nodePort": 30080},
            {"port": 81, "targetPort": 8081},
            {"port": 82},
        ]);
    }) else {
        panic!("not served")
    };
    let number = |port| TargetPort::Number(NonZeroU16::new(port).unwrap());
    let targets: Vec<_> = spec
        .ports
        .values()
        .map(|port| port.target.clone())
        .collect();
    assert_eq!(
        targets,
        [TargetPort::Name("http".into()), number(8081), number(82)]
    );
    let node_ports: Vec<_> = spec.ports.values().map(|port| port.node_port).collect();
    assert_eq!(node_ports, [NonZeroU16::new(30080), None, None]);
}

#[test]
fn both_orders_of_a_dual_stack_service_are_the_same() {
    let one = read(|s| s["spec"]["clusterIPs"] = json!(["10.96.0.10", "fd00:96::10"]));
    let other = read(|s| s["spec"]["clusterIPs"] = json!(["fd00:96::10", "10.96.0.10"]));
    assert_eq!(one, other);
    let Interpretation::Serve(spec) = one else {
        panic!("not served")
    };
    assert_eq!(spec.cluster_ips.families().collect::<Vec<_>>(), Family::ALL);
}

#[test]
fn the_class_decides_whose_it_is() {
    let classed = |class: &str| {
        let class = class.to_owned();
        service(move |s| s["spec"]["loadBalancerClass"] = json!(class))
    };
    for (object, policy, ours) in [
        (service(|_| {}), ClassPolicy::DefaultAndOurs, true),
        (service(|_| {}), ClassPolicy::OursOnly, false),
        (
            classed(LOAD_BALANCER_CLASS),
            ClassPolicy::DefaultAndOurs,
            true,
        ),
        (classed(LOAD_BALANCER_CLASS), ClassPolicy::OursOnly, true),
        (
            classed("example.com/other"),
            ClassPolicy::DefaultAndOurs,
            false,
        ),
    ] {
        assert_eq!(
            interpret(&object, policy) != Interpretation::NotOurs,
            ours,
            "{policy:?}"
        );
    }
}

#[test]
fn other_types_and_services_being_deleted_are_not_ours() {
    assert_eq!(
        read(|s| s["spec"]["type"] = json!("NodePort")),
        Interpretation::NotOurs
    );
    assert_eq!(
        read(|s| s["metadata"]["deletionTimestamp"] = json!("2026-01-02T03:04:05Z")),
        Interpretation::NotOurs
    );
}

#[test]
fn a_service_without_cluster_ip_is_pending() {
    assert_eq!(
        read(|s| s["spec"]["clusterIPs"] = json!([])),
        Interpretation::Pending
    );
}

#[test]
fn every_invalid_value_is_named_with_its_remedy() {
    let Interpretation::Invalid(problems) = read(|s| {
        s["metadata"]["annotations"] = json!({
            NODE_SELECTOR_ANNOTATION: "pool in edge",
            ADDRESS_TYPE_ANNOTATION: "Public",
        });
        s["spec"]["ports"] = json!([{"port": 0}, {"port": 80, "protocol": "QUIC"}]);
    }) else {
        panic!("accepted")
    };
    let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 4);
    for (text, expected) in texts.iter().zip([
        "spec.ports[0].port: \"0\": write a port",
        "spec.ports[1].protocol: \"QUIC\": write TCP, UDP or SCTP",
        "metadata.annotations[highwire.dev/node-selector]: \"pool in edge\": cannot read",
        "metadata.annotations[highwire.dev/address-type]: \"Public\": write Auto",
    ]) {
        assert!(text.starts_with(expected), "{text}");
    }
    assert_eq!(problems[0].reason(), "InvalidField");
    assert_eq!(problems[2].reason(), "InvalidAnnotation");
}

#[test]
fn what_is_not_done_is_refused_and_never_served_wrongly() {
    for change in [
        json!({"clusterIPs": ["None"]}),
        json!({"externalTrafficPolicy": "Local"}),
        json!({"internalTrafficPolicy": "Local"}),
        json!({"loadBalancerSourceRanges": ["192.0.2.0/24"]}),
    ] {
        let read = read(|s| {
            for (field, value) in change.as_object().unwrap() {
                s["spec"][field] = value.clone();
            }
        });
        assert!(
            matches!(read, Interpretation::Unsupported(_)),
            "{change}: {read:?}"
        );
    }
}

#[test]
fn a_status_write_changes_nothing_that_is_asked_for() {
    let before = read(|_| {});
    let after = read(|s| {
        s["metadata"]["resourceVersion"] = json!("7");
        s["metadata"]["labels"] = json!({"a": "b"});
        s["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.11"}]}});
    });
    assert_eq!(before, after);
}
