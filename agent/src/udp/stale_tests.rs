//! Addresses: the node 192.0.2.11 and 2001:db8:1::11, a ClusterIP 10.96.0.10, Pods 10.244.0.0/16 and
//! fd00:244::/32, the client 198.51.100.10 and 2001:db8:2::10.

use proptest::prelude::*;

use super::*;
use crate::udp::flow::Tuple;

const NODE: &str = "192.0.2.11:53";
const ENTRANCE: &str = "10.96.0.10:53";
const NODE6: &str = "[2001:db8:1::11]:53";

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A flow of the client's to `destination` that `answers` answers.
fn flow(destination: &str, answers: &str) -> Flow {
    flow_between(at(destination), at(answers))
}

fn flow_between(destination: SocketAddr, answers: SocketAddr) -> Flow {
    let client = if destination.is_ipv4() {
        at("198.51.100.10:4711")
    } else {
        at("[2001:db8:2::10]:4711")
    };
    Flow {
        original: Tuple {
            source: client,
            destination,
        },
        reply: Tuple {
            source: answers,
            destination: client,
        },
        id: 7,
    }
}

fn view(frontends: &[(&str, Frontend)]) -> View {
    View {
        frontends: frontends
            .iter()
            .map(|(frontend, known)| (at(frontend), known.clone()))
            .collect(),
        own: ["192.0.2.11", "203.0.113.5", "2001:db8:1::11"]
            .map(|ip| ip.parse().unwrap())
            .into(),
    }
}

fn served(endpoints: &[&str]) -> Frontend {
    behind(endpoints.iter().map(|endpoint| at(endpoint)).collect())
}

fn behind(endpoints: BTreeSet<SocketAddr>) -> Frontend {
    Frontend::Served {
        entrance: Some(at(ENTRANCE)),
        reachable: endpoints.clone(),
        endpoints,
    }
}

/// With `externalTrafficPolicy: Local`: none of the endpoints is on this node.
fn served_elsewhere(endpoints: &[&str]) -> Frontend {
    Frontend::Served {
        entrance: Some(at(ENTRANCE)),
        endpoints: endpoints.iter().map(|endpoint| at(endpoint)).collect(),
        reachable: BTreeSet::new(),
    }
}

#[test]
fn a_flow_belongs_to_an_endpoint_that_serves() {
    let pods = || served(&["10.244.1.7:5353", "10.244.2.8:5353", "[fd00:244:1::7]:5353"]);
    let none = || served(&[]);
    let six_only = || served(&["[fd00:244:1::7]:5353"]);
    for (known, answers, stale, why) in [
        (pods(), "10.244.2.8:5353", false, "one of its Pods"),
        (pods(), "10.244.1.9:5353", true, "a Pod that is gone"),
        (pods(), "10.244.2.8:5354", true, "another port of a Pod"),
        (pods(), NODE, true, "refused before a Pod was there"),
        (
            none(),
            "10.244.1.9:5353",
            true,
            "a Pod that is gone, the last",
        ),
        (none(), NODE, false, "refused, as a new one would be"),
        (six_only(), "10.244.1.9:5353", true, "no Pod of this family"),
        (
            six_only(),
            NODE,
            false,
            "refused, for want of one of this family",
        ),
        (pods(), ENTRANCE, false, "a virtual server of ipvs"),
        (none(), ENTRANCE, false, "a virtual server of ipvs"),
        (Frontend::Retired, ENTRANCE, true, "its Service is gone"),
        (
            Frontend::Retired,
            "10.244.2.8:5353",
            true,
            "its Service is gone",
        ),
        (Frontend::Retired, NODE, false, "the host's own"),
    ] {
        let view = view(&[(NODE, known)]);
        assert_eq!(view.is_stale(&flow(NODE, answers)), stale, "{why}");
    }
}

/// A client that keeps sending is refused again at once, so each sweep would delete
/// its flow anew.
#[test]
fn with_policy_local_a_node_without_endpoints_leaves_the_refused_alone() {
    let view = view(&[(NODE, served_elsewhere(&["10.244.2.8:5353"]))]);
    assert!(!view.is_stale(&flow(NODE, NODE)));
    assert!(view.is_stale(&flow(NODE, "10.244.1.9:5353")), "a dead Pod");
    assert!(
        !view.is_stale(&flow(NODE, "10.244.2.8:5353")),
        "a client in the cluster gets Pods of other nodes too"
    );
}

#[test]
fn ipv6_is_judged_alike() {
    let view = view(&[(NODE6, served(&["10.244.1.7:5353", "[fd00:244:1::7]:5353"]))]);
    assert!(!view.is_stale(&flow(NODE6, "[fd00:244:1::7]:5353")));
    assert!(view.is_stale(&flow(NODE6, "[fd00:244:1::8]:5353")));
    assert!(view.is_stale(&flow(NODE6, NODE6)));
}

