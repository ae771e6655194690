//! Laws of agents and controller together: the real decisions of both, on three nodes,
//! with the API server of [`crate::world`] between them.
//!
//! What the agents report makes the controller write statuses, and what it wrote says
//! who holds a port, by which the agents decide. Every node reads the Services and
//! reports at moments of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use highwire_api::{ServiceKey, names::NODE_SELECTOR_ANNOTATION};
use highwire_controller::facts::service::{PORTS_ERROR, SERVING};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{
    objects::{key, service},
    sim_node::SimNode,
    world::World,
};

const NODES: [u8; 3] = [1, 2, 3];
const PORTS: [u16; 3] = [80, 443, 8080];
const SECOND: Duration = Duration::from_secs(1);

/// Something that happens.
#[derive(Clone, Debug)]
enum Happening {
    /// A Service is created, or asks for something else now.
    Put {
        name: u8,
        ports: BTreeSet<u16>,
        edge_only: bool,
        age: u8,
    },
    Delete(u8),
    /// A program on the host listens, or ends.
    Listener(u8, u16, bool),
    /// A Pod has a hostPort, or ends.
    HostPort(u8, u16, bool),
    /// A Service has this NodePort, or none does.
    NodePort(Option<u16>),
    /// The node is in the pool that some Services select, or is not.
    Edge(u8, bool),
    /// The agent hangs.
    Kill(u8),
    Revive(u8),
    /// The agent reads all Services, acts and reports.
    Sync(u8),
    Pass(u16),
    /// Another controller takes over.
    Restart,
}

fn any_happening() -> impl Strategy<Value = Happening> {
    let node = || prop::sample::select(&NODES[..]);
    let port = || prop::sample::select(&PORTS[..]);
    let ports = prop::collection::btree_set(port(), 1..3);
    prop_oneof![
        6 => (0..5_u8, ports, prop::bool::weighted(0.3), 0..3_u8).prop_map(
            |(name, ports, edge_only, age)| Happening::Put { name, ports, edge_only, age }
        ),
        2 => (0..5_u8).prop_map(Happening::Delete),
        3 => (node(), port(), any::<bool>()).prop_map(|(n, p, on)| Happening::Listener(n, p, on)),
        2 => (node(), port(), any::<bool>()).prop_map(|(n, p, on)| Happening::HostPort(n, p, on)),
        1 => prop::option::of(port()).prop_map(Happening::NodePort),
        1 => (node(), any::<bool>()).prop_map(|(n, on)| Happening::Edge(n, on)),
        // One stays alive: where nothing is heard, nobody is declared dead.
        1 => (2..4_u8).prop_map(Happening::Kill),
        1 => (2..4_u8).prop_map(Happening::Revive),
        10 => node().prop_map(Happening::Sync),
        6 => (1..1500_u16).prop_map(Happening::Pass),
        1 => Just(Happening::Restart),
    ]
}

/// A cluster in which things happen.
struct Cluster {
    world: World,
    nodes: Vec<SimNode>,
    created: u32,
    /// How often each cause came up, by UID of the Service and words.
    came_up: BTreeMap<(String, String), usize>,
    /// How often it may have come up besides, because a node did.
    slack: usize,
}

impl Cluster {
    fn new() -> Self {
        let mut cluster = Self {
            world: World::new(),
            nodes: NODES.into_iter().map(SimNode::new).collect(),
            created: 0,
            came_up: BTreeMap::new(),
            slack: 0,
        };
        for number in NODES {
            cluster.tell_node(number);
            cluster.world.renews(number);
        }
        cluster
    }

    fn node(&mut self, number: u8) -> &mut SimNode {
        &mut self.nodes[usize::from(number) - 1]
    }

    fn tell_node(&mut self, number: u8) {
        let object = self.node(number).object.clone();
        self.world.node_object(&object);
    }

    fn happen(&mut self, happening: Happening) {
        let set = |ports: &mut BTreeSet<u16>, port, on| {
            if on {
                ports.insert(port)
            } else {
                ports.remove(&port)
            };
        };
        match happening {
            Happening::Put {
                name,
                ports,
                edge_only,
                age,
            } => self.put(name, &ports, edge_only, age),
            Happening::Delete(name) => self.delete(&format!("s{name}")),
            Happening::Listener(n, port, on) => set(&mut self.node(n).listeners, port, on),
            Happening::HostPort(n, port, on) => set(&mut self.node(n).host_ports, port, on),
            Happening::NodePort(port) => self.node_port(port),
            Happening::Edge(number, on) => {
                let pool = if on { "edge" } else { "core" };
                self.node(number).object["metadata"]["labels"]["pool"] = json!(pool);
                self.tell_node(number);
                self.slack += 1;
            }
            Happening::Kill(number) => {
                self.node(number).alive = false;
                self.world.kill(number);
                self.slack += 1;
            }
            Happening::Revive(number) => {
                self.node(number).alive = true;
                self.set_ready(number, "True");
                self.world.renews(number);
            }
            Happening::Sync(number) => self.sync(number),
            Happening::Pass(ms) => self.world.pass(Duration::from_millis(ms.into())),
            Happening::Restart => self.restart(),
        }
    }

