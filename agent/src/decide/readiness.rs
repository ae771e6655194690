//! Whether this node forwards, and if not, why.

use std::{fmt, net::IpAddr};

use highwire_api::{
    Family,
    node::{Conflict, SERVICE_PROXY_FAILING},
};

use super::{Plan, for_report};
use crate::facts::{Facts, service_proxy::Failing, sysctls};

const APPLY_FAILED: &str = "ApplyFailed";
const FORWARDING_DISABLED: &str = "ForwardingDisabled";
const SERVICE_PROXY_MISSING: &str = "ServiceProxyMissing";
const NO_ADDRESSES: &str = "NoAddresses";
const NOT_ENABLED: &str = "NotEnabled";
const TOO_MANY_CONFLICTS: &str = "TooManyConflicts";

/// Whether this node forwards, and if not, why: the `Ready` condition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Readiness {
    /// The kernel does what was decided.
    Programmed,
    /// nft or the kernel refused; what was there before is still there.
    ApplyFailed(String),
    /// The kernel does not forward packets of a family we serve.
    ForwardingDisabled(Family),
    /// There is no sign of kube-proxy, so nothing would take what we rewrite.
    ServiceProxyMissing,
    /// kube-proxy does not follow what changes. What it has programmed goes on.
    ServiceProxyFailing(Failing),
    /// The host has no address at which Services could answer.
    NoAddresses,
    /// The Node lacks the label, or is being deleted.
    #[default]
    NotEnabled,
    /// It refuses so many Services that the report cannot name them, and its readers would
    /// take the others for served.
    TooManyConflicts,
}

impl Readiness {
    /// What these rules and refusals make of the node.
    #[must_use]
    pub fn of(facts: &Facts<'_>, plan: &Plan, conflicts: &[Conflict]) -> Self {
        if !facts.node.enabled {
            return Self::NotEnabled;
        }
        if facts.proxy.mode.is_none() {
            return Self::ServiceProxyMissing;
        }
        if plan.addresses.is_empty() {
            return Self::NoAddresses;
        }
        // IPv4 must always be on where there is an IPv4 address, so that the admin
        // sees it before the first Service comes; IPv6 only once it is used.
        let uses_v4 = plan.addresses.iter().any(IpAddr::is_ipv4);
        let uses_v6 = plan.forwards.keys().any(|slot| slot.family == Family::V6);
        let used = [(Family::V4, uses_v4), (Family::V6, uses_v6)];
        let on = &facts.sysctls.forwarding;
        match used
            .iter()
            .find(|(family, uses)| *uses && !on.contains(family))
        {
            Some((family, _)) => Self::ForwardingDisabled(*family),
            None if for_report(conflicts).1.is_none() => Self::TooManyConflicts,
            None => match &facts.proxy.failing {
                Some(failing) => Self::ServiceProxyFailing(failing.clone()),
                None => Self::Programmed,
            },
        }
    }

    /// Whether traffic is forwarded.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self == Self::Programmed
    }

    /// The reasons that keep a node from being ready.
    pub const TROUBLES: [&str; 7] = [
        APPLY_FAILED,
        FORWARDING_DISABLED,
        SERVICE_PROXY_MISSING,
        SERVICE_PROXY_FAILING,
        NO_ADDRESSES,
        NOT_ENABLED,
        TOO_MANY_CONFLICTS,
    ];

    /// The reason of the condition: `Programmed`, or one of [`Self::TROUBLES`].
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Programmed => "Programmed",
            Self::ApplyFailed(_) => APPLY_FAILED,
            Self::ForwardingDisabled(_) => FORWARDING_DISABLED,
            Self::ServiceProxyMissing => SERVICE_PROXY_MISSING,
            Self::ServiceProxyFailing(_) => SERVICE_PROXY_FAILING,
            Self::NoAddresses => NO_ADDRESSES,
            Self::NotEnabled => NOT_ENABLED,
            Self::TooManyConflicts => TOO_MANY_CONFLICTS,
        }
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Programmed => "nftables forwards every served Service",
            Self::ApplyFailed(error) => error,
            Self::ForwardingDisabled(family) => {
                let sysctl = sysctls::forwarding(*family);
                return write!(
                    f,
                    "{family} forwarding is off, so no packet reaches a Pod; run `sysctl -w {sysctl}=1`"
                );
            }
            Self::ServiceProxyMissing => {
                "no sign of kube-proxy on this node: no answer on 127.0.0.1:10249/proxyMode, no \
                 rules in nftables or iptables, no kube-ipvs0; run kube-proxy in any of its modes, \
                 or, if another program does its work, set --service-proxy=none"
            }
            Self::ServiceProxyFailing(failing) => return failing.fmt(f),
            Self::NoAddresses => {
                "no address of this host is in the Node's status or on an interface with a \
                 default route; see --address-cidr"
            }
            Self::NotEnabled => {
                "the node is not labelled highwire.dev/enabled=true, or is being deleted"
            }
            Self::TooManyConflicts => {
                "more Services are refused a port here than a report can name; the log and \
                 `highwire-agent explain` do: delete them or give them other ports"
            }
        })
    }
}
