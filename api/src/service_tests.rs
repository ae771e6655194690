use super::*;
use crate::names::{FIELD_MANAGER, SOURCE_RANGES_ANNOTATION};
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
        s["metadata"]["managedFields"] = written_by(FIELD_MANAGER);
        s["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.11"}]}});
    });
    assert_eq!(before, after);
}

fn written_by(manager: &str) -> Value {
    let fields = json!({"f:status": {"f:loadBalancer": {"f:ingress": {}}}});
    json!([{"manager": manager, "operation": "Update", "subresource": "status",
            "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields}])
}

#[test]
fn a_service_whose_ingress_another_program_wrote_is_that_programs() {
    let foreign = |s: &mut Value| {
        s["metadata"]["managedFields"] = written_by("cloud");
        s["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.77"}]}});
    };
    let Interpretation::ManagedElsewhere(manager) = read(foreign) else {
        panic!("taken from its owner")
    };
    assert_eq!(manager.to_string(), "cloud");
    for (change, ours) in [
        (
            json!({"spec": {"loadBalancerClass": "highwire.dev/node"}}),
            true,
        ),
        (
            json!({"metadata": {"annotations": {"highwire.dev/adopt": "true"}}}),
            true,
        ),
        (
            json!({"metadata": {"annotations": {"highwire.dev/adopt": "no"}}}),
            false,
        ),
        (
            json!({"metadata": {"managedFields": written_by(FIELD_MANAGER)}}),
            true,
        ),
        (json!({"status": {"loadBalancer": {"ingress": []}}}), true),
    ] {
        let read = read(|s| {
            foreign(s);
            for (part, fields) in change.as_object().unwrap() {
                for (field, value) in fields.as_object().unwrap() {
                    s[part][field] = value.clone();
                }
            }
        });
        assert_eq!(
            matches!(read, Interpretation::Serve(_)),
            ours,
            "{change}: {read:?}"
        );
    }
    // Another class stays another's, whatever a person annotates.
    let read = read(|s| {
        s["spec"]["loadBalancerClass"] = json!("example.com/other");
        s["metadata"]["annotations"] = json!({"highwire.dev/adopt": "true"});
    });
    assert_eq!(read, Interpretation::NotOurs);
}

#[test]
fn services_that_kube_proxy_leaves_alone_are_refused_with_words() {
    for label in [
        "service.kubernetes.io/service-proxy-name",
        "service.kubernetes.io/headless",
    ] {
        let read = read(|s| s["metadata"]["labels"] = json!({label: "x"}));
        let Interpretation::Unsupported(problems) = read else {
            panic!("{label}: {read:?}")
        };
        assert!(problems[0].to_string().contains(label), "{problems:?}");
    }
}

#[test]
fn source_ranges_come_from_the_field_or_the_older_annotation() {
    let clients = |field: Value, annotation: &str| {
        let read = read(|s| {
            s["spec"]["loadBalancerSourceRanges"] = field;
            s["metadata"]["annotations"] = json!({SOURCE_RANGES_ANNOTATION: annotation});
        });
        match read {
            Interpretation::Serve(spec) => spec.clients,
            other => panic!("{other:?}"),
        }
    };
    let within = |networks: &[&str]| {
        Clients::Within(
            networks
                .iter()
                .map(|network| network.parse().unwrap())
                .collect(),
        )
    };
    assert_eq!(clients(json!([]), ""), Clients::Any);
    assert_eq!(
        clients(json!(["192.0.2.0/24"]), "10.0.0.0/8"),
        within(&["192.0.2.0/24"])
    );
    assert_eq!(
        clients(json!([]), "10.0.0.0/8, 2001:db8::/32"),
        within(&["10.0.0.0/8", "2001:db8::/32"])
    );
    assert_eq!(
        clients(json!(["10.0.0.0/8", "10.1.0.0/16", " 192.0.2.1/32"]), ""),
        within(&["10.0.0.0/8", "192.0.2.1/32"]),
        "what another contains is left out"
    );
}

#[test]
fn a_bad_source_range_lets_nobody_in_by_mistake() {
    for (range, remedy) in [
        ("192.0.2.1/24", "write 192.0.2.0/24 for the network"),
        ("all", "write a network"),
    ] {
        let read = read(|s| s["spec"]["loadBalancerSourceRanges"] = json!(["10.0.0.0/8", range]));
        let Interpretation::Invalid(problems) = read else {
            panic!("{range} was accepted")
        };
        let text = problems[0].to_string();
        assert!(
            text.starts_with("spec.loadBalancerSourceRanges[1]") && text.contains(remedy),
            "{text}"
        );
    }
}