    /// What the kubelet says, or the node lifecycle controller when that is silent.
    fn set_ready(&mut self, number: u8, status: &str) {
        self.node(number).object["status"]["conditions"][0]["status"] = json!(status);
        self.tell_node(number);
    }

    fn put(&mut self, name: u8, ports: &BTreeSet<u16>, edge_only: bool, age: u8) {
        let name = format!("s{name}");
        let change = |object: &mut Value| {
            let ports = ports.iter().map(|port| json!({"port": port}));
            object["spec"]["ports"] = ports.collect();
            let selector = edge_only.then_some("pool=edge");
            object["metadata"]["annotations"] = selector.map_or(
                json!({}),
                |selector| json!({NODE_SELECTOR_ANNOTATION: selector}),
            );
        };
        if self.world.services().contains_key(&key(&name)) {
            self.world.edit(&name, change);
        } else {
            self.created += 1;
            let mut object = service(&name);
            object["metadata"]["uid"] = json!(format!("uid-{}", self.created));
            object["metadata"]["creationTimestamp"] = json!(format!("2026-01-02T03:04:0{age}Z"));
            change(&mut object);
            self.world.put(object);
        }
        // What is reported of what it was may come up anew for what it is now.
        let uid = self.uid(&key(&name));
        let causes = self.causes().into_iter();
        for cause in causes.filter(|cause| Some(&cause.0) == uid.as_ref()) {
            *self.came_up.entry(cause).or_default() += 1;
        }
    }

    fn node_port(&mut self, port: Option<u16>) {
        match port {
            None => self.delete("np"),
            Some(port) => {
                let mut object = service("np");
                object["spec"]["type"] = json!("NodePort");
                object["spec"]["ports"] = json!([{"port": 9, "nodePort": port}]);
                self.world.put(object);
            }
        }
    }

    fn delete(&mut self, name: &str) {
        if self.world.services().contains_key(&key(name)) {
            self.world.delete(name);
        }
    }

    fn sync(&mut self, number: u8) {
        let (services, version) = (self.world.services().clone(), self.world.version());
        let node = self.node(number);
        if !node.alive {
            return;
        }
        node.read(&services, version);
        node.decide();
        let known = self.causes();
        let report = self.node(number).report();
        for cause in self.causes().difference(&known) {
            *self.came_up.entry(cause.clone()).or_default() += 1;
        }
        self.world.report_object(&report);
    }

    /// The refused Services by UID, with the texts that the nodes reported.
    fn causes(&self) -> BTreeSet<(String, String)> {
        let refusals = self.nodes.iter().flat_map(SimNode::refusals);
        refusals
            .filter_map(|(key, cause)| Some((self.uid(&key)?, cause)))
            .collect()
    }

    fn uid(&self, key: &ServiceKey) -> Option<String> {
        let object = self.world.services().get(key)?;
        Some(object["metadata"]["uid"].as_str().unwrap().to_owned())
    }

    fn restart(&mut self) {
        self.world.restart();
        let nodes = &self.nodes;
        self.world.list_nodes(|world| {
            for node in nodes {
                world.node_object(&node.object);
                if let Some(report) = &node.reported {
                    world.report_object(report);
                }
                let ago = if node.alive {
                    Duration::ZERO
                } else {
                    60 * SECOND
                };
                world.lease_of(node.number, ago, None);
            }
        });
    }

    /// Lets everyone act until nobody has anything to do.
    fn come_to_rest(&mut self) {
        self.world.pass(16 * SECOND);
        // Two of three that fall silent are no proof; that their Nodes do is one.
        for number in NODES {
            if !self.node(number).alive {
                self.set_ready(number, "Unknown");
            }
        }
        self.world.pass(16 * SECOND);
        for _ in 0..30 {
            let before = self.world.version();
            NODES.into_iter().for_each(|number| self.sync(number));
            // Longer than it takes until a lack of addresses is explained.
            self.world.pass(3 * SECOND);
            if self.world.version() == before {
                let writes = self.world.writes.len();
                self.world.pass(3 * SECOND);
                assert_eq!(
                    self.world.writes.len(),
                    writes,
                    "it writes while nothing happens"
                );
                return;
            }
        }
        panic!("it does not come to rest");
    }

