use highwire_api::Protocol;
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn port(protocol: Protocol, number: i32) -> PortKey {
    PortKey::new(protocol, number).unwrap()
}

fn only(number: i32) -> Arc<BTreeSet<PortKey>> {
    Arc::new(BTreeSet::from([port(Protocol::Tcp, number)]))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn listed(entries: serde_json::Value) -> Listed {
    let service = json!({"metadata": {}, "status": {"loadBalancer": {"ingress": entries}}});
    Listed::of(&serde_json::from_value(service).unwrap())
}

#[test]
fn renders_sorted_by_number_with_every_port() {
    let ports = Arc::new(BTreeSet::from([
        port(Protocol::Udp, 53),
        port(Protocol::Tcp, 443),
        port(Protocol::Tcp, 80),
    ]));
    let mut ingress = Ingress::default();
    for address in ["192.0.2.100", "2001:db8:1::2", "192.0.2.20"] {
        ingress.add(ip(address), &ports);
    }
    let ports = json!([
        {"port": 80, "protocol": "TCP"},
        {"port": 443, "protocol": "TCP"},
        {"port": 53, "protocol": "UDP"},
    ]);
    assert_eq!(
        serde_json::to_value(ingress.to_api(Family::V4)).unwrap(),
        json!([
            {"ip": "192.0.2.20", "ipMode": "Proxy", "ports": ports},
            {"ip": "192.0.2.100", "ipMode": "Proxy", "ports": ports},
            {"ip": "2001:db8:1::2", "ipMode": "Proxy", "ports": ports},
        ])
    );
}

#[test]
fn the_primary_family_comes_first() {
    let mut ingress = Ingress::default();
    for address in ["192.0.2.1", "2001:db8:1::2", "2001:db8:1::1"] {
        ingress.add(ip(address), &only(80));
    }
    let order = |primary| {
        let entries = ingress.to_api(primary).into_iter();
        entries.filter_map(|entry| entry.ip).collect::<Vec<_>>()
    };
    let (v4, v6) = ("192.0.2.1", ["2001:db8:1::1", "2001:db8:1::2"]);
    assert_eq!(order(Family::V4), [v4, v6[0], v6[1]]);
    assert_eq!(order(Family::V6), [v6[0], v6[1], v4]);

    // What is written in another order is to be written again.
    let mut service = json!({"metadata": {}, "spec": {"clusterIPs": ["fd00:96::1", "10.96.0.1"]}});
    for (primary, exact) in [(Family::V4, false), (Family::V6, true)] {
        service["status"]["loadBalancer"]["ingress"] = json!(ingress.to_api(primary));
        let listed = Listed::of(&serde_json::from_value(service.clone()).unwrap());
        assert_eq!(listed.says(&ingress), exact, "{primary} first");
    }
}

#[test]
fn an_address_of_two_nodes_is_one_entry_with_the_ports_of_both() {
    let mut ingress = Ingress::default();
    ingress.add(ip("192.0.2.1"), &only(80));
    ingress.add(ip("192.0.2.1"), &only(443));
    let entries = ingress.to_api(Family::V4);
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].ports.as_ref().map(Vec::len), Some(2));
}

#[test]
fn what_others_wrote_is_not_exact() {
    let ports = json!([{"port": 80, "protocol": "TCP"}]);
    for (entries, exact) in [
        (json!([]), true),
        (
            json!([{"ip": "192.0.2.1", "ipMode": "Proxy", "ports": ports}]),
            true,
        ),
        (
            json!([{"ip": "192.0.2.1", "ipMode": "VIP", "ports": ports}]),
            false,
        ),
        (json!([{"ip": "192.0.2.1", "ipMode": "Proxy"}]), false),
        (json!([{"hostname": "lb.example.com"}]), false),
        (
            json!([{"ip": "192.0.2.1", "ipMode": "Proxy",
                    "ports": [{"port": 80, "protocol": "TCP", "error": "highwire.dev/PortConflict"}]}]),
            false,
        ),
    ] {
        let listed = listed(entries.clone());
        assert_eq!(listed.exact, exact, "{entries}");
        assert_eq!(listed.is_empty(), entries == json!([]), "{entries}");
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back_as_itself(
        entries in proptest::collection::vec(
            (any::<IpAddr>(), proptest::collection::btree_set(1..9_i32, 0..4)), 0..20)
    ) {
        let mut ingress = Ingress::default();
        for (address, ports) in entries {
            let ports = ports.into_iter().map(|number| port(Protocol::Tcp, number)).collect();
            ingress.add(address, &Arc::new(ports));
        }
        let read = listed(serde_json::to_value(ingress.to_api(Family::V4)).unwrap());
        prop_assert!(read.exact);
        prop_assert!(read.says(&ingress));
    }
}
