//! What the agent tells the cluster about its node. Pure: see [`crate::reporter`]
//! for who writes it.

use std::{collections::BTreeSet, fmt};

use highwire_api::{
    Family, LoadBalancerNodeStatus, ResourceVersion, ServiceKey,
    node::{Conflict, LONGEST_HELD_BY, MOST_CONFLICTS, MOST_REFUSED_BYTES, ProxyMode, READY},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::{decide::Decision, host::forwarding};

/// Whether this node forwards, and if not, why: the `Ready` condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// The kernel does what was decided.
    Programmed,
    /// nft or the kernel refused; what was there before is still there.
    ApplyFailed(String),
    /// The kernel does not forward packets of a family we serve.
    ForwardingDisabled(Family),
    /// There is no sign of kube-proxy, so nobody would take what we rewrite.
    ServiceProxyMissing,
    /// The host has no address at which Services could answer.
    NoAddresses,
    /// The Node lacks the label, or is being deleted.
    NotEnabled,
    /// It refuses so many Services that the report cannot name them, and who reads it
    /// would take the others for served.
    TooManyConflicts,
}

impl Readiness {
    /// Whether traffic is forwarded.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self == Self::Programmed
    }

    /// The reason of the condition, one of a fixed set.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Programmed => "Programmed",
            Self::ApplyFailed(_) => "ApplyFailed",
            Self::ForwardingDisabled(_) => "ForwardingDisabled",
            Self::ServiceProxyMissing => "ServiceProxyMissing",
            Self::NoAddresses => "NoAddresses",
            Self::NotEnabled => "NotEnabled",
            Self::TooManyConflicts => "TooManyConflicts",
        }
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Programmed => f.write_str("nftables forwards every served Service"),
            Self::ApplyFailed(error) => f.write_str(error),
            Self::ForwardingDisabled(family) => write!(
                f,
                "{family} forwarding is off, so no packet reaches a Pod; run `sysctl -w {}=1`",
                forwarding::sysctl(*family)
            ),
            Self::ServiceProxyMissing => f.write_str(
                "no sign of kube-proxy on this node: no answer on 127.0.0.1:10249/proxyMode, no \
                 rules in nftables or iptables, no kube-ipvs0; run kube-proxy in any of its modes",
            ),
            Self::NoAddresses => f.write_str(
                "no address of this host is in the Node's status or on an interface with a \
                 default route; see --address-cidr",
            ),
            Self::NotEnabled => f.write_str(
                "the node is not labelled highwire.dev/enabled=true, or is being deleted",
            ),
            Self::TooManyConflicts => f.write_str(
                "more Services are refused a port here than a report can name; the log and \
                 `highwire-agent explain` do: delete them or give them other ports",
            ),
        }
    }
}

/// The state of the node, ready to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The Node's UID.
    pub node_uid: String,
    /// Whether it forwards.
    pub readiness: Readiness,
    /// What it forwards and refuses.
    pub decision: Decision,
    /// Grows when what some Service asks for has changed; see
    /// [`crate::services::ServiceIndex::revision`].
    pub revision: u64,
    /// Every Service event up to this version is in the kernel.
    pub observed: ResourceVersion,
    /// How kube-proxy works here, if known.
    pub proxy_mode: Option<ProxyMode>,
}

impl Report {
    /// Whether the status has to be written again, given what was written last.
    /// A newer `observed` alone is no reason: the Lease carries that.
    #[must_use]
    pub fn differs_from(&self, written: &Self) -> bool {
        let same_version = Self {
            observed: written.observed,
            ..self.clone()
        };
        same_version != *written
    }

    /// The status to write; `previous` keeps the time of an unchanged condition.
    #[must_use]
    pub fn status(&self, previous: Option<&Condition>, now: Timestamp) -> LoadBalancerNodeStatus {
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let (told, refused) = bounded(&self.decision.conflicts);
        LoadBalancerNodeStatus {
            conditions: vec![self.condition(previous, now)],
            observed_resource_version: Some(self.observed.to_string()),
            services: count(self.decision.served.len()),
            ports: count(self.ports()),
            conflict_count: count(self.decision.conflicts.len()),
            conflicts: told.iter().map(shortened).collect(),
            refused: if fits(&refused) { refused } else { Vec::new() },
            addresses: self
                .decision
                .plan
                .addresses
                .iter()
                .map(ToString::to_string)
                .collect(),
            proxy_mode: self.proxy_mode,
        }
    }

    /// How many ports are served; one in two families is one port.
    #[must_use]
    pub fn ports(&self) -> usize {
        let forwards = self.decision.plan.forwards.keys();
        forwards
            .map(|slot| slot.port)
            .collect::<BTreeSet<_>>()
            .len()
    }

    fn condition(&self, previous: Option<&Condition>, now: Timestamp) -> Condition {
        let status = if self.readiness.is_ready() {
            "True"
        } else {
            "False"
        };
        let unchanged = previous.filter(|previous| previous.status == status);
        Condition {
            type_: READY.to_owned(),
            status: status.to_owned(),
            reason: self.readiness.reason().to_owned(),
            message: self.readiness.to_string(),
            last_transition_time: unchanged
                .map_or(Time(now), |previous| previous.last_transition_time.clone()),
            observed_generation: None,
        }
    }
}

