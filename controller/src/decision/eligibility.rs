//! Which nodes may be listed for a Service.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use highwire_api::{Family, PortKey, ResourceVersion, ServiceKey, ServiceSpec};

use crate::{
    config::Policy,
    facts::{
        endpoints::Endpoints,
        ingress::Ingress,
        node::{AgentReady, Departure, NodeFacts, NodeReady, PortConflict, Report},
        service::needs_endpoints,
    },
    liveness::Liveness,
};

/// Why a node is not listed for a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ineligible {
    /// It will soon be gone.
    Departing(Departure),
    /// It has the well-known label that keeps it out of load balancers.
    Excluded,
    /// The Node's `Ready` condition is not True.
    NodeNotReady,
    /// There is neither a LoadBalancerNode nor a Lease.
    NoAgent,
    /// There is no LoadBalancerNode, though there is a Lease.
    NoReport,
    /// The agent says that it is not ready.
    AgentNotReady(AgentReady),
    /// The agent does not renew its Lease.
    Silent,
    /// The agent has deleted its Lease, as one does that leaves.
    NoLease,
    /// The Service's node selector does not match.
    NotSelected,
    /// It has no ready endpoint, and the policy is Local.
    NoEndpoint,
    /// It refuses a port; without the conflict if its report had no room for it.
    Refused(Option<PortConflict>),
    /// The agent has not observed the Service as it is now.
    CatchingUp,
    /// It has no address of the type and family the Service asks for.
    NoAddress,
}

impl Ineligible {
    /// Whether it rests only on what was not heard: that is no proof that the node is gone.
    fn is_silence(&self) -> bool {
        matches!(self, Self::NoReport | Self::Silent)
    }
}

/// Whether a node can serve at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It can.
    Ready,
    /// It is not known: the node stays where it is listed and is listed nowhere else.
    Unknown,
    /// It cannot.
    NotReady(Ineligible),
}

/// A node that has opted in, with what is decided once for all Services.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The Node.
    pub facts: Arc<NodeFacts>,
    /// What its agent reports.
    pub report: Option<Arc<Report>>,
    /// Whether its agent is alive; `None` if it has no Lease.
    pub liveness: Option<Liveness>,
    /// The version up to which every Service event is in its kernel.
    pub observed: Option<ResourceVersion>,
    /// Whether it can serve at all.
    pub readiness: Readiness,
}

/// The nodes that have opted in, by name.
pub type Nodes = BTreeMap<String, Node>;

impl Node {
    /// Joins what is known of a node.
    #[must_use]
    pub fn new(
        facts: Arc<NodeFacts>,
        report: Option<Arc<Report>>,
        liveness: Option<Liveness>,
        observed: Option<ResourceVersion>,
        policy: &Policy,
    ) -> Self {
        Self {
            readiness: readiness(&facts, report.as_deref(), liveness, policy),
            facts,
            report,
            liveness,
            observed,
        }
    }

    /// Whether a Service may be decided otherwise for this node than for the other, leaving
    /// aside what the report says of single Services and how far the node has come.
    #[must_use]
    pub fn differs_for_all(&self, other: &Self) -> bool {
        self.readiness != other.readiness
            || self.liveness != other.liveness
            || self.facts != other.facts
    }

    /// Whether its agent is ready, if it has said so.
    #[must_use]
    pub fn agent(&self) -> Option<&AgentReady> {
        self.report.as_ref().map(|report| &report.agent)
    }

    /// The ports that the node refuses to the Service; `None` if it does not refuse it.
    #[must_use]
    pub fn refusal(&self, service: &ServiceKey) -> Option<&[PortConflict]> {
        let report = self.report.as_ref()?;
        report.refused.get(service).map(Vec::as_slice)
    }

    /// Whether the node's kernel has every Service event up to this version.
    #[must_use]
    pub fn has_observed(&self, version: ResourceVersion) -> bool {
        self.observed >= Some(version)
    }

