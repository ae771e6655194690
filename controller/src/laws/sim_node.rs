//! One node of the laws: what it knows, and the real decisions of its agent.

use super::*;

/// A node with the agent's decisions.
pub(super) struct SimNode {
    pub(super) number: u8,
    pub(super) object: Value,
    pub(super) alive: bool,
    pub(super) index: ServiceIndex,
    /// The versions of the Services it has read.
    pub(super) read: BTreeMap<ServiceKey, Value>,
    pub(super) listeners: BTreeSet<u16>,
    pub(super) host_ports: BTreeSet<u16>,
    pub(super) decision: Decision,
    /// What the Services asked for when that was decided, and the node's labels.
    pub(super) decided_on: (BTreeMap<ServiceKey, ServiceSpec>, Value),
    pub(super) reported: Option<AgentReport>,
}

fn port_key(port: u16) -> PortKey {
    PortKey::new(Protocol::Tcp, port.into()).unwrap()
}

impl SimNode {
    pub(super) fn new(number: u8) -> Self {
        let mut object = node(number);
        object["metadata"]["labels"][ENABLED_LABEL] = json!(ENABLED_VALUE);
        let mut index = ServiceIndex::new(ClassPolicy::DefaultAndOurs);
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

    pub(super) fn name(&self) -> String {
        format!("n{}", self.number)
    }

    pub(super) fn node_facts(&self) -> NodeFacts {
        NodeFacts::of(&serde_json::from_value(self.object.clone()).unwrap())
    }

    /// Takes in what happened to Services since the last time.
    pub(super) fn read(&mut self, services: &BTreeMap<ServiceKey, Value>, version: u64) {
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

    pub(super) fn decide(&mut self) {
        let address = |address: IpAddr| HostAddress {
            address,
            interface: "eth0".into(),
            devices: std::collections::BTreeSet::new(),
            global: true,
            on_default_route: true,
        };
        let node = self.node_facts();
        let host_addresses: Vec<HostAddress> =
            node.addresses.iter().copied().map(address).collect();
        let listeners: Vec<Listener> = self
            .listeners
            .iter()
            .map(|port| Listener {
                protocol: Protocol::Tcp,
                bound: ([0, 0, 0, 0], *port).into(),
                v6_only: false,
                device: None,
                uid: 0,
                inode: u32::from(*port),
            })
            .collect();
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
        let wanted = self.index.wanted().unwrap();
        let decision = decide(&Facts {
            services: wanted,
            node: &node,
            host_addresses: &host_addresses,
            address_policy: &AddressPolicy::Default,
            host: HostFacts {
                listeners: &listeners,
                held: &[],
                reserved: &highwire_agent::reserved::ReservedPorts::default(),
                pods: &pods.collect(),
                occupied: self.index.occupied(),
            },
            left_out: &BTreeMap::new(),
        });
        self.check_step(&decision);
        let specs = wanted
            .iter()
            .map(|(key, wanted)| (key.clone(), wanted.spec.clone()));
        self.decided_on = (specs.collect(), self.object.clone());
        self.decision = decision;
    }

    /// The laws that hold at every step of an agent.
    pub(super) fn check_step(&self, decision: &Decision) {
        let wanted = self.index.wanted().unwrap();
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
        for (key, asks) in wanted {
            let selected = asks.spec.node_selector.matches(&node.labels);
            let mut refusals = decision.conflicts.iter().filter(|c| c.service == *key);
            let explained = refusals
                .clone()
                .any(|conflict| !conflict.held_by.is_empty());
            assert!(
                !selected || decision.served.contains(key) != explained,
                "{key} is neither served nor explained, or both, on {}",
                self.name()
            );

            // Who held all of its ports here, undisputed, only loses them for a cause.
            let here = |asks: &highwire_agent::decide::Wanted, port| {
                asks.holdings.tenure(port, &node.addresses) == Tenure::Here
            };
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

    /// Tells what was decided.
    pub(super) fn report(&mut self) -> AgentReport {
        let report = Report {
            node_uid: String::new(),
            readiness: Readiness::Programmed,
            decision: self.decision.clone(),
            revision: self.index.revision(),
            observed: self.index.observed(),
            proxy_mode: None,
        };
        let mut object = LoadBalancerNode::new(&self.name(), LoadBalancerNodeSpec {});
        object.status = Some(report.status(None, "2026-01-02T03:04:05Z".parse().unwrap()));
        let report = AgentReport::of(&object);
        self.reported = Some(report.clone());
        report
    }

    /// What the node refuses, as it reported it.
    pub(super) fn refusals(&self) -> impl Iterator<Item = (&ServiceKey, &Refusal)> {
        let reports = self.reported.iter();
        reports.flat_map(|report| {
            let conflicts = report.conflicts.iter();
            conflicts.flat_map(|(key, refusals)| refusals.iter().map(move |r| (key, r)))
        })
    }
}
