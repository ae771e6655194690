//! How a Kubernetes Service is read: whether it is ours and what it asks for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    net::IpAddr,
    num::NonZeroU16,
    sync::Arc,
    time::Duration,
};

use crate::{
    clients::{self, Clients},
    cluster_ips::ClusterIps,
    key::ServiceKey,
    names::{
        ADDRESS_TYPE_ANNOTATION, EXTERNAL_CLASS, LOAD_BALANCER_CLASS, MAX_ADDRESSES_ANNOTATION,
        NODE_SELECTOR_ANNOTATION,
    },
    ownership::{IngressAuthor, Manager, is_adopted},
    port::{Family, PortKey, Protocol},
    problem::Problem,
    selector::NodeSelector,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Service, ServicePort as ApiPort, ServiceSpec as ApiSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

/// Whether a Service without `spec.loadBalancerClass` is ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClassPolicy {
    /// Services without a class are ours, besides those of our class.
    #[default]
    DefaultAndOurs,
    /// Only Services of class `highwire.dev/node` are ours.
    OursOnly,
}

/// Which node addresses a Service's ingress lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AddressType {
    /// Per family: ExternalIPs if any serving node has one, else InternalIPs.
    #[default]
    Auto,
    /// Addresses of type ExternalIP only.
    ExternalIp,
    /// Addresses of type InternalIP only.
    InternalIp,
}

/// The Pods' port behind a Service port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TargetPort {
    /// The same number in every Pod.
    Number(NonZeroU16),
    /// The number each Pod gives this name to.
    Name(String),
}

/// One port of a Service, apart from its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, by which EndpointSlices refer to it; empty if it has none.
    pub name: Arc<str>,
    /// The Pods' port.
    pub target: TargetPort,
    /// The NodePort, if one is allocated.
    pub node_port: Option<NonZeroU16>,
}

/// Where a Service's traffic enters kube-proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// At the ClusterIP.
    ClusterIp,
    /// At the NodePort, which follows `externalTrafficPolicy` where the ClusterIP
    /// follows `internalTrafficPolicy`. Every port has a NodePort.
    NodePort,
}

/// Which nodes' Pods get traffic from outside (`externalTrafficPolicy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Those of all nodes.
    Cluster,
    /// Those of the node that the client connects to; they see the client's address. A
    /// node without a ready one is not advertised.
    Local,
}

/// Whether a client keeps its Pod (`spec.sessionAffinity`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affinity {
    /// Each connection may get another one.
    None,
    /// By its address (`ClientIP`), until it has made no connection for so long.
    Client {
        /// From 1 s to a day.
        timeout: Duration,
    },
}

/// What `timeoutSeconds` of `ClientIP` is by default (`DefaultClientIPServiceAffinitySeconds` of
/// `k8s.io/api/core/v1`).
pub const AFFINITY_TIMEOUT: Duration = Duration::from_secs(10_800);

/// What a Service of ours asks for. Two equal values need the same rules on
/// every node, so a change of anything else in the Service changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Namespace and name.
    pub key: ServiceKey,
    /// The object's UID: a Service deleted and created anew is another one.
    pub uid: String,
    /// When it was created; decides between newcomers.
    pub created: Timestamp,
    /// Its ClusterIPs.
    pub cluster_ips: ClusterIps,
    /// Its ports; never empty.
    pub ports: BTreeMap<PortKey, ServicePort>,
    /// The labels of its Pods; empty if it selects none.
    pub selector: BTreeMap<String, String>,
    /// Which clients it admits.
    pub clients: Clients,
    /// Where its traffic enters kube-proxy.
    pub entrance: Entrance,
    /// Which nodes' Pods get its traffic.
    pub external_policy: TrafficPolicy,
    /// Whether its clients keep their Pods.
    pub affinity: Affinity,
    /// Which nodes serve it.
    pub node_selector: NodeSelector,
    /// Which of their addresses are advertised.
    pub address_type: AddressType,
    /// How many nodes are advertised at most; `None` for the controller's default.
    pub max_addresses: Option<NonZeroU16>,
}