#[test]
fn a_pod_in_the_hosts_network_answers_without_a_rewrite() {
    let own = view(&[
        (NODE, served(&[NODE, "192.0.2.12:53"])),
        ("203.0.113.5:53", served(&[NODE, "192.0.2.12:53"])),
    ]);
    assert!(!own.is_stale(&flow(NODE, NODE)));
    let other_address = flow("203.0.113.5:53", "203.0.113.5:53");
    assert!(!own.is_stale(&other_address), "its socket is bound to all");
    let elsewhere = view(&[(NODE, served(&["192.0.2.12:53"]))]);
    assert!(elsewhere.is_stale(&flow(NODE, NODE)), "on another node");
    let other_port = view(&[(NODE, served(&["192.0.2.11:5353"]))]);
    assert!(other_port.is_stale(&flow(NODE, NODE)), "on another port");
}

#[test]
fn what_is_not_known_is_not_judged() {
    let view = view(&[(NODE, served(&[]))]);
    for other in ["192.0.2.11:54", "192.0.2.12:53", "10.96.0.10:53"] {
        assert!(!view.is_stale(&flow(other, "10.244.1.9:5353")), "{other}");
    }
    assert!(!View::default().is_stale(&flow(NODE, "10.244.1.9:5353")));
}

prop_compose! {
    /// Few values, so that they often meet.
    fn any_socket()(host in 1..4_u8, port in 53..55_u16, v4 in any::<bool>()) -> SocketAddr {
        if v4 {
            SocketAddr::from(([192, 0, 2, host], port))
        } else {
            SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(host)], port))
        }
    }
}

fn any_frontend() -> impl Strategy<Value = Frontend> {
    prop_oneof![
        Just(Frontend::Retired),
        proptest::collection::btree_set(any_socket(), 0..4).prop_map(behind),
        (
            proptest::collection::btree_set(any_socket(), 0..4),
            any::<bool>()
        )
            .prop_map(|(endpoints, first)| Frontend::Served {
                entrance: Some(at(ENTRANCE)),
                reachable: endpoints.iter().take(usize::from(first)).copied().collect(),
                endpoints,
            }),
    ]
}

fn any_view() -> impl Strategy<Value = View> {
    let frontends = proptest::collection::btree_map(any_socket(), any_frontend(), 0..4);
    let own = proptest::collection::btree_set(any_socket().prop_map(|s| s.ip()), 0..3);
    (frontends, own).prop_map(|(frontends, own)| View { frontends, own })
}

proptest! {
    #[test]
    fn only_flows_to_our_frontends_can_be_stale(
        view in any_view(), destination in any_socket(), answers in any_socket(),
    ) {
        let stale = view.is_stale(&flow_between(destination, answers));
        prop_assert!(!stale || view.frontends.contains_key(&destination));
        prop_assert!(!stale || view.addresses().contains(&destination.ip()));
    }

    #[test]
    fn a_flow_to_a_serving_endpoint_is_never_stale(
        mut view in any_view(), destination in any_socket(),
        endpoints in proptest::collection::btree_set(any_socket(), 1..4),
    ) {
        view.frontends.insert(destination, behind(endpoints.clone()));
        let same_family = |e: &&SocketAddr| e.is_ipv4() == destination.is_ipv4();
        for endpoint in endpoints.iter().filter(same_family) {
            prop_assert!(!view.is_stale(&flow_between(destination, *endpoint)));
        }
    }

    /// So deleting ends: what a client gets after its stale flow was deleted, a
    /// serving endpoint or, where there is none, a refusal, is not stale.
    #[test]
    fn what_replaces_a_stale_flow_is_not_stale(
        view in any_view(), destination in any_socket(), pick in any::<prop::sample::Index>(),
    ) {
        let next = match view.frontends.get(&destination) {
            Some(Frontend::Served { reachable, .. }) => {
                let usable: Vec<&SocketAddr> =
                    reachable.iter().filter(|e| e.is_ipv4() == destination.is_ipv4()).collect();
                if usable.is_empty() { destination } else { *usable[pick.index(usable.len())] }
            }
            _ => destination,
        };
        prop_assert!(!view.is_stale(&flow_between(destination, next)));
    }

    #[test]
    fn a_new_endpoint_makes_no_rewritten_flow_stale(
        mut view in any_view(), destination in any_socket(), answers in any_socket(),
        endpoints in proptest::collection::btree_set(any_socket(), 0..4), new in any_socket(),
    ) {
        let flow = flow_between(destination, answers);
        view.frontends.insert(destination, behind(endpoints.clone()));
        let before = view.is_stale(&flow);
        let more = endpoints.into_iter().chain([new]).collect();
        view.frontends.insert(destination, behind(more));
        prop_assert!(!flow.is_rewritten() || before || !view.is_stale(&flow));
    }
}