    /// Whether its agent is alive for sure.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.liveness == Some(Liveness::Alive)
    }

    /// The name of its readiness, for metrics.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match self.readiness {
            Readiness::Ready => "live",
            Readiness::Unknown => "unproven",
            Readiness::NotReady(_) => "out",
        }
    }

    /// The states of nodes: what [`Self::state`] can give, and those that have not opted in.
    pub const STATES: [&str; 4] = ["live", "unproven", "out", "not_opted_in"];
}

fn readiness(
    facts: &NodeFacts,
    report: Option<&Report>,
    liveness: Option<Liveness>,
    policy: &Policy,
) -> Readiness {
    let ineligible = if let Some(departure) = facts.departure {
        Ineligible::Departing(departure)
    } else if facts.exclude_label && !policy.ignore_exclude_label {
        Ineligible::Excluded
    } else if facts.ready == NodeReady::NotReady {
        Ineligible::NodeNotReady
    } else {
        match (report.map(|report| &report.agent), liveness) {
            (None, None) => Ineligible::NoAgent,
            (None, Some(_)) => Ineligible::NoReport,
            (Some(AgentReady::Ready), Some(Liveness::Alive)) => return Readiness::Ready,
            (Some(AgentReady::Ready | AgentReady::ServiceProxyFailing), Some(Liveness::Silent)) => {
                Ineligible::Silent
            }
            (Some(AgentReady::Ready | AgentReady::ServiceProxyFailing), None) => {
                Ineligible::NoLease
            }
            (Some(AgentReady::Ready | AgentReady::ServiceProxyFailing), Some(_)) => {
                return Readiness::Unknown;
            }
            (Some(agent), _) => Ineligible::AgentNotReady(agent.clone()),
        }
    };
    Readiness::NotReady(ineligible)
}

/// How to take nodes whose agents are silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// They are gone.
    IsAbsence,
    /// They may still be there, and stay where they are listed.
    ProvesNothing,
}

/// How a node may be listed for a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eligible {
    /// With all ports.
    AllPorts,
    /// With what it is listed for, as far as that is still wanted.
    Retained,
}

/// A Service as the decision sees it.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// The Service.
    pub key: &'a ServiceKey,
    /// What it asks for.
    pub spec: &'a ServiceSpec,
    /// Its ports.
    pub ports: Arc<BTreeSet<PortKey>>,
    /// Whether a value is invalid now and `spec` is what it asked for before. Nobody is
    /// added: an agent that started since does not know that.
    pub is_outdated: bool,
    /// What a node must have observed to serve it as it is now.
    pub changed: ResourceVersion,
    /// What its status lists now.
    pub listed: &'a Ingress,
    /// Where Services have ready endpoints.
    pub endpoints: &'a Endpoints,
}

impl Asked<'_> {
    /// Whether and how the node may be listed.
    ///
    /// # Errors
    /// Why it may not.
    pub fn eligibility(
        &self,
        name: &str,
        node: &Node,
        silence: Silence,
    ) -> Result<Eligible, Ineligible> {
        if let Readiness::NotReady(reason) = &node.readiness
            && !(silence == Silence::ProvesNothing && reason.is_silence())
        {
            return Err(reason.clone());
        }
        if !self.selects(node) {
            return Err(Ineligible::NotSelected);
        }
        if let Some(conflicts) = node.refusal(self.key) {
            return Err(Ineligible::Refused(conflicts.first().cloned()));
        }
        let mut families = self.spec.cluster_ips.families();
        if !families.any(|family| self.has_endpoint(name, family)) {
            return Err(Ineligible::NoEndpoint);
        }
        let is_proven = node.readiness == Readiness::Ready && node.has_observed(self.changed);
        Ok(if is_proven && !self.is_outdated {
            Eligible::AllPorts
        } else {
            Eligible::Retained
        })
    }

    /// Whether the Service's node selector matches.
    #[must_use]
    pub fn selects(&self, node: &Node) -> bool {
        self.spec.node_selector.matches(&node.facts.labels)
    }

    /// Whether some Pod would answer clients of that family on the node.
    #[must_use]
    pub fn has_endpoint(&self, name: &str, family: Family) -> bool {
        !needs_endpoints(self.spec) || self.endpoints.is_ready(self.key, name, family)
    }
}