impl ServiceSpec {
    /// The protocols and numbers of its ports.
    #[must_use]
    pub fn port_keys(&self) -> BTreeSet<PortKey> {
        self.ports.keys().copied().collect()
    }
}

/// The Service's primary family, listed first: that of the first entry of
/// `spec.clusterIPs`. The API server never changes it.
#[must_use]
pub fn primary_family(service: &Service) -> Family {
    let addresses = service.spec.iter().flat_map(|spec| &spec.cluster_ips);
    let first = addresses.flatten().find_map(|ip| ip.parse().ok());
    first.map_or(Family::V4, Family::of)
}

/// What a Service object means to Highwire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interpretation {
    /// Another type or another class.
    NotOurs,
    /// It has no class, and another program wrote its ingress, so it is left to that one.
    ManagedElsewhere(Manager),
    /// Ours but still waiting for the API server to give it a ClusterIP.
    Pending,
    /// Ours, and this is what it asks for.
    Serve(ServiceSpec),
    /// Ours, but a value does not parse. A node that serves it goes on with the last
    /// valid values. Never empty.
    Invalid(Vec<Problem>),
    /// Ours, but it asks for something Highwire does not do. Never empty.
    Unsupported(Vec<Problem>),
}

/// Reads a Service.
#[must_use]
pub fn interpret(service: &Service, policy: ClassPolicy) -> Interpretation {
    let Some(spec) = of_type(service).filter(|spec| is_ours(spec, policy)) else {
        return Interpretation::NotOurs;
    };
    if let IngressAuthor::Other(manager) = IngressAuthor::of(service)
        && spec.load_balancer_class.is_none()
        && !is_adopted(service)
    {
        return Interpretation::ManagedElsewhere(manager);
    }
    read(service, spec, needs_node_ports(spec))
}

/// Reads a Service that a load balancer outside the cluster serves. Its traffic enters at
/// NodePorts, or, if it has none, at the nodes' own ports, as [`Entrance`] says.
#[must_use]
pub fn interpret_external(service: &Service) -> Interpretation {
    match of_type(service).filter(|spec| has_class(spec, EXTERNAL_CLASS)) {
        Some(spec) if has_node_ports(spec) => read(service, spec, Some(NodePortsFor::Outside)),
        Some(spec) => match read(service, spec, needs_node_ports(spec)) {
            Interpretation::Serve(found) if found.clients != Clients::Any => {
                Interpretation::Unsupported(vec![Problem::Unsupported {
                    field: "spec.loadBalancerSourceRanges".to_owned(),
                    value: "set".to_owned(),
                    remedy: "without NodePorts the nodes would enforce them, and see the \
                             address of the load balancer outside only; set \
                             spec.allocateLoadBalancerNodePorts to true"
                        .to_owned(),
                }])
            }
            found => found,
        },
        None => Interpretation::NotOurs,
    }
}

/// Reads a Service as a node does: as [`interpret`], but one that a load balancer outside the
/// cluster serves, and that has no NodePorts, enters at the nodes' own ports too.
#[must_use]
pub fn interpret_on_node(service: &Service, policy: ClassPolicy) -> Interpretation {
    match of_type(service) {
        Some(spec) if has_class(spec, EXTERNAL_CLASS) && !has_node_ports(spec) => {
            interpret_external(service)
        }
        _ => interpret(service, policy),
    }
}

/// Whether every port has a NodePort.
fn has_node_ports(spec: &ApiSpec) -> bool {
    let mut ports = spec.ports.iter().flatten();
    ports.all(|port| port.node_port.is_some_and(|port| port != 0))
}

/// The spec of a LoadBalancer Service that is not being deleted.
fn of_type(service: &Service) -> Option<&ApiSpec> {
    let spec = service.spec.as_ref()?;
    let is_kept = service.metadata.deletion_timestamp.is_none();
    (is_kept && spec.type_.as_deref() == Some("LoadBalancer")).then_some(spec)
}

fn has_class(spec: &ApiSpec, class: &str) -> bool {
    spec.load_balancer_class.as_deref() == Some(class)
}

