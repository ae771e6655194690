//! Ports that kube-proxy serves on every node for other reasons than ours:
//! NodePorts, health check NodePorts and externalIPs of all Services.

use std::{collections::BTreeMap, net::IpAddr};

use highwire_api::{PortKey, Protocol, ServiceKey};
use k8s_openapi::api::core::v1::Service;

/// What kube-proxy answers for one Service on the nodes' own addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePorts {
    /// From NodePort to the Service's own port.
    pub node_ports: BTreeMap<PortKey, PortKey>,
    /// `spec.healthCheckNodePort`, which is HTTP.
    pub health_check: Option<PortKey>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// The Service's ports, if it has externalIPs.
    pub ports: Vec<PortKey>,
}

impl ServicePorts {
    /// Reads a Service; `None` if it occupies nothing, as most do not.
    #[must_use]
    pub fn of(service: &Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let ports = spec.ports.iter().flatten().filter_map(|port| {
            let protocol = Protocol::from_service(port.protocol.as_deref())?;
            let own = PortKey::new(protocol, port.port)?;
            Some((
                own,
                port.node_port.and_then(|port| PortKey::new(protocol, port)),
            ))
        });
        let external_ips: Vec<IpAddr> = spec
            .external_ips
            .iter()
            .flatten()
            .filter_map(|ip| ip.parse().ok())
            .collect();
        let health_check = spec.health_check_node_port.filter(|port| *port != 0);
        let read = Self {
            node_ports: ports
                .clone()
                .filter_map(|(own, node)| Some((node?, own)))
                .collect(),
            health_check: health_check.and_then(|port| PortKey::new(Protocol::Tcp, port)),
            ports: ports
                .map(|(own, _)| own)
                .filter(|_| !external_ips.is_empty())
                .collect(),
            external_ips,
        };
        (read != Self::default()).then_some(read)
    }
}

/// By whom each NodePort is used, for quick look-ups.
#[derive(Debug, Default)]
pub struct Occupied {
    services: BTreeMap<ServiceKey, ServicePorts>,
}

impl Occupied {
    /// Notes what a Service occupies now. Says whether that changed.
    pub fn set(&mut self, key: ServiceKey, ports: Option<ServicePorts>) -> bool {
        match ports {
            Some(ports) => self.services.insert(key, ports.clone()) != Some(ports),
            None => self.services.remove(&key).is_some(),
        }
    }

    /// Every Service that occupies something.
    pub fn iter(&self) -> impl Iterator<Item = (&ServiceKey, &ServicePorts)> {
        self.services.iter()
    }
}
