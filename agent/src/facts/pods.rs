//! The Pods on this node: which hostPorts they claim, and which Services they
//! answer for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use highwire_api::{PortKey, Protocol, service::TargetPort};
use k8s_openapi::api::core::v1::{ContainerPort, Pod};

/// What matters of a Pod that runs here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// `namespace/name`, for people.
    pub name: String,
    /// Its namespace; Services select in their own only.
    pub namespace: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it has the node's network.
    pub host_network: bool,
    /// Whether it is ready.
    pub ready: bool,
    /// The ports its containers declare.
    pub ports: Vec<PodPort>,
}

/// A port that a container declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPort {
    /// Its name, by which a Service may refer to it.
    pub name: Option<String>,
    /// The port in the container.
    pub container: PortKey,
    /// The port on the node, at one address or at all.
    pub host: Option<(PortKey, Option<IpAddr>)>,
}

impl LocalPod {
    /// Reads a Pod; `None` once it has ended.
    #[must_use]
    pub fn of(pod: &Pod) -> Option<Self> {
        let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref());
        let phase = status.and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return None;
        }
        let conditions = status
            .and_then(|status| status.conditions.as_deref())
            .unwrap_or_default();
        let host_network = spec.host_network.unwrap_or(false);
        let sidecars = spec.init_containers.iter().flatten();
        let containers = spec.containers.iter().chain(sidecars);
        let ports = containers.flat_map(|container| container.ports.iter().flatten());
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        Some(Self {
            name: format!(
                "{namespace}/{}",
                pod.metadata.name.as_deref().unwrap_or_default()
            ),
            namespace,
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            host_network,
            ready: pod.metadata.deletion_timestamp.is_none()
                && conditions
                    .iter()
                    .any(|c| c.type_ == "Ready" && c.status == "True"),
            ports: ports
                .filter_map(|port| read_port(port, host_network))
                .collect(),
        })
    }

    /// The port of this Pod that a Service's target means.
    #[must_use]
    pub fn target(&self, protocol: Protocol, target: &TargetPort) -> Option<PortKey> {
        match target {
            TargetPort::Number(port) => Some(PortKey {
                protocol,
                port: *port,
            }),
            TargetPort::Name(name) => {
                let named = |port: &&PodPort| {
                    port.name.as_ref() == Some(name) && port.container.protocol == protocol
                };
                self.ports.iter().find(named).map(|port| port.container)
            }
        }
    }
}

fn read_port(port: &ContainerPort, host_network: bool) -> Option<PodPort> {
    let protocol = Protocol::from_service(port.protocol.as_deref())?;
    // The API server fills in the hostPort of hostNetwork Pods; their sockets tell more.
    let host = port.host_port.filter(|_| !host_network);
    let address = port.host_ip.as_deref().and_then(|ip| ip.parse().ok());
    Some(PodPort {
        name: port.name.clone(),
        container: PortKey::new(protocol, port.container_port)?,
        host: host
            .and_then(|port| PortKey::new(protocol, port))
            .map(|port| (port, address.filter(|ip: &IpAddr| !ip.is_unspecified()))),
    })
}
