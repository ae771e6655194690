//! The addresses and ports that a Service's status lists: what makes a live port safe from
//! newcomers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service};

use crate::{
    arbitration::Rank,
    port::{PortKey, Protocol},
};

/// The entries of `status.loadBalancer.ingress`.
#[must_use]
pub fn ingress_of(service: &Service) -> &[LoadBalancerIngress] {
    service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref())
        .and_then(|load_balancer| load_balancer.ingress.as_deref())
        .unwrap_or_default()
}

/// The addresses of such entries, each with its ports that have no error, if any.
/// What cannot be read is left out.
pub fn advertised(
    ingress: &[LoadBalancerIngress],
) -> impl Iterator<Item = (IpAddr, BTreeSet<PortKey>)> {
    ingress.iter().filter_map(|entry| {
        let address = entry.ip.as_deref()?.parse().ok()?;
        Some((address, sound_ports(entry)))
    })
}

/// The ports of such an entry that have no error. What cannot be read is left out.
#[must_use]
pub fn sound_ports(entry: &LoadBalancerIngress) -> BTreeSet<PortKey> {
    let ports = entry.ports.iter().flatten();
    ports
        .filter(|port| port.error.is_none())
        .filter_map(|port| PortKey::new(Protocol::from_service(Some(&port.protocol))?, port.port))
        .collect()
}

/// The ports without an error in `status.loadBalancer.ingress`, by address.
///
/// Nearly always every address lists the same ports, so addresses are grouped
/// by their set of ports. All is sorted, and in slices: there is one of these for every
/// Service, and a node of a tree has room for eleven.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advertised(Box<[Group]>);

/// Addresses that list the same ports.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    ports: Box<[PortKey]>,
    addresses: Box<[IpAddr]>,
}

impl Advertised {
    /// Reads a Service's status.
    #[must_use]
    pub fn of(service: &Service) -> Self {
        let mut groups: BTreeMap<BTreeSet<PortKey>, BTreeSet<IpAddr>> = BTreeMap::new();
        for (address, ports) in advertised(ingress_of(service)) {
            if !ports.is_empty() {
                groups.entry(ports).or_default().insert(address);
            }
        }
        let groups = groups.into_iter().map(|(ports, addresses)| Group {
            ports: ports.into_iter().collect(),
            addresses: addresses.into_iter().collect(),
        });
        Self(groups.collect())
    }

    /// How the Service ranks for the port on a node with these addresses.
    #[must_use]
    pub fn rank(&self, port: PortKey, node_addresses: &BTreeSet<IpAddr>) -> Rank {
        self.0
            .iter()
            .filter(|group| group.ports.contains(&port))
            .map(|group| {
                if group.addresses.iter().any(|ip| node_addresses.contains(ip)) {
                    Rank::Here
                } else {
                    Rank::Elsewhere
                }
            })
            .min()
            .unwrap_or(Rank::Newcomer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn advertised(ingress: serde_json::Value) -> Advertised {
        let service = json!({"metadata": {}, "status": {"loadBalancer": {"ingress": ingress}}});
        Advertised::of(&serde_json::from_value(service).unwrap())
    }

    #[test]
    fn a_port_listed_without_error_is_held() {
        let held = advertised(json!([
            {"ip": "192.0.2.11", "ports": [{"port": 80, "protocol": "TCP"}]},
            {"ip": "192.0.2.12", "ports": [
                {"port": 80, "protocol": "TCP", "error": "highwire.dev/PortConflict"},
                {"port": 53, "protocol": "UDP"}]},
        ]));
        let n1 = BTreeSet::from(["192.0.2.11".parse().unwrap()]);
        let n2 = BTreeSet::from(["192.0.2.12".parse().unwrap()]);
        let port = |protocol, number| PortKey::new(protocol, number).unwrap();
        assert_eq!(held.rank(port(Protocol::Tcp, 80), &n1), Rank::Here);
        assert_eq!(held.rank(port(Protocol::Tcp, 80), &n2), Rank::Elsewhere);
        assert_eq!(held.rank(port(Protocol::Udp, 53), &n2), Rank::Here);
        assert_eq!(held.rank(port(Protocol::Udp, 80), &n1), Rank::Newcomer);
    }
}
