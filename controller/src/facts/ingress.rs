//! `status.loadBalancer.ingress` as a value: which addresses are advertised with
//! which ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use highwire_api::{
    Family, PortKey,
    advertised::{advertised, ingress_of},
    service::primary_family,
};
use k8s_openapi::api::core::v1::{LoadBalancerIngress, PortStatus, Service};

/// With the default mode `VIP` kube-proxy would take the traffic itself, and in
/// ipvs mode bind every node's address on every other node (design §4).
const IP_MODE: &str = "Proxy";

/// Addresses with the ports they are advertised with. Nearly always all of them have the
/// same ports, which are kept once then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ingress(BTreeMap<IpAddr, Arc<BTreeSet<PortKey>>>);

/// What a Service's status advertises now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// The addresses and the ports that have no error.
    pub ingress: Ingress,
    /// Whether the status is written exactly as we would write it.
    pub exact: bool,
}

impl Ingress {
    /// Advertises `address` with `ports` too. Without ports it is not advertised.
    pub fn add(&mut self, address: IpAddr, ports: &Arc<BTreeSet<PortKey>>) {
        if !ports.is_empty() {
            let known = self.0.entry(address).or_insert_with(|| Arc::clone(ports));
            // Two nodes may have one address, an ExternalIP of a NAT before both.
            if !ports.is_subset(known) {
                Arc::make_mut(known).extend(ports.iter());
            }
        }
    }

    /// The ports `address` is advertised with.
    pub fn ports(&self, address: IpAddr) -> Option<&Arc<BTreeSet<PortKey>>> {
        self.0.get(&address)
    }

    /// The addresses in order.
    pub fn addresses(&self) -> impl ExactSizeIterator<Item = &IpAddr> {
        self.0.keys()
    }

    /// Whether nothing is advertised.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How the API has it: one entry per address, those of the Service's `primary` family
    /// first, by number.
    pub fn to_api(&self, primary: Family) -> Vec<LoadBalancerIngress> {
        let entry = |(address, ports): (&IpAddr, &Arc<BTreeSet<PortKey>>)| LoadBalancerIngress {
            hostname: None,
            ip: Some(address.to_string()),
            ip_mode: Some(IP_MODE.to_owned()),
            ports: Some(ports.iter().copied().map(port_status).collect()),
        };
        let is_primary = |(address, _): &(&IpAddr, _)| Family::of(**address) == primary;
        let (first, second): (Vec<_>, Vec<_>) = self.0.iter().partition(is_primary);
        first.into_iter().chain(second).map(entry).collect()
    }

    fn from_api(entries: &[LoadBalancerIngress]) -> Self {
        let (mut ingress, mut last) = (Self::default(), Arc::default());
        for (address, ports) in advertised(entries) {
            if *last != ports {
                last = Arc::new(ports);
            }
            ingress.add(address, &last);
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
