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

/// Addresses by the ports they are advertised with. Equal sets are equal values.
///
/// Nearly always every address has the same ports, and nearly all Services have the same
/// addresses. Grouping by ports, and one set of addresses for many Services (see
/// [`AddressSets`]), keep thousands of nodes times thousands of Services small.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ingress(BTreeMap<BTreeSet<PortKey>, Arc<BTreeSet<IpAddr>>>);

/// Sets of addresses, each kept once however many Services list it.
#[derive(Debug, Default)]
pub struct AddressSets {
    sets: BTreeSet<Arc<BTreeSet<IpAddr>>>,
    /// At how many sets those that no Service lists any more are removed.
    crowded: usize,
}

/// With fewer sets than this, unused ones are kept.
const FEW: usize = 16;

impl AddressSets {
    /// Makes the ingress use the sets that others with the same addresses use.
    pub fn share(&mut self, ingress: &mut Ingress) {
        for addresses in ingress.0.values_mut() {
            if let Some(known) = self.sets.get(addresses) {
                *addresses = Arc::clone(known);
                continue;
            }
            if self.sets.len() >= self.crowded {
                self.sets.retain(|set| Arc::strong_count(set) > 1);
                self.crowded = FEW.max(2 * self.sets.len());
            }
            self.sets.insert(Arc::clone(addresses));
        }
    }
}

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
    pub fn add(&mut self, address: IpAddr, ports: &BTreeSet<PortKey>) {
        if ports.is_empty() {
            return;
        }
        // Two nodes may have one address, an ExternalIP of a NAT before both.
        let merged = match self.take(address) {
            Some(known) => known.union(ports).copied().collect(),
            None => ports.clone(),
        };
        Arc::make_mut(self.0.entry(merged).or_default()).insert(address);
    }

    fn take(&mut self, address: IpAddr) -> Option<BTreeSet<PortKey>> {
        let ports = self.ports(address)?.clone();
        let addresses = Arc::make_mut(self.0.get_mut(&ports)?);
        addresses.remove(&address);
        if addresses.is_empty() {
            self.0.remove(&ports);
        }
        Some(ports)
    }

    /// The ports `address` is advertised with.
    pub fn ports(&self, address: IpAddr) -> Option<&BTreeSet<PortKey>> {
        self.0
            .iter()
            .find(|(_, addresses)| addresses.contains(&address))
            .map(|(ports, _)| ports)
    }

    /// Whether it takes no memory for addresses that the other one does not take.
    #[must_use]
    pub fn shares_all_with(&self, other: &Self) -> bool {
        let mut sets = self.0.values().zip(other.0.values());
        self.0.len() == other.0.len() && sets.all(|(one, two)| Arc::ptr_eq(one, two))
    }

    /// Whether nothing is advertised.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How the API has it: one entry per address, those of the Service's `primary` family
    /// first, by number.
    pub fn to_api(&self, primary: Family) -> Vec<LoadBalancerIngress> {
        let mut entries: Vec<(IpAddr, &BTreeSet<PortKey>)> = self.by_address().collect();
        entries.sort_by_key(|(address, _)| (Family::of(*address) != primary, *address));
        let entry = |(address, ports): (IpAddr, &BTreeSet<PortKey>)| LoadBalancerIngress {
            hostname: None,
            ip: Some(address.to_string()),
            ip_mode: Some(IP_MODE.to_owned()),
            ports: Some(ports.iter().copied().map(port_status).collect()),
        };
        entries.into_iter().map(entry).collect()
    }

    /// Every address with its ports.
    pub fn by_address(&self) -> impl Iterator<Item = (IpAddr, &BTreeSet<PortKey>)> {
        self.0
            .iter()
            .flat_map(|(ports, addresses)| addresses.iter().map(move |address| (*address, ports)))
    }

    fn from_api(entries: &[LoadBalancerIngress]) -> Self {
        let mut ingress = Self::default();
        for (address, ports) in advertised(entries) {
            ingress.add(address, &ports);
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
