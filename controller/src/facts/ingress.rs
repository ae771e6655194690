//! `status.loadBalancer.ingress` as a value: which addresses are advertised with
//! which ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use highwire_api::{
    Family, PortKey,
    advertised::{ingress_of, sound_ports},
    service::primary_family,
};
use k8s_openapi::api::core::v1::{LoadBalancerIngress, PortStatus, Service};

/// With the default mode `VIP` kube-proxy would take the traffic itself, and in
/// ipvs mode bind every node's address on every other node (design §4).
const IP_MODE: &str = "Proxy";

/// Where a Service is advertised.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// At an address.
    Ip(IpAddr),
    /// At a host name, of a load balancer outside the cluster.
    Name(String),
}

impl Host {
    /// Reads an address, or else takes it for a name.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let name = |_| Self::Name(text.to_owned());
        text.parse().map_or_else(name, Self::Ip)
    }
}

impl From<IpAddr> for Host {
    fn from(ip: IpAddr) -> Self {
        Self::Ip(ip)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Addresses with the ports they are advertised with. Nearly always all of them have the
/// same ports, which are kept once then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ingress(BTreeMap<Host, Arc<BTreeSet<PortKey>>>);

/// What a Service's status advertises now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// The addresses and the ports that have no error.
    pub ingress: Ingress,
    /// Whether the status is written exactly as we would write it.
    pub exact: bool,
}

impl Ingress {
    /// Advertises `host` with `ports` too. Without ports it is not advertised.
    pub fn add(&mut self, host: impl Into<Host>, ports: &Arc<BTreeSet<PortKey>>) {
        if !ports.is_empty() {
            let known = self
                .0
                .entry(host.into())
                .or_insert_with(|| Arc::clone(ports));
            // Two nodes may have one address, an ExternalIP of a NAT before both.
            if !ports.is_subset(known) {
                Arc::make_mut(known).extend(ports.iter());
            }
        }
    }

    /// The ports `address` is advertised with.
    pub fn ports(&self, address: IpAddr) -> Option<&Arc<BTreeSet<PortKey>>> {
        self.0.get(&Host::Ip(address))
    }

    /// The addresses in order, and then the names.
    pub fn hosts(&self) -> impl ExactSizeIterator<Item = &Host> {
        self.0.keys()
    }

    /// The addresses and names, each with its ports.
    pub fn entries(&self) -> impl Iterator<Item = (&Host, &BTreeSet<PortKey>)> {
        self.0.iter().map(|(host, ports)| (host, &**ports))
    }

    /// Whether nothing is advertised.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How the API has it: one entry per host, addresses of the Service's `primary` family
    /// first, by number.
    pub fn to_api(&self, primary: Family) -> Vec<LoadBalancerIngress> {
        let entry = |(host, ports): (&Host, &Arc<BTreeSet<PortKey>>)| {
            let ports = Some(ports.iter().copied().map(port_status).collect());
            match host {
                Host::Ip(address) => LoadBalancerIngress {
                    hostname: None,
                    ip: Some(address.to_string()),
                    ip_mode: Some(IP_MODE.to_owned()),
                    ports,
                },
                // The API server takes no mode without an address.
                Host::Name(name) => LoadBalancerIngress {
                    hostname: Some(name.clone()),
                    ip: None,
                    ip_mode: None,
                    ports,
                },
            }
        };
        let is_primary = |(host, _): &(&Host, _)| match host {
            Host::Ip(address) => Family::of(*address) == primary,
            Host::Name(_) => false,
        };
        let (first, second): (Vec<_>, Vec<_>) = self.0.iter().partition(is_primary);
        first.into_iter().chain(second).map(entry).collect()
    }

    fn from_api(entries: &[LoadBalancerIngress]) -> Self {
        let (mut ingress, mut last) = (Self::default(), Arc::default());
        for entry in entries {
            let address = entry.ip.as_deref().and_then(|ip| ip.parse().ok());
            let name = || entry.hostname.clone().map(Host::Name);
            let Some(host) = address.map(Host::Ip).or_else(name) else {
                continue;
            };
            let ports = sound_ports(entry);
            if *last != ports {
                last = Arc::new(ports);
            }
            ingress.add(host, &last);
        }
        ingress
    }
}

fn port_status(port: PortKey) -> PortStatus {
    PortStatus {
        error: None,
        port: port.number(),
        protocol: port.protocol.as_str().to_owned(),
    }
}

impl Listed {
    /// Reads a Service's status.
    pub fn of(service: &Service) -> Self {
        let entries = ingress_of(service);
        let ingress = Ingress::from_api(entries);
        let exact = ingress.to_api(primary_family(service)) == entries;
        Self { ingress, exact }
    }

    /// Whether the status already says `wanted`, and nothing else.
    pub fn says(&self, wanted: &Ingress) -> bool {
        self.exact && self.ingress == *wanted
    }

    /// Whether the status has no entry at all, readable or not.
    pub fn is_empty(&self) -> bool {
        self.exact && self.ingress.is_empty()
    }
}

#[cfg(test)]
#[path = "ingress_tests.rs"]
mod tests;
