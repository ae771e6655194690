//! What the index keeps of a node: the Node, its LoadBalancerNode and its Lease.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use highwire_api::{
    LoadBalancerNode, ResourceVersion, ServiceKey,
    names::{
        AGENT_LEASE_DURATION, ENABLED_LABEL, ENABLED_VALUE, EXCLUDE_LABEL,
        OBSERVED_VERSION_ANNOTATION,
    },
};
use jiff::Timestamp;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Node};

use crate::{
    absence::Absence,
    liveness::{Freshness, Vitality},
    refusals::Refusal,
};

/// The taint the cluster autoscaler puts on a node it is about to delete; load
/// balancers take such a node out early
/// (k8s.io/cloud-provider controllers/service `nodeUnTaintedPredicate`).
const TO_BE_DELETED_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// What the label that keeps a node out of load balancers does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ExcludeLabel {
    /// It keeps the node out.
    #[default]
    Honoured,
    /// Nothing: kubeadm puts it on every control-plane node, also on one that is the
    /// whole cluster.
    Ignored,
}

/// Why a node will soon be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Departure {
    /// Its Node object is being deleted.
    Deleted,
    /// The cluster autoscaler has marked it.
    Marked,
}

/// What a Node's condition `Ready` says: the kubelet's word, or, once that is silent,
/// the node lifecycle controller's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum NodeReady {
    /// True.
    Ready,
    /// False or Unknown.
    NotReady,
    /// There is no such condition: the Node has no kubelet to say so. The agent's own
    /// report decides then.
    #[default]
    Unsaid,
}

/// The types of a Node's addresses that are advertised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodeAddress {
    /// `ExternalIP`.
    External,
    /// `InternalIP`.
    Internal,
}

/// What matters of a Node object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeFacts {
    /// For the Services' node selectors.
    pub(crate) labels: BTreeMap<String, String>,
    /// Whether the node has opted in, by its label.
    pub(crate) opted_in: bool,
    /// Whether the well-known label keeps it out of load balancers.
    pub(crate) excluded: bool,
    /// Why it will soon be gone, if so.
    pub(crate) departure: Option<Departure>,
    /// What its `Ready` condition says.
    pub(crate) ready: NodeReady,
    /// Its addresses of type ExternalIP.
    pub(crate) external: BTreeSet<IpAddr>,
    /// Its addresses of type InternalIP.
    pub(crate) internal: BTreeSet<IpAddr>,
}

impl NodeFacts {
    /// Its addresses of one type.
    pub(crate) fn addresses(&self, address_type: NodeAddress) -> &BTreeSet<IpAddr> {
        match address_type {
            NodeAddress::External => &self.external,
            NodeAddress::Internal => &self.internal,
        }
    }

    /// Reads a Node object.
    pub(crate) fn of(node: &Node, exclude: ExcludeLabel) -> Self {
        let status = node.status.as_ref();
        let conditions = status
            .and_then(|status| status.conditions.as_deref())
            .unwrap_or_default();
        let ready = conditions
            .iter()
            .find(|condition| condition.type_ == "Ready");
        let addresses = |type_: &str| {
            let all = status
                .and_then(|status| status.addresses.as_deref())
                .unwrap_or_default();
            all.iter()
                .filter(|address| address.type_ == type_)
                .filter_map(|address| address.address.parse().ok())
                .collect()
        };
        let labels = node.metadata.labels.clone().unwrap_or_default();
        Self {
            opted_in: labels
                .get(ENABLED_LABEL)
                .is_some_and(|value| value == ENABLED_VALUE),
            excluded: exclude == ExcludeLabel::Honoured && labels.contains_key(EXCLUDE_LABEL),
            labels,
            departure: departure(node),
            ready: match ready.map(|condition| condition.status.as_str()) {
                None => NodeReady::Unsaid,
                Some("True") => NodeReady::Ready,
                Some(_) => NodeReady::NotReady,
            },
            external: addresses("ExternalIP"),
            internal: addresses("InternalIP"),
        }
    }
}