    /// The laws that hold when nothing happens any more.
    fn check_rest(&self) {
        for (key, object) in self.world.services() {
            if &*key.name == "np" {
                continue;
            }
            let live = || self.nodes.iter().filter(|node| node.alive);
            let serving = live().filter(|node| node.serves(key));
            let mut ports: Vec<u64> = object["spec"]["ports"]
                .as_array()
                .unwrap()
                .iter()
                .map(|port| port["port"].as_u64().unwrap())
                .collect();
            ports.sort_unstable();
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            let expected: Vec<String> = serving
                .map(|node| format!("192.0.2.{}:{}", node.number, ports.join(",")))
                .collect();
            let advertised = self.world.advertised(&key.name);
            assert_eq!(advertised, expected, "{key}: advertised and served");

            let refusals: BTreeSet<String> = live()
                .flat_map(SimNode::refusals)
                .filter(|(refused, _)| refused == key)
                .map(|(_, cause)| cause)
                .collect();
            let condition = self.world.condition(&key.name);
            let is_true = condition
                .as_ref()
                .is_some_and(|text| text.starts_with("True"));
            assert_eq!(
                is_true,
                !refusals.is_empty(),
                "{key}: {condition:?} {refusals:?}"
            );
            // Who has no address says why, in one condition or the other.
            let serving = self.world.serving(&key.name);
            let is_false = serving.is_some_and(|text| text.starts_with("False"));
            assert!(
                if advertised.is_empty() {
                    is_false || is_true
                } else {
                    !is_false
                },
                "{key}: {advertised:?} {:?} {condition:?}",
                self.world.serving(&key.name)
            );
            self.check_events(key, &refusals);
        }
        self.check_conditions_begin_with_trouble();
        self.check_no_event_is_repeated();
    }

    /// Every conflict was announced, and its end too.
    fn check_events(&self, key: &ServiceKey, refusals: &BTreeSet<String>) {
        let uid = self.uid(key).unwrap();
        let mut said = BTreeSet::new();
        for event in self.world.events.iter().filter(|event| event.uid == uid) {
            match event.happened.reason {
                "PortConflict" => said.extend(causes_of(&event.happened.note)),
                "PortConflictResolved" => said.clear(),
                _ => {}
            }
        }
        assert!(
            said.is_superset(refusals),
            "{key}: {refusals:?} were not said"
        );
        let is_refused = !refusals.is_empty();
        assert_eq!(
            !said.is_empty(),
            is_refused,
            "{key}: its owner believes {said:?}"
        );
    }

    fn check_conditions_begin_with_trouble(&self) {
        let mut begun = BTreeSet::new();
        for write in &self.world.writes {
            let difference = &write.difference;
            for condition in difference.ports_error.iter().chain(&difference.serving) {
                let trouble = match condition.type_.as_str() {
                    PORTS_ERROR => "True",
                    SERVING => "False",
                    other => panic!("{other}"),
                };
                let known = !begun.insert((write.uid.clone(), condition.type_.clone()));
                assert!(
                    known || condition.status == trouble,
                    "{}: never was in trouble",
                    write.key
                );
            }
        }
    }

    fn check_no_event_is_repeated(&self) {
        let mut said = BTreeMap::<(String, String), usize>::new();
        for event in &self.world.events {
            if event.happened.reason == "PortConflict" {
                for cause in causes_of(&event.happened.note) {
                    *said.entry((event.uid.clone(), cause)).or_default() += 1;
                }
            }
        }
        for (cause, times) in said {
            let came_up = self.came_up.get(&cause).copied().unwrap_or(0) + self.slack;
            assert!(
                times <= came_up,
                "{cause:?} was said {times} times, came up {came_up}"
            );
        }
    }
}

/// The causes in the note of a `PortConflict`.
fn causes_of(note: &str) -> Vec<String> {
    let sentences = note
        .split("; ")
        .filter_map(|sentence| sentence.split_once(" on "));
    sentences.map(|(cause, _)| cause.to_owned()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, ..ProptestConfig::default() })]

    #[test]
    fn agents_and_controller_agree_and_explain(
        happenings in prop::collection::vec(any_happening(), 1..60)
    ) {
        let mut cluster = Cluster::new();
        for happening in happenings {
            cluster.happen(happening);
        }
        cluster.come_to_rest();
        cluster.check_rest();
    }
}

#[test]
fn the_older_of_two_is_served_and_the_younger_takes_over() {
    let mut cluster = Cluster::new();
    let ports = BTreeSet::from([80]);
    cluster.put(0, &ports, false, 1);
    cluster.put(1, &ports, false, 2);
    cluster.come_to_rest();
    cluster.check_rest();
    assert_eq!(cluster.world.advertised("s0").len(), 3);
    assert!(
        cluster
            .world
            .condition("s1")
            .unwrap()
            .starts_with("True HeldByService")
    );
    cluster.delete("s0");
    cluster.come_to_rest();
    cluster.check_rest();
    assert_eq!(cluster.world.advertised("s1").len(), 3);
    assert_eq!(cluster.nodes[0].observed(), cluster.world.version());
}