fn read(service: &Service, spec: &ApiSpec, node_ports: Option<NodePortsFor>) -> Interpretation {
    let unsupported = unsupported(service, spec, node_ports);
    if !unsupported.is_empty() {
        return Interpretation::Unsupported(unsupported);
    }
    let mut problems = Vec::new();
    let ports = ports(spec, &mut problems);
    let node_selector = annotation(service, NODE_SELECTOR_ANNOTATION, &mut problems, str::parse);
    let address_type = annotation(
        service,
        ADDRESS_TYPE_ANNOTATION,
        &mut problems,
        |text| match text {
            "Auto" => Ok(AddressType::Auto),
            "ExternalIP" => Ok(AddressType::ExternalIp),
            "InternalIP" => Ok(AddressType::InternalIp),
            _ => Err("write Auto, ExternalIP or InternalIP"),
        },
    );
    let max_addresses =
        annotation(
            service,
            MAX_ADDRESSES_ANNOTATION,
            &mut problems,
            |text| match text.parse() {
                Ok(most) => Ok(Some(most)),
                Err(_) => Err("write how many nodes, a number from 1 to 65535"),
            },
        );
    let clients = clients::read(service, spec, &mut problems);
    let addresses = spec.cluster_ips.as_deref().unwrap_or_default();
    let cluster_ips: Vec<IpAddr> = addresses.iter().filter_map(|ip| ip.parse().ok()).collect();
    problems.extend(clients::too_many(&clients, ports.len()));
    if !problems.is_empty() {
        problems.truncate(MOST_PROBLEMS);
        return Interpretation::Invalid(problems);
    }
    let Some(cluster_ips) = ClusterIps::from_api(&cluster_ips) else {
        return Interpretation::Pending;
    };
    Interpretation::Serve(ServiceSpec {
        key: ServiceKey::of(service),
        uid: service.metadata.uid.clone().unwrap_or_default(),
        created: service
            .metadata
            .creation_timestamp
            .as_ref()
            .map_or(Timestamp::MAX, |time| time.0),
        cluster_ips,
        ports,
        selector: spec.selector.clone().unwrap_or_default(),
        clients,
        entrance: if node_ports.is_some() {
            Entrance::NodePort
        } else {
            Entrance::ClusterIp
        },
        external_policy: if is_local(spec.external_traffic_policy.as_ref()) {
            TrafficPolicy::Local
        } else {
            TrafficPolicy::Cluster
        },
        affinity: affinity(spec),
        node_selector,
        address_type,
        max_addresses,
    })
}

fn is_ours(spec: &ApiSpec, policy: ClassPolicy) -> bool {
    match spec.load_balancer_class.as_deref() {
        None => policy == ClassPolicy::DefaultAndOurs,
        Some(class) => class == LOAD_BALANCER_CLASS,
    }
}

/// How many problems of one Service are reported at once.
const MOST_PROBLEMS: usize = 8;

/// The labels of Services that kube-proxy ignores, so that nothing would answer at
/// their ClusterIPs (kubernetes `pkg/proxy/apis/well_known_labels.go` and
/// `k8s.io/api/core/v1` `IsHeadlessService`).
const NOT_FOR_KUBE_PROXY: [&str; 2] = [
    "service.kubernetes.io/service-proxy-name",
    "service.kubernetes.io/headless",
];