fn departure(node: &Node) -> Option<Departure> {
    if node.metadata.deletion_timestamp.is_some() {
        return Some(Departure::Deleted);
    }
    let mut taints = node
        .spec
        .iter()
        .flat_map(|spec| spec.taints.iter().flatten());
    taints
        .any(|taint| taint.key == TO_BE_DELETED_TAINT)
        .then_some(Departure::Marked)
}

/// What matters of a LoadBalancerNode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AgentReport {
    /// Why the agent is not ready; `None` if it is.
    pub(crate) not_ready: Option<String>,
    /// The version up to which every Service event is in the kernel.
    pub(crate) observed: Option<ResourceVersion>,
    /// The Services it refuses, each with its refusals in order.
    pub(crate) conflicts: BTreeMap<ServiceKey, Vec<Refusal>>,
}

impl AgentReport {
    /// Reads a LoadBalancerNode.
    pub(crate) fn of(object: &LoadBalancerNode) -> Self {
        let status = object.status.clone().unwrap_or_default();
        let not_ready = match status.ready() {
            None => Some("its agent has not said yet whether it is ready".to_owned()),
            Some(condition) if condition.status == "True" => None,
            Some(condition) => Some(format!("its agent reports {}", condition.reason)),
        };
        let observed = status.observed();
        let mut conflicts: BTreeMap<ServiceKey, Vec<Refusal>> = BTreeMap::new();
        for conflict in status.conflicts {
            let refusals = conflicts.entry(conflict.service.clone()).or_default();
            refusals.extend(Refusal::of(conflict));
        }
        // Without a cause: it is refused all the same.
        for service in status.refused {
            conflicts.entry(service).or_default();
        }
        for refusals in conflicts.values_mut() {
            refusals.sort();
            refusals.dedup();
            refusals.shrink_to_fit();
        }
        Self {
            not_ready,
            observed,
            conflicts,
        }
    }

    /// The report of a LoadBalancerNode that cannot be read.
    pub(crate) fn unreadable(error: &str) -> Self {
        Self {
            not_ready: Some(format!("its LoadBalancerNode cannot be read: {error}")),
            observed: None,
            conflicts: BTreeMap::new(),
        }
    }
}

/// What matters of a Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeaseView {
    /// When it was renewed, by the clock of who renewed it.
    pub(crate) renewed: Option<Timestamp>,
    /// How long that is good for.
    pub(crate) duration: Duration,
    /// The version up to which every Service event is in the kernel.
    pub(crate) observed: Option<ResourceVersion>,
    /// Whether somebody holds it.
    pub(crate) held: bool,
}

impl LeaseView {
    /// Reads a Lease.
    pub(crate) fn of(lease: &Lease) -> Self {
        let spec = lease.spec.clone().unwrap_or_default();
        let seconds = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok());
        let annotations = lease.metadata.annotations.as_ref();
        Self {
            renewed: spec.renew_time.map(|time| time.0),
            duration: seconds
                .filter(|seconds| *seconds > 0)
                .map_or(AGENT_LEASE_DURATION, Duration::from_secs),
            observed: annotations
                .and_then(|annotations| annotations.get(OBSERVED_VERSION_ANNOTATION))
                .and_then(|version| version.parse().ok()),
            held: spec
                .holder_identity
                .is_some_and(|holder| !holder.is_empty()),
        }
    }
}

/// The agent's Lease as this process followed it.
#[derive(Clone, Debug)]
pub(crate) struct LeaseRecord {
    /// Whether the agent is alive.
    pub(crate) vitality: Vitality,
    /// See [`LeaseView::observed`].
    pub(crate) observed: Option<ResourceVersion>,
}

/// Everything known of a node.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeRecord {
    /// The Node, if it exists.
    pub(crate) facts: Option<NodeFacts>,
    /// What its agent reports.
    pub(crate) report: Option<AgentReport>,
    /// Whether its agent is alive.
    pub(crate) lease: Option<LeaseRecord>,
}

