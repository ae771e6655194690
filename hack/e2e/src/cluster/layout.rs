//! Where everything is: names and addresses of a cluster's namespaces.
//!
//! ```text
//!   hw-NAME-client                      hw-NAME-fabric (router, bridge br0)
//!   198.51.100.10, .11                  198.51.100.254   192.0.2.254
//!   2001:db8:2::10           ─────────  2001:db8:2::fe   2001:db8:1::fe
//!                                                │ bridge, 192.0.2.0/24
//!              ┌─────────────────────────────────┼─────────────────── …
//!   hw-NAME-cp 192.0.2.250            hw-NAME-n1 192.0.2.11        hw-NAME-n2 .12
//!   2001:db8:1::fa                    2001:db8:1::11
//!   etcd, kube-apiserver,             kube-proxy, highwire-agent,
//!   kube-controller-manager,          hostNetwork Pods
//!   highwire-controller               │ routed veths
//!                                     hw-NAME-n1-p7  10.244.1.7, fd00:244:1::7
//! ```
//!
//! | network | IPv4 | IPv6 |
//! |---|---|---|
//! | nodes | 192.0.2.0/24 | 2001:db8:1::/64 |
//! | clients | 198.51.100.0/24 | 2001:db8:2::/64 |
//! | boxes outside ([`crate::OutsideBox`]) | 203.0.113.0/24 | 2001:db8:3::/64 |
//! | Pods of node i | 10.244.i.0/24 | fd00:244:i::/64 |
//! | Services | 10.96.0.0/16 | fd00:96::/108 |
//!
//! Only nodes and the control plane have routes to Pods, and nobody has one to Services, so that a
//! packet which leaves a node with such a destination is lost as it would be in
//! a real network. Node and Pod addresses exist in the cluster's families only;
//! the fabric, the control plane, the client and boxes always have both.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Port of the API server inside the cluster.
pub const API_PORT: u16 = 6443;
/// Port the agent's health and metrics listen on, on every node.
pub const AGENT_PORT: u16 = 9807;
/// Port of the first controller's health and metrics; the next ones count up.
pub const CONTROLLER_PORT: u16 = 9808;
/// kube-proxy's health port.
pub const PROXY_HEALTH_PORT: u16 = 10256;
/// Most nodes a cluster can have (addresses, and what a machine can carry).
pub const MAX_NODES: u8 = 50;

/// Control plane addresses.
pub const CONTROL_PLANE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 250);
/// Control plane addresses.
pub const CONTROL_PLANE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0xfa);
/// First address of the outside client.
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// Second address of the outside client.
pub const CLIENT_V4_SECOND: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 11);
/// IPv6 address of the outside client.
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10);
/// First Service address: `kubernetes.default`, which is also in the API server's certificate.
pub const FIRST_SERVICE_V4: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// First Service address, IPv6.
pub const FIRST_SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1);

/// The router's address at every box outside the cluster.
pub const BOX_ROUTER_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 254);

/// Address families of nodes, Pods and Services; the first is the primary one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpFamily {
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
    /// Both, IPv4 first.
    Dual,
}

impl IpFamily {
    /// Whether IPv4 is one of them.
    pub fn has_v4(self) -> bool {
        self != Self::Ipv6
    }

    /// Whether IPv6 is one of them.
    pub fn has_v6(self) -> bool {
        self != Self::Ipv4
    }

    /// The value of the wanted families, primary first.
    pub fn pick<T>(self, v4: T, v6: T) -> Vec<T> {
        match self {
            Self::Ipv4 => vec![v4],
            Self::Ipv6 => vec![v6],
            Self::Dual => vec![v4, v6],
        }
    }

    /// Service CIDRs, as the API server's flag wants them.
    pub fn service_cidrs(self) -> String {
        self.pick("10.96.0.0/16", "fd00:96::/108").join(",")
    }

    /// CIDRs of all Pods, as kube-proxy's `clusterCIDR` wants them.
    pub fn cluster_cidrs(self) -> String {
        self.pick("10.244.0.0/16", "fd00:244::/32").join(",")
    }

    /// The address nodes reach the API server at.
    pub fn control_plane(self) -> IpAddr {
        if self.has_v4() {
            CONTROL_PLANE_V4.into()
        } else {
            CONTROL_PLANE_V6.into()
        }
    }
}

/// A node's address on the node network; nodes count from 1.
pub fn node_v4(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 10 + index)
}

/// A node's IPv6 address, whose last group reads like the IPv4 one (`::11`).
pub fn node_v6(index: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, decimal_as_hex(10 + index))
}

/// A node's addresses, primary first.
pub fn node_addresses(index: u8, family: IpFamily) -> Vec<IpAddr> {
    family.pick(node_v4(index).into(), node_v6(index).into())
}

/// Pod CIDRs of a node in the given families.
pub fn pod_cidrs(index: u8, family: IpFamily) -> Vec<String> {
    family.pick(
        format!("10.244.{index}.0/24"),
        format!("fd00:244:{index}::/64"),
    )
}

/// IPv4 address of a node's Pod number `slot`.
pub fn pod_v4(index: u8, slot: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, index, slot)
}

/// IPv6 address of a node's Pod number `slot`.
pub fn pod_v6(index: u8, slot: u8) -> Ipv6Addr {
    let node = decimal_as_hex(index);
    Ipv6Addr::new(0xfd00, 0x244, node, 0, 0, 0, 0, decimal_as_hex(slot))
}

/// IPv4 address of a box outside the cluster; boxes count from 1.
pub fn box_v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, number)
}

/// Its IPv6 address.
pub fn box_v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, decimal_as_hex(number))
}

/// The group that *prints* like the decimal number, so that `.11` and `::11` belong together.
fn decimal_as_hex(number: u8) -> u16 {
    let number = u16::from(number);
    (number / 100) << 8 | (number / 10 % 10) << 4 | (number % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_families_of_an_address_read_alike() {
        assert_eq!(node_v4(1).to_string(), "192.0.2.11");
        assert_eq!(node_v6(1).to_string(), "2001:db8:1::11");
        assert_eq!(pod_v4(12, 107).to_string(), "10.244.12.107");
        assert_eq!(pod_v6(12, 107).to_string(), "fd00:244:12::107");
        assert_eq!(pod_cidrs(12, IpFamily::Dual)[1], "fd00:244:12::/64");
    }
}
