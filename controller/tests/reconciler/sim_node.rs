//! One node of the laws: what it knows, and the real decisions of its agent. All that the
//! laws use of the agent is here.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use highwire_agent::{
    config::Policy,
    decide::{Decision, decide},
    facts::{
        Facts,
        addresses::HostAddress,
        listener_history::Listeners,
        listeners::Listener,
        node::NodeFacts,
        pods::{LocalPod, PodPort},
        service_proxy::ServiceProxy,
        services::{OurService, Services},
        sysctls::Sysctls,
    },
    report::Report,
};
use highwire_api::{
    ClassPolicy, Family, LoadBalancerNode, LoadBalancerNodeSpec, PortKey, Protocol, ServiceKey,
    ServiceSpec,
    arbitration::Rank,
    names::{ENABLED_LABEL, ENABLED_VALUE},
    node::{ConflictReason, ProxyMode},
};
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

use crate::objects::{node, object};

/// A node with the agent's decisions.
pub struct SimNode {
    pub number: u8,
    pub object: Value,
    pub alive: bool,
    pub index: Services,
    /// The versions of the Services it has read.
    pub read: BTreeMap<ServiceKey, Value>,
    pub listeners: BTreeSet<u16>,
    pub host_ports: BTreeSet<u16>,
    pub decision: Decision,
    /// What the Services asked for when that was decided, and the node's labels.
    pub decided_on: (BTreeMap<ServiceKey, ServiceSpec>, Value),
    /// Its LoadBalancerNode.
    pub reported: Option<Value>,
}

fn port_key(port: u16) -> PortKey {
    PortKey::new(Protocol::Tcp, port.into()).unwrap()
}

impl SimNode {
    pub fn new(number: u8) -> Self {
        let mut object = node(number);
        object["metadata"]["labels"][ENABLED_LABEL] = json!(ENABLED_VALUE);
        let mut index = Services::new(ClassPolicy::DefaultAndOurs);
        index.absorb(Event::Init);
        index.absorb(Event::InitDone);
        Self {
            number,
            object,
            alive: true,
            index,
            read: BTreeMap::new(),
            listeners: BTreeSet::new(),
            host_ports: BTreeSet::new(),
            decision: Decision::default(),
            decided_on: (BTreeMap::new(), json!(null)),
            reported: None,
        }
    }

    pub fn name(&self) -> String {
        format!("n{}", self.number)
    }

    pub fn node_facts(&self) -> NodeFacts {
        NodeFacts::of(&serde_json::from_value(self.object.clone()).unwrap())
    }

    /// Takes in what happened to Services since the last time.
    pub fn read(&mut self, services: &BTreeMap<ServiceKey, Value>, version: u64) {
        for (key, object) in services {
            if self.read.get(key) != Some(object) {
                let service = serde_json::from_value(object.clone()).unwrap();
                self.index.absorb(Event::Apply(service));
            }
        }
        for (key, object) in &self.read {
            if !services.contains_key(key) {
                let mut object = object.clone();
                object["metadata"]["resourceVersion"] = json!(version.to_string());
                let service = serde_json::from_value(object).unwrap();
                self.index.absorb(Event::Delete(service));
            }
        }
        self.read = services.clone();
    }

    pub fn decide(&mut self) {
        let address = |address: IpAddr| HostAddress {
            address,
            interface: "eth0".into(),
            devices: BTreeSet::new(),
            global: true,
            on_default_route: true,
        };
        let node = self.node_facts();
        let host_addresses: Vec<HostAddress> =
            node.addresses.iter().copied().map(address).collect();
        let open = self.listeners.iter().map(|port| Listener {
            protocol: Protocol::Tcp,
            bound: ([0, 0, 0, 0], *port).into(),
            v6_only: false,
            device: None,
            uid: 0,
            inode: u32::from(*port),
        });
        let listeners = Listeners {
            open: open.collect(),
            held: Vec::new(),
        };
        let pod = |port: &u16| LocalPod {
            name: format!("kube-system/p{port}"),
            namespace: "kube-system".into(),
            labels: BTreeMap::new(),
            host_network: false,
            ready: true,
            ports: vec![PodPort {
                name: None,
                container: port_key(*port),
                host: Some((port_key(*port), None)),
            }],
        };
        let pods = self
            .host_ports
            .iter()
            .map(|port| (port.to_string(), pod(port)));
        let decision = decide(&Facts {
            services: self.index.known().unwrap(),
            node: &node,
            addresses: &host_addresses,
            pods: &pods.collect(),
            slices: None,
            listeners: &listeners,
            sysctls: &Sysctls {
                forwarding: Family::ALL.into(),
                ..Sysctls::default()
            },
            proxy: &ServiceProxy {
                mode: Some(ProxyMode::Nftables),
                failing: None,
            },
            policy: &Policy::default(),
            left_out: &BTreeMap::new(),
        });
        self.check_step(&decision);
        let ours = self.ours().into_iter();
        let specs = ours.map(|(key, ours)| (key.clone(), ours.spec.clone()));
        self.decided_on = (specs.collect(), self.object.clone());
        self.decision = decision;
    }

