//! `spec.clusterIPs` as a value.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::port::Family;

/// The ClusterIPs of a Service: one per family, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterIps {
    /// Single-stack IPv4.
    V4(Ipv4Addr),
    /// Single-stack IPv6.
    V6(Ipv6Addr),
    /// Dual-stack, in either order.
    Dual(Ipv4Addr, Ipv6Addr),
}

impl ClusterIps {
    /// Reads `spec.clusterIPs`; `None` without any.
    pub(crate) fn from_api(addresses: &[IpAddr]) -> Option<Self> {
        let v4 = addresses.iter().find_map(|ip| {
            if let IpAddr::V4(ip) = ip {
                Some(*ip)
            } else {
                None
            }
        });
        let v6 = addresses.iter().find_map(|ip| {
            if let IpAddr::V6(ip) = ip {
                Some(*ip)
            } else {
                None
            }
        });
        match (v4, v6) {
            (Some(v4), Some(v6)) => Some(Self::Dual(v4, v6)),
            (Some(v4), None) => Some(Self::V4(v4)),
            (None, Some(v6)) => Some(Self::V6(v6)),
            (None, None) => None,
        }
    }

    /// The ClusterIP of one family.
    #[must_use]
    pub fn get(self, family: Family) -> Option<IpAddr> {
        match (self, family) {
            (Self::V4(ip) | Self::Dual(ip, _), Family::V4) => Some(ip.into()),
            (Self::V6(ip) | Self::Dual(_, ip), Family::V6) => Some(ip.into()),
            (Self::V4(_), Family::V6) | (Self::V6(_), Family::V4) => None,
        }
    }

    /// The families of the Service.
    pub fn families(self) -> impl Iterator<Item = Family> {
        Family::ALL
            .into_iter()
            .filter(move |family| self.get(*family).is_some())
    }
}
