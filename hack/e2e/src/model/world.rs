//! What exists, as far as it decides who answers where. Plain values.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;

/// Everything that was read at about the same time.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// All Services, by `namespace/name`.
    pub services: BTreeMap<String, Service>,
    /// All Pods that have a node and an address.
    pub pods: Vec<Pod>,
    /// All Nodes, by name.
    pub nodes: BTreeMap<String, Node>,
    /// The nodes for which there is an agent's Lease.
    pub leases: BTreeSet<String>,
    /// What is reported, by node.
    pub reports: BTreeMap<String, NodeReport>,
}

/// A protocol that is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// As the API has it; others are not modelled.
    pub fn of(text: &str) -> Option<Self> {
        match text {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// A Service, of whatever type.
#[derive(Clone, Debug, Default)]
pub struct Service {
    /// `namespace/name`.
    pub key: String,
    /// Its namespace.
    pub namespace: String,
    /// When it was created.
    pub created: Timestamp,
    /// Whether its type is LoadBalancer, and it is not being deleted.
    pub is_load_balancer: bool,
    /// `spec.loadBalancerClass`.
    pub class: Option<String>,
    /// Whether each of its families is IPv6, the primary one first.
    pub families: Vec<bool>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// The labels of its Pods.
    pub selector: BTreeMap<String, String>,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `loadBalancerSourceRanges`.
    pub ranges: Vec<IpNet>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `spec.publishNotReadyAddresses`.
    pub publishes_not_ready: bool,
    /// `spec.healthCheckNodePort`.
    pub health_check_node_port: Option<u16>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// `status.loadBalancer.ingress`.
    pub ingress: Vec<IngressEntry>,
    /// Who wrote that.
    pub author: Author,
    /// Its conditions, by type.
    pub conditions: BTreeMap<String, Condition>,
}

/// Who wrote an ingress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Author {
    /// There is none.
    #[default]
    Nobody,
    /// Our controller.
    Highwire,
    /// Another program.
    Other,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
    /// The Pods' port.
    pub target: u16,
    /// Its NodePort, if it has one.
    pub node_port: Option<u16>,
}

/// An entry of an ingress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngressEntry {
    /// Its address.
    pub ip: IpAddr,
    /// Whether kube-proxies take what comes for that address: `ipMode` is not `Proxy`.
    pub is_vip: bool,
    /// Its ports that have no error.
    pub ports: BTreeSet<(Protocol, u16)>,
}

/// A condition of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `True` or `False`.
    pub status: String,
    /// Its reason.
    pub reason: String,
}

/// A Pod with an echo server.
#[derive(Clone, Debug)]
pub struct Pod {
    /// The name it answers with.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its node.
    pub node: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it is ready, and not being deleted.
    pub ready: bool,
    /// Whether it is in its node's network.
    pub host_network: bool,
    /// The ports it listens at.
    pub ports: BTreeSet<(Protocol, u16)>,
    /// Those that it claims of its node.
    pub host_ports: BTreeSet<(Protocol, u16)>,
}

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether its condition `Ready` is True or missing.
    pub ready: bool,
    /// The addresses in its status, each with whether it is an ExternalIP.
    pub addresses: Vec<(IpAddr, bool)>,
    /// The global addresses of its interface.
    pub host_addresses: BTreeSet<IpAddr>,
    /// Its listening sockets.
    pub listeners: Vec<Listener>,
    /// Its agent.
    pub agent: AgentState,
    /// Whether its kernel has our table.
    pub has_table: bool,
    /// kube-proxy's mode, as our report calls it.
    pub proxy_mode: String,
    /// What its agent explains.
    pub explained: Option<Explained>,
}

/// What an agent's process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentState {
    /// It answers at its admin port.
    Running,
    /// It runs and does not answer.
    Silent,
    /// There is none.
    None,
}

/// A listening socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its port.
    pub port: u16,
    /// The one address it is bound to.
    pub address: Option<IpAddr>,
    /// Else the families it is bound to: IPv4, IPv6.
    pub families: (bool, bool),
}