/// Why the traffic of a Service has to enter kube-proxy at its NodePorts.
#[derive(Clone, Copy, Debug)]
enum NodePortsFor {
    /// This field is `Local`.
    Local(&'static str),
    /// It comes from a load balancer outside the cluster.
    Outside,
}

fn unsupported(
    service: &Service,
    spec: &ApiSpec,
    node_ports: Option<NodePortsFor>,
) -> Vec<Problem> {
    let problem = |field: &str, value: &str, remedy: &str| Problem::Unsupported {
        field: field.to_owned(),
        value: value.to_owned(),
        remedy: remedy.to_owned(),
    };
    let mut problems = Vec::new();
    if spec.cluster_ips.iter().flatten().any(|ip| ip == "None") {
        problems.push(problem(
            "spec.clusterIP",
            "None",
            "a headless Service has no ClusterIP to forward to; remove the field",
        ));
    }
    let labels = service.metadata.labels.iter().flatten();
    for (label, value) in labels.filter(|(label, _)| NOT_FOR_KUBE_PROXY.contains(&label.as_str())) {
        problems.push(problem(
            &format!("metadata.labels[{label}]"),
            value,
            "kube-proxy ignores Services with this label, so no node could forward to it; \
             remove the label",
        ));
    }
    if let Some(NodePortsFor::Local(field)) = node_ports.filter(|_| !has_node_ports(spec)) {
        problems.push(problem(
            field,
            "Local",
            "kube-proxy enforces it at NodePorts only, and this Service has none; set \
             spec.allocateLoadBalancerNodePorts to true, or the policy to Cluster",
        ));
    }
    problems
}

fn needs_node_ports(spec: &ApiSpec) -> Option<NodePortsFor> {
    [
        ("spec.externalTrafficPolicy", &spec.external_traffic_policy),
        ("spec.internalTrafficPolicy", &spec.internal_traffic_policy),
    ]
    .into_iter()
    .find(|(_, policy)| is_local(policy.as_ref()))
    .map(|(field, _)| NodePortsFor::Local(field))
}

fn affinity(spec: &ApiSpec) -> Affinity {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return Affinity::None;
    }
    let config = spec.session_affinity_config.as_ref();
    let seconds = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok());
    Affinity::Client {
        timeout: seconds.map_or(AFFINITY_TIMEOUT, Duration::from_secs),
    }
}

fn is_local(policy: Option<&String>) -> bool {
    policy.is_some_and(|policy| policy == "Local")
}

fn ports(spec: &ApiSpec, problems: &mut Vec<Problem>) -> BTreeMap<PortKey, ServicePort> {
    let mut ports = BTreeMap::new();
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        match port_key(port) {
            Ok(key) => {
                ports.insert(key, service_port(key, port));
            }
            Err((field, value, remedy)) => problems.push(Problem::Invalid {
                field: format!("spec.ports[{index}].{field}"),
                value,
                remedy: remedy.to_owned(),
            }),
        }
    }
    if ports.is_empty() && problems.is_empty() {
        problems.push(Problem::Invalid {
            field: "spec.ports".to_owned(),
            value: "[]".to_owned(),
            remedy: "a LoadBalancer Service needs at least one port".to_owned(),
        });
    }
    ports
}

fn port_key(port: &ApiPort) -> Result<PortKey, (&'static str, String, &'static str)> {
    let protocol = Protocol::from_service(port.protocol.as_deref()).ok_or_else(|| {
        (
            "protocol",
            port.protocol.clone().unwrap_or_default(),
            "write TCP, UDP or SCTP",
        )
    })?;
    let number = u16::try_from(port.port).ok().and_then(NonZeroU16::new);
    let port = number.ok_or_else(|| {
        (
            "port",
            port.port.to_string(),
            "write a port from 1 to 65535",
        )
    })?;
    Ok(PortKey { protocol, port })
}

fn service_port(key: PortKey, port: &ApiPort) -> ServicePort {
    let number = |number: i32| u16::try_from(number).ok().and_then(NonZeroU16::new);
    let target = match &port.target_port {
        Some(IntOrString::String(name)) => TargetPort::Name(name.clone()),
        // The API server writes the port itself where no target is named.
        Some(IntOrString::Int(target)) => TargetPort::Number(number(*target).unwrap_or(key.port)),
        None => TargetPort::Number(key.port),
    };
    ServicePort {
        name: port.name.as_deref().unwrap_or_default().into(),
        target,
        node_port: port.node_port.and_then(number),
    }
}

fn annotation<T: Default, E: Display>(
    service: &Service,
    name: &str,
    problems: &mut Vec<Problem>,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> T {
    let none = BTreeMap::new();
    let annotations = service.metadata.annotations.as_ref().unwrap_or(&none);
    let Some(text) = annotations.get(name) else {
        return T::default();
    };
    parse(text).unwrap_or_else(|error| {
        problems.push(Problem::Invalid {
            field: format!("metadata.annotations[{name}]"),
            value: text.clone(),
            remedy: error.to_string(),
        });
        T::default()
    })
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