    /// The Services of ours that it has read.
    fn ours(&self) -> BTreeMap<&ServiceKey, &OurService> {
        let services = self.index.known().unwrap().values();
        let ours = services.filter_map(|it| Some((&it.key, it.ours.as_deref()?)));
        ours.collect()
    }

    /// The laws that hold at every step of an agent.
    pub fn check_step(&self, decision: &Decision) {
        let wanted = self.ours();
        let mut given = BTreeSet::new();
        for port in decision
            .served
            .iter()
            .flat_map(|key| wanted[key].spec.port_keys())
        {
            assert!(
                given.insert(port),
                "{port} is served twice on {}",
                self.name()
            );
        }
        let node = self.node_facts();
        for (key, asks) in &wanted {
            let selected = asks.spec.node_selector.matches(&node.labels);
            let mut refusals = decision.conflicts.iter().filter(|c| c.service == **key);
            let explained = refusals
                .clone()
                .any(|conflict| !conflict.held_by.is_empty());
            assert!(
                !selected || decision.served.contains(key) != explained,
                "{key} is neither served nor explained, or both, on {}",
                self.name()
            );

            // Who held all of its ports here, undisputed, only loses them for a cause.
            let here =
                |asks: &OurService, port| asks.advertised.rank(port, &node.addresses) == Rank::Here;
            let holds = asks.spec.ports.keys().all(|port| {
                let mut rivals = wanted.iter().filter(|(rival, _)| *rival != key);
                here(asks, *port) && !rivals.any(|(_, rival)| here(rival, *port))
            });
            let (specs, object) = &self.decided_on;
            let unchanged = specs.get(key) == Some(&asks.spec) && *object == self.object;
            let lost = self.decision.served.contains(key) && !decision.served.contains(key);
            if lost && holds && unchanged {
                assert!(
                    refusals.any(|conflict| conflict.reason != ConflictReason::HeldByService),
                    "{key} lost its port on {} to another Service: {:?}",
                    self.name(),
                    decision.conflicts
                );
            }
        }
    }

    /// Whether it serves the Service.
    pub fn serves(&self, key: &ServiceKey) -> bool {
        self.decision.served.contains(key)
    }

    /// The version of the newest Service it has read.
    pub fn observed(&self) -> u64 {
        self.index.observed().0
    }

    /// Reports what was decided.
    pub fn report(&mut self) -> Value {
        let report = Report {
            node_uid: String::new(),
            decision: self.decision.clone().into(),
            revision: self.index.revision(),
            observed: self.index.observed(),
            proxy_mode: None,
            awaited: 0,
        };
        let mut object = LoadBalancerNode::new(&self.name(), LoadBalancerNodeSpec {});
        object.status = Some(report.status(None, "2026-01-02T03:04:05Z".parse().unwrap()));
        let object = json!(object);
        self.reported = Some(object.clone());
        object
    }

    /// The Services that the node refuses, with the causes, as it reported them.
    pub fn refusals(&self) -> Vec<(ServiceKey, String)> {
        let reported = self.reported.as_ref();
        let reported = reported.map(object::<LoadBalancerNode>);
        let conflicts = reported
            .and_then(|report| report.status)
            .map(|status| status.conflicts);
        let conflicts = conflicts.into_iter().flatten();
        conflicts
            .map(|it| {
                (
                    it.service,
                    format!("{}/{} is held by {}", it.port, it.protocol, it.held_by),
                )
            })
            .collect()
    }
}