impl Listener {
    /// Whether it takes what comes for that address and port.
    pub fn covers(&self, at: IpAddr, protocol: Protocol, port: u16) -> bool {
        (self.protocol, self.port) == (protocol, port)
            && match self.address {
                Some(address) => address == at,
                None if at.is_ipv6() => self.families.1,
                None => self.families.0,
            }
    }
}

/// A LoadBalancerNode.
#[derive(Clone, Debug, Default)]
pub struct NodeReport {
    /// The condition `Ready`, as `status reason: message`.
    pub ready: String,
    /// How many Services it says are served.
    pub services: u64,
    /// Refused ports: Service, protocol, port and reason.
    pub conflicts: BTreeSet<(String, String, u16, String)>,
    /// The addresses it serves at.
    pub addresses: BTreeSet<IpAddr>,
    /// kube-proxy's mode.
    pub proxy_mode: String,
}

/// An answer of an agent's `explain`.
#[derive(Clone, Debug, Default)]
pub struct Explained {
    /// The state of its table, and all that it says of it.
    pub table: (String, String),
    /// What becomes of each port of each Service: `served`, `refused REASON` or `notServed`.
    pub rows: BTreeMap<(String, String, u16), String>,
}

impl Node {
    /// Whether it has opted in.
    pub fn is_enabled(&self) -> bool {
        self.labels.get("highwire.dev/enabled").map(String::as_str) == Some("true")
    }

    /// Whether it may be advertised at all.
    pub fn is_excluded(&self) -> bool {
        let label = "node.kubernetes.io/exclude-from-external-load-balancers";
        self.labels.contains_key(label)
    }

    /// Whether it serves: it has opted in, and its agent works.
    pub fn is_active(&self) -> bool {
        self.is_enabled() && self.agent == AgentState::Running
    }

    /// The address where its kube-proxy serves NodePorts in every mode.
    pub fn primary(&self, v6: bool) -> Option<IpAddr> {
        let mut addresses = self.addresses.iter().filter(|(_, external)| !external);
        let found = addresses.find(|(address, _)| address.is_ipv6() == v6);
        found.map(|(address, _)| *address)
    }

    /// All of its own addresses.
    pub fn own_addresses(&self) -> BTreeSet<IpAddr> {
        let named = self.addresses.iter().map(|(address, _)| *address);
        named.chain(self.host_addresses.iter().copied()).collect()
    }
}

impl Service {
    /// Whether Highwire has to serve it: design §4, "Whose Service is it?".
    pub fn is_ours(&self) -> bool {
        self.is_load_balancer
            && match self.class.as_deref() {
                Some(class) => class == "highwire.dev/node",
                None => self.author != Author::Other || self.is_adopted(),
            }
    }

    /// Whether another program's addresses in a Service of ours were left as they are.
    pub fn is_abandoned(&self) -> bool {
        self.is_ours() && self.author == Author::Other
    }

    fn is_adopted(&self) -> bool {
        self.annotation("adopt") == Some("true")
    }

    /// The value of an annotation of Highwire's.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        let value = self.annotations.get(&format!("highwire.dev/{name}"));
        value.map(String::as_str)
    }

    /// Whether it needs NodePorts that it has not.
    pub fn is_unsupported(&self) -> bool {
        let mut ports = self.ports.iter();
        (self.external_local || self.internal_local) && ports.any(|port| port.node_port.is_none())
    }

    /// Whether its node selector matches: pairs `key=value` and `key!=value` only.
    pub fn selects_node(&self, node: &Node) -> bool {
        let terms = self.annotation("node-selector").unwrap_or_default();
        let mut terms = terms.split(',').filter(|term| !term.is_empty());
        terms.all(|term| match term.split_once("!=") {
            Some((key, value)) => node.labels.get(key).map(String::as_str) != Some(value),
            None => {
                let (key, value) = term.split_once('=').unwrap_or((term, ""));
                node.labels.get(key).map(String::as_str) == Some(value)
            }
        })
    }

    /// How many nodes it may list.
    pub fn max_addresses(&self) -> usize {
        let limit = self.annotation("max-addresses");
        limit.and_then(|text| text.parse().ok()).unwrap_or(64)
    }
}