/// Whether a node can serve anything at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It can.
    Live,
    /// It may go on with what it is listed for, but not begin anything.
    Kept,
    /// Its agent is silent since a moment ago, which is no proof: it may go on with
    /// what it is listed for where the list would become empty without.
    Lost(Absence),
    /// It cannot.
    Out(Absence),
}

impl Standing {
    /// The name of the state, for metrics.
    pub(crate) fn state(&self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Kept => "unproven",
            Self::Out(Absence::NotOptedIn) => "not_opted_in",
            Self::Lost(_) | Self::Out(_) => "out",
        }
    }

    /// The states [`Self::state`] can give.
    pub(crate) const STATES: [&str; 4] = ["live", "unproven", "out", "not_opted_in"];
}

/// How much weight the refusals of a node have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Voice {
    /// Its agent is alive.
    Heard,
    /// Alive or dead, we can't tell.
    Doubtful,
    /// It does not serve, or its agent is dead.
    Silent,
}

impl NodeRecord {
    /// Whether the node can serve anything at all.
    pub(crate) fn standing(&self) -> Standing {
        let Some(facts) = self.facts.as_ref().filter(|facts| facts.opted_in) else {
            return Standing::Out(Absence::NotOptedIn);
        };
        if let Some(departure) = facts.departure {
            return Standing::Out(Absence::Departing(departure));
        }
        if facts.excluded {
            return Standing::Out(Absence::Excluded);
        }
        if facts.ready == NodeReady::NotReady {
            return Standing::Out(Absence::NodeNotReady);
        }
        let not_ready = self.report.as_ref().map(|report| &report.not_ready);
        if let Some(Some(reason)) = not_ready {
            return Standing::Out(Absence::AgentNotReady(reason.clone()));
        }
        match (not_ready, self.freshness()) {
            (None, Some(Freshness::Stale) | None) => Standing::Out(Absence::NoReport),
            (None, Some(_)) => Standing::Lost(Absence::NoReport),
            (Some(_), Some(Freshness::Fresh)) => Standing::Live,
            (Some(_), Some(Freshness::Unproven)) => Standing::Kept,
            (Some(_), Some(Freshness::Lost)) => Standing::Lost(Absence::Silent),
            // An agent that leaves deletes its Lease, which is proof.
            (Some(_), Some(Freshness::Stale) | None) => Standing::Out(Absence::Silent),
        }
    }

    fn freshness(&self) -> Option<Freshness> {
        self.lease.as_ref().map(|lease| lease.vitality.freshness())
    }

    /// Whether somebody else than its agent says that the machine is alive, and would
    /// say so if it were not.
    pub(crate) fn is_vouched_for(&self) -> bool {
        let vouched = |facts: &NodeFacts| facts.opted_in && facts.ready == NodeReady::Ready;
        self.facts.as_ref().is_some_and(vouched)
    }

    /// The version up to which every Service event is in the node's kernel.
    pub(crate) fn observed(&self) -> Option<ResourceVersion> {
        let reported = self.report.as_ref().and_then(|report| report.observed);
        let renewed = self.lease.as_ref().and_then(|lease| lease.observed);
        reported.max(renewed)
    }

    /// Why the node refuses the Service, if it does.
    pub(crate) fn refusals(&self, service: &ServiceKey) -> Option<&[Refusal]> {
        let report = self.report.as_ref()?;
        report.conflicts.get(service).map(Vec::as_slice)
    }

    /// Whether what the node refuses counts, advertised or not: it has opted in and
    /// its agent is alive.
    pub(crate) fn voice(&self) -> Voice {
        let in_service = |facts: &&NodeFacts| facts.opted_in && facts.departure.is_none();
        if self.facts.as_ref().filter(in_service).is_none() {
            return Voice::Silent;
        }
        match self.freshness() {
            Some(Freshness::Fresh) => Voice::Heard,
            Some(Freshness::Unproven) => Voice::Doubtful,
            Some(Freshness::Lost | Freshness::Stale) | None => Voice::Silent,
        }
    }

    /// Whether nothing is known any more.
    pub(crate) fn is_forgotten(&self) -> bool {
        self.facts.is_none() && self.report.is_none() && self.lease.is_none()
    }
}