#[test]
fn a_local_policy_enters_at_the_node_port() {
    use TrafficPolicy::{Cluster, Local};
    for (internal, external, expected) in [
        ("Cluster", "Cluster", (Entrance::ClusterIp, Cluster)),
        // Through the ClusterIP it would reach Pods of this node only, for everybody.
        ("Local", "Cluster", (Entrance::NodePort, Cluster)),
        ("Cluster", "Local", (Entrance::NodePort, Local)),
        ("Local", "Local", (Entrance::NodePort, Local)),
    ] {
        let read = read(|s| {
            s["spec"]["ports"] = json!([{"port": 80, "nodePort": 30080}]);
            s["spec"]["internalTrafficPolicy"] = json!(internal);
            s["spec"]["externalTrafficPolicy"] = json!(external);
        });
        let Interpretation::Serve(spec) = read else {
            panic!("{read:?}")
        };
        assert_eq!(
            (spec.entrance, spec.external_policy),
            expected,
            "{internal} {external}"
        );
    }
}

#[test]
fn the_first_cluster_ip_has_the_primary_family() {
    for (ips, primary) in [
        (json!(["10.96.0.10", "fd00:96::10"]), Family::V4),
        (json!(["fd00:96::10", "10.96.0.10"]), Family::V6),
        (json!(["None"]), Family::V4),
        (json!(null), Family::V4),
    ] {
        let service = service(|s| s["spec"]["clusterIPs"] = ips.clone());
        assert_eq!(primary_family(&service), primary, "{ips}");
    }
}

#[test]
fn a_service_with_too_many_source_ranges_is_refused_and_few_problems_are_named() {
    let ranges = |ports: usize, networks: usize| {
        read(|s| {
            let ports = (0..ports).map(|port| json!({"port": 1000 + port}));
            s["spec"]["ports"] = ports.collect();
            let networks =
                (0..networks).map(|i| json!(format!("10.{}.{}.0/24", i / 128, i % 128 * 2)));
            s["spec"]["loadBalancerSourceRanges"] = networks.collect();
        })
    };
    assert!(matches!(ranges(10, 500), Interpretation::Serve(_)));
    let Interpretation::Invalid(problems) = ranges(10, 501) else {
        panic!("25 million elements would be no better")
    };
    assert!(
        problems[0]
            .to_string()
            .contains("501 networks for 10 ports")
    );
    let Interpretation::Invalid(problems) = read(|s| {
        s["spec"]["loadBalancerSourceRanges"] = (0..5_000).map(|i| json!(i.to_string())).collect();
    }) else {
        panic!("numbers are no networks")
    };
    assert_eq!(problems.len(), 8);
}

#[test]
fn how_many_nodes_are_advertised_is_a_positive_number() {
    let with = |value: &str| {
        read(|s| s["metadata"]["annotations"] = json!({MAX_ADDRESSES_ANNOTATION: value}))
    };
    let Interpretation::Serve(spec) = with("3") else {
        panic!("not served")
    };
    assert_eq!(spec.max_addresses.map(NonZeroU16::get), Some(3));
    for wrong in ["0", "-1", "many", "", "1.5"] {
        let Interpretation::Invalid(problems) = with(wrong) else {
            panic!("{wrong} was accepted")
        };
        assert_eq!(problems[0].reason(), "InvalidAnnotation");
    }
}

#[test]
fn a_box_outside_sends_to_node_ports_or_else_to_the_nodes_own_ports() {
    let policy = ClassPolicy::DefaultAndOurs;
    let external = |node_port: Value, ranges: Value| {
        service(move |s| {
            s["spec"]["loadBalancerClass"] = json!(crate::names::EXTERNAL_CLASS);
            s["spec"]["ports"] = json!([{"port": 80, "nodePort": node_port}]);
            s["spec"]["loadBalancerSourceRanges"] = ranges;
        })
    };
    let ranges = || json!(["192.0.2.0/24"]);
    let with = external(json!(30080), ranges());
    let without = external(Value::Null, Value::Null);
    for service in [&with, &without] {
        assert_eq!(interpret(service, policy), Interpretation::NotOurs);
    }
    assert_eq!(interpret_on_node(&with, policy), Interpretation::NotOurs);
    let entrance = |asks: Interpretation| match asks {
        Interpretation::Serve(spec) => spec.entrance,
        other => panic!("{other:?}"),
    };
    assert_eq!(entrance(interpret_external(&with)), Entrance::NodePort);
    assert_eq!(entrance(interpret_external(&without)), Entrance::ClusterIp);
    assert_eq!(
        interpret_on_node(&without, policy),
        interpret_external(&without)
    );
    // The nodes would see the box's address.
    let refused = interpret_external(&external(Value::Null, ranges()));
    assert!(
        matches!(refused, Interpretation::Unsupported(_)),
        "{refused:?}"
    );
    let plain = service(|_| {});
    assert_eq!(interpret_on_node(&plain, policy), interpret(&plain, policy));
    assert_eq!(interpret_external(&plain), Interpretation::NotOurs);
}
