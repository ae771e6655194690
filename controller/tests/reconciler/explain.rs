//! What people are shown of Services and nodes, by the whole reconciler.

use std::time::Duration;

use highwire_api::names::{EXCLUDE_LABEL, MAX_ADDRESSES_ANNOTATION};
use highwire_controller::{
    explain::{NodeState, ServiceExplanation, State},
    leading::Role,
};
use serde_json::json;

use crate::objects::{key, managed_by, service};
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);

impl World {
    fn explained(&self, name: &str) -> ServiceExplanation {
        self.reconciler.explain(&key(name), self.now).unwrap()
    }

    /// Why the node is not listed for the Service; empty if it is.
    fn why_not(&self, name: &str, node: &str) -> String {
        let nodes = self.explained(name).nodes.into_iter();
        let mut verdicts = nodes.filter(|verdict| verdict.node == node);
        verdicts.next().unwrap().why.unwrap_or_default()
    }
}

#[test]
fn each_node_says_why_it_is_not_listed() {
    let mut world = World::new();
    world.put(service("web"));
    (1..=4).for_each(|number| world.live(number));
    world.node(2, |node| {
        node["metadata"]["labels"][EXCLUDE_LABEL] = json!("")
    });
    world.report(3, world.version(), |report| {
        report["status"]["conflicts"] = json!([{"service": "shop/web", "protocol": "TCP",
            "port": 80, "reason": "HostListener", "heldBy": "socket 0.0.0.0:80 uid 0"}]);
    });
    // It has seen nothing since before the Service.
    world.report(4, 1, |_| {});
    world.pass(5 * SECOND);
    assert_eq!(world.advertised("web"), ["192.0.2.1:80"]);
    let explained = world.explained("web");
    assert_eq!(explained.line.state, State::Conflict);
    assert_eq!(explained.line.addresses, ["192.0.2.1"]);
    assert_eq!(
        explained.line.why,
        ["80/TCP is held by socket 0.0.0.0:80 uid 0 on n3"]
    );
    assert_eq!(explained.nodes[0].listed, ["192.0.2.1"]);
    assert_eq!(world.why_not("web", "n1"), "");
    assert!(world.why_not("web", "n2").contains(EXCLUDE_LABEL));
    assert_eq!(
        world.why_not("web", "n3"),
        "80/TCP is held by socket 0.0.0.0:80 uid 0"
    );
    assert!(world.why_not("web", "n4").contains("has not caught up"));
}

#[test]
fn who_is_ready_and_not_listed_is_shown_the_limit() {
    let mut world = World::new();
    let mut web = service("web");
    web["metadata"]["annotations"] = json!({MAX_ADDRESSES_ANNOTATION: "1"});
    world.put(web);
    (1..=2).for_each(|number| world.live(number));
    world.all_report([1, 2]);
    world.pass(5 * SECOND);
    let whys = ["n1", "n2"].map(|node| world.why_not("web", node));
    assert_eq!(whys.iter().filter(|why| why.is_empty()).count(), 1);
    let limited = |why: &&String| why.contains(MAX_ADDRESSES_ANNOTATION);
    assert_eq!(whys.iter().filter(limited).count(), 1, "{whys:?}");
    assert_eq!(world.explained("web").line.state, State::Served);
}

#[test]
fn the_overview_is_the_same_in_a_follower() {
    let mut world = World::new();
    world.put(service("web"));
    world.put(service("waits"));
    let mut foreign = service("foreign");
    foreign["status"]["loadBalancer"]["ingress"] = json!([{"ip": "198.51.100.7"}]);
    foreign["metadata"]["managedFields"] = managed_by("cloud");
    world.put(foreign);
    world.live(1);
    world.report(1, world.version(), |report| {
        report["status"]["services"] = json!(1);
        report["status"]["proxyMode"] = json!("ipvs");
        report["status"]["conflicts"] = json!([{"service": "shop/waits", "protocol": "TCP",
            "port": 80, "reason": "HeldByService", "heldBy": "Service shop/web"}]);
    });
    world.pass(5 * SECOND);
    let overview = world.reconciler.overview();
    let states = overview.services.iter();
    let states: Vec<_> = states
        .map(|line| (line.service.to_string(), line.state))
        .collect();
    let state = |name: &str, state| (format!("shop/{name}"), state);
    assert_eq!(
        states,
        [
            state("foreign", State::Foreign),
            state("waits", State::Conflict),
            state("web", State::Served)
        ]
    );
    let node = &overview.nodes[0];
    assert_eq!((node.state, node.services), (NodeState::Ready, 1));
    assert_eq!(node.proxy_mode, Some("ipvs"));
    assert_eq!(
        node.refused,
        ["80/TCP of shop/waits is held by Service shop/web"]
    );
    assert_eq!(overview.ports.len(), 1, "{:?}", overview.ports);
    assert_eq!(overview.ports[0].holders(), "shop/web (1 address)");
    assert_eq!(overview.ports[0].losers(), "shop/waits (1 node)");
    world.reconciler.begin(Role::Follow);
    assert_eq!(world.reconciler.overview(), overview);
}