/// Whether a report can name every Service that is refused a port.
#[must_use]
pub fn names_all(conflicts: &[Conflict]) -> bool {
    fits(&bounded(conflicts).1)
}

/// The conflicts that a report explains, and the Services of the others.
fn bounded(conflicts: &[Conflict]) -> (&[Conflict], Vec<ServiceKey>) {
    let (explained, others) = conflicts.split_at(conflicts.len().min(MOST_CONFLICTS));
    let known: BTreeSet<&ServiceKey> = explained.iter().map(|c| &c.service).collect();
    let all: BTreeSet<&ServiceKey> = others.iter().map(|c| &c.service).collect();
    (
        explained,
        all.difference(&known).copied().cloned().collect(),
    )
}

fn fits(refused: &[ServiceKey]) -> bool {
    // Quotes, a slash and a comma stand around each.
    let size = |key: &ServiceKey| key.namespace.len() + key.name.len() + 4;
    refused.iter().map(size).sum::<usize>() <= MOST_REFUSED_BYTES
}

/// The conflict with words that fit into a report.
fn shortened(conflict: &Conflict) -> Conflict {
    Conflict {
        held_by: conflict.held_by.chars().take(LONGEST_HELD_BY).collect(),
        ..conflict.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(readiness: Readiness) -> Report {
        Report {
            node_uid: "u".into(),
            readiness,
            decision: Decision::default(),
            revision: 1,
            observed: ResourceVersion(5),
            proxy_mode: None,
        }
    }

    #[test]
    fn a_newer_version_alone_is_not_written() {
        let written = report(Readiness::Programmed);
        let newer = Report {
            observed: ResourceVersion(9),
            ..written.clone()
        };
        assert!(!newer.differs_from(&written));
        assert!(
            Report {
                revision: 2,
                ..newer
            }
            .differs_from(&written)
        );
        assert!(report(Readiness::NotEnabled).differs_from(&written));
    }

    #[test]
    fn what_is_gone_is_written_as_empty() {
        let status = report(Readiness::Programmed).status(None, Timestamp::UNIX_EPOCH);
        let written = serde_json::to_value(status).unwrap();
        assert_eq!(written["conflicts"], serde_json::json!([]));
        assert_eq!(written["addresses"], serde_json::json!([]));
        assert_eq!(written.get("proxyMode"), Some(&serde_json::Value::Null));
    }

    #[test]
    fn the_transition_time_changes_with_the_status_only() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let status = |readiness: Readiness, previous: Option<&Condition>, second| {
            report(readiness)
                .status(previous, at(second))
                .conditions
                .remove(0)
        };
        let first = status(Readiness::Programmed, None, 1);
        let same = status(Readiness::Programmed, Some(&first), 2);
        assert_eq!(same.last_transition_time, Time(at(1)));
        let off = status(Readiness::ForwardingDisabled(Family::V4), Some(&same), 3);
        assert_eq!(
            (off.status.as_str(), off.reason.as_str()),
            ("False", "ForwardingDisabled")
        );
        assert_eq!(off.last_transition_time, Time(at(3)));
        assert!(
            off.message.contains("sysctl -w net.ipv4.ip_forward=1"),
            "{}",
            off.message
        );
    }

    #[test]
    fn a_report_is_bounded_and_names_every_refused_service() {
        use highwire_api::{Protocol, node::ConflictReason};
        let refusing = |services: usize, ports: u16, length: usize| {
            let mut report = report(Readiness::Programmed);
            let all = (0..services).flat_map(|number| {
                (1..=ports).map(move |port| Conflict {
                    service: format!("ns/{number:0length$}").parse().unwrap(),
                    protocol: Protocol::Tcp,
                    port,
                    reason: ConflictReason::HeldByService,
                    held_by: "Service a/b".into(),
                })
            });
            report.decision.conflicts = all.collect();
            report.decision.conflicts.sort();
            report.status(None, Timestamp::UNIX_EPOCH)
        };
        let small = refusing(10, 3, 4);
        assert_eq!((small.conflicts.len(), small.refused.len()), (30, 0));
        // One Service that asks for 11,000 ports is told in 1,000 of them.
        let one = refusing(1, 11_000, 4);
        assert_eq!(
            (one.conflicts.len(), one.refused.len()),
            (MOST_CONFLICTS, 0)
        );
        assert_eq!(one.conflict_count, 11_000);

        let many = refusing(5_000, 2, 8);
        let mut named: BTreeSet<_> = many.conflicts.iter().map(|c| &c.service).collect();
        named.extend(&many.refused);
        assert_eq!((named.len(), many.refused.len()), (5_000, 4_500));
        let too_many = refusing(20_000, 1, 60);
        assert!(too_many.conflicts.len() == MOST_CONFLICTS && too_many.refused.is_empty());
    }
}
