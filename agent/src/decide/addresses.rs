//! The addresses at which Services answer.
//!
//! By default those that the Node object names and global ones of interfaces that carry
//! a default route; never loopback, link-local, CNI bridge or `kube-ipvs0` addresses. That
//! is why the rules hold an explicit set: `fib daddr type local` would also catch
//! node-local DNS and bound ClusterIPs (design §2.3).

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use crate::facts::addresses::HostAddress;

/// Interfaces whose addresses are never served: bound by kube-proxy in ipvs
/// mode, and by node-local DNS.
const NEVER_SERVED: [&str; 2] = ["kube-ipvs0", "nodelocaldns"];

/// Picks the addresses at which Services answer: those `within` some networks, if any are
/// named.
#[must_use]
pub(crate) fn served_addresses(
    host: &[HostAddress],
    node: &BTreeSet<IpAddr>,
    within: &[IpNet],
) -> BTreeSet<IpAddr> {
    let serves = |candidate: &&HostAddress| {
        let address = candidate.address;
        let possible = candidate.global
            && !address.is_loopback()
            && !NEVER_SERVED.contains(&candidate.interface.as_str());
        possible
            && if within.is_empty() {
                node.contains(&address) || candidate.on_default_route
            } else {
                within.iter().any(|network| network.contains(&address))
            }
    };
    host.iter()
        .filter(serves)
        .map(|candidate| candidate.address)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(address: &str, interface: &str, global: bool, on_default_route: bool) -> HostAddress {
        HostAddress {
            address: address.parse().unwrap(),
            interface: interface.into(),
            devices: BTreeSet::new(),
            global,
            on_default_route,
        }
    }

    fn served(host: &[HostAddress], node: &[&str], within: &[IpNet]) -> Vec<String> {
        let node = node.iter().map(|ip| ip.parse().unwrap()).collect();
        served_addresses(host, &node, within)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    fn usual_host() -> Vec<HostAddress> {
        vec![
            host("127.0.0.1", "lo", false, false),
            host("192.0.2.11", "eth0", true, true),
            host("fe80::1", "eth0", false, true),
            host("203.0.113.5", "eth1", true, false),
            host("10.244.0.1", "cni0", true, false),
            host("10.96.0.10", "kube-ipvs0", true, false),
            host("169.254.20.10", "nodelocaldns", true, false),
        ]
    }

    #[test]
    fn the_nodes_own_and_default_route_addresses_are_served() {
        let host = usual_host();
        assert_eq!(served(&host, &[], &[]), ["192.0.2.11"]);
        assert_eq!(
            served(&host, &["203.0.113.5", "198.51.100.7"], &[]),
            ["192.0.2.11", "203.0.113.5"],
            "an address that no interface has is not served"
        );
    }

    #[test]
    fn cidrs_choose_instead_but_never_what_is_not_the_hosts() {
        let within = |networks: &[&str]| -> Vec<IpNet> {
            networks.iter().map(|n| n.parse().unwrap()).collect()
        };
        let host = usual_host();
        assert_eq!(
            served(&host, &["192.0.2.11"], &within(&["203.0.113.0/24"])),
            ["203.0.113.5"]
        );
        assert_eq!(
            served(&host, &[], &within(&["127.0.0.0/8", "10.96.0.0/16"])),
            Vec::<String>::new()
        );
    }
}
