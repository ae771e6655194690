//! Node → fact, and LoadBalancerNode → fact.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use highwire_api::{
    LoadBalancerNode, PortKey, ResourceVersion, ServiceKey,
    names::{ENABLED_LABEL, ENABLED_VALUE, EXCLUDE_LABEL},
    node::{Conflict, ConflictReason, ProxyMode, SERVICE_PROXY_FAILING},
    service::AddressType,
};
use highwire_runtime::printable::printable;
use k8s_openapi::api::core::v1::Node;
use kube::{ResourceExt, core::DeserializeGuard};
use tracing::warn;

/// The taint the cluster autoscaler puts on a node it is about to delete; load
/// balancers take such a node out early
/// (k8s.io/cloud-provider controllers/service `nodeUnTaintedPredicate`).
const TO_BE_DELETED_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// Why a node will soon be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// Its Node object is being deleted.
    Deleted,
    /// The cluster autoscaler has marked it.
    Marked,
}

/// What a Node's condition `Ready` says. The kubelet writes it, or, once that is silent,
/// the node lifecycle controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeReady {
    /// True.
    Ready,
    /// False or Unknown.
    NotReady,
    /// There is no such condition: the Node has no kubelet. The agent's own report
    /// decides then.
    #[default]
    NoCondition,
}

/// What matters of a Node object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// For the Services' node selectors.
    pub labels: BTreeMap<String, String>,
    /// Whether the node has opted in, by its label.
    pub opted_in: bool,
    /// Whether it has the well-known label that keeps it out of load balancers.
    pub exclude_label: bool,
    /// Why it will soon be gone, if so.
    pub departure: Option<Departure>,
    /// What its `Ready` condition says.
    pub ready: NodeReady,
    /// Its addresses of type ExternalIP.
    pub external: BTreeSet<IpAddr>,
    /// Its addresses of type InternalIP.
    pub internal: BTreeSet<IpAddr>,
}

impl NodeFacts {
    /// Reads a Node object.
    #[must_use]
    pub fn of(node: &Node) -> Self {
        let status = node.status.as_ref();
        let mut conditions = status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten());
        let ready = conditions.find(|condition| condition.type_ == "Ready");
        let addresses = |type_: &str| {
            let all = status
                .iter()
                .flat_map(|status| status.addresses.iter().flatten());
            all.filter(|address| address.type_ == type_)
                .filter_map(|address| address.address.parse().ok())
                .collect()
        };
        let labels = node.metadata.labels.clone().unwrap_or_default();
        Self {
            opted_in: labels
                .get(ENABLED_LABEL)
                .is_some_and(|value| value == ENABLED_VALUE),
            exclude_label: labels.contains_key(EXCLUDE_LABEL),
            labels,
            departure: departure(node),
            ready: match ready.map(|condition| condition.status.as_str()) {
                None => NodeReady::NoCondition,
                Some("True") => NodeReady::Ready,
                Some(_) => NodeReady::NotReady,
            },
            external: addresses("ExternalIP"),
            internal: addresses("InternalIP"),
        }
    }

    /// Whether Kubernetes itself says that the machine runs.
    #[must_use]
    pub fn is_vouched_for(&self) -> bool {
        self.opted_in && self.ready == NodeReady::Ready
    }
}

/// A node's addresses of one type.
pub type OfType = fn(&NodeFacts) -> &BTreeSet<IpAddr>;

/// The types of addresses to use, of each family the first that any fitting node has.
#[must_use]
pub fn address_types(choice: AddressType) -> &'static [OfType] {
    const EXTERNAL: OfType = |node| &node.external;
    const INTERNAL: OfType = |node| &node.internal;
    match choice {
        AddressType::ExternalIp => &[EXTERNAL],
        AddressType::InternalIp => &[INTERNAL],
        AddressType::Auto => &[EXTERNAL, INTERNAL],
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

/// Whether an agent says that it is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentReady {
    /// It is.
    Ready,
    /// It has no condition `Ready` yet.
    NoCondition,
    /// kube-proxy fails on its node: what is served there goes on, and nothing is added.
    ServiceProxyFailing,
    /// It is not, for this reason.
    NotReady(String),
    /// Its report cannot be read.
    Unreadable(String),
}

/// A port that a Service asks for and another has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortConflict {
    /// The port.
    pub port: PortKey,
    /// Who has it, as the agent wrote it; escaped.
    pub held_by: String,
    /// The kind of holder.
    pub reason: ConflictReason,
}

impl PortConflict {
    /// Reads an entry of a LoadBalancerNode; `None` if its port is none.
    fn of(conflict: &Conflict) -> Option<Self> {
        Some(Self {
            port: PortKey::new(conflict.protocol, conflict.port.into())?,
            held_by: printable(&conflict.held_by),
            reason: conflict.reason,
        })
    }
}

/// What matters of a LoadBalancerNode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whether the agent is ready.
    pub agent: AgentReady,
    /// The version up to which every Service event is in the node's kernel.
    pub observed: Option<ResourceVersion>,
    /// The version of the object.
    pub version: Option<ResourceVersion>,
    /// The Services that the node refuses, each with the conflicts in order; without any
    /// if the report had no room for them.
    pub refused: BTreeMap<ServiceKey, Vec<PortConflict>>,
    /// What else people want to see.
    pub shown: Shown,
}

/// What a report says that no decision depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// The message of its condition `Ready`.
    pub message: String,
    /// How many Services the node forwards.
    pub services: u32,
    /// How many ports, over all Services.
    pub ports: u32,
    /// How kube-proxy works on the node.
    pub proxy_mode: Option<ProxyMode>,
}

impl Report {
    /// Reads a LoadBalancerNode. One that does not parse must not stop the others. Its texts
    /// are escaped: they get into conditions and Events.
    #[must_use]
    pub fn of(object: &DeserializeGuard<LoadBalancerNode>) -> Self {
        let object = match &object.0 {
            Ok(object) => object,
            Err(invalid) => {
                let (node, error) = (object.name_any(), &invalid.error);
                warn!(
                    node,
                    "the LoadBalancerNode cannot be read, so the node is not advertised: {error}"
                );
                return Self {
                    agent: AgentReady::Unreadable(printable(error)),
                    observed: None,
                    version: None,
                    refused: BTreeMap::new(),
                    shown: Shown::default(),
                };
            }
        };
        let status = object.status.clone().unwrap_or_default();
        let agent = match status.ready() {
            None => AgentReady::NoCondition,
            Some(condition) if condition.status == "True" => AgentReady::Ready,
            Some(condition) if condition.reason == SERVICE_PROXY_FAILING => {
                AgentReady::ServiceProxyFailing
            }
            Some(condition) => AgentReady::NotReady(printable(&condition.reason)),
        };
        let mut refused: BTreeMap<ServiceKey, Vec<PortConflict>> = BTreeMap::new();
        // No Service has another name.
        let is_name = |key: &ServiceKey| key.to_string().chars().all(|c| c.is_ascii_graphic());
        for conflict in status.conflicts.iter().filter(|it| is_name(&it.service)) {
            let conflicts = refused.entry(conflict.service.clone()).or_default();
            conflicts.extend(PortConflict::of(conflict));
        }
        for service in status.refused.iter().filter(|it| is_name(it)) {
            refused.entry(service.clone()).or_default();
        }
        for conflicts in refused.values_mut() {
            conflicts.sort();
            conflicts.dedup();
            conflicts.shrink_to_fit();
        }
        let message = status
            .ready()
            .map(|condition| printable(&condition.message));
        Self {
            agent,
            observed: status.observed(),
            version: ResourceVersion::of(&object.metadata),
            refused,
            shown: Shown {
                message: message.unwrap_or_default(),
                services: status.services,
                ports: status.ports,
                proxy_mode: status.proxy_mode,
            },
        }
    }

    /// The Services that one of two reports refuses otherwise than the other.
    pub fn differing<'a>(one: Option<&'a Self>, other: Option<&'a Self>) -> Vec<&'a ServiceKey> {
        let refused = |report: &'a Self| report.refused.iter();
        let only = |these: Option<&'a Self>, those: Option<&'a Self>| {
            let those = move |key| those.and_then(|those| those.refused.get(key));
            let these = these.into_iter().flat_map(refused);
            these.filter(move |(key, found)| those(*key) != Some(*found))
        };
        let all = only(one, other).chain(only(other, one));
        all.map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_an_agent_writes_is_only_text() {
        let conflict = |service: &str| {
            json!({"service": service, "protocol": "TCP", "port": 80,
                   "reason": "HostListener", "heldBy": "a\u{1b}[31m\u{202e}\nb"})
        };
        let object = json!({
            "apiVersion": "highwire.dev/v1alpha1", "kind": "LoadBalancerNode",
            "metadata": {"name": "n1"}, "spec": {},
            "status": {
                "conditions": [{"type": "Ready", "status": "False", "reason": "No\u{202e}",
                                "message": "x\u{7}", "lastTransitionTime": "2026-01-02T03:04:05Z"}],
                "conflicts": [conflict("shop/web"), conflict("shop/w\u{1b}eb")],
                "refused": ["shop/\u{202e}late"],
            },
        });
        let report = Report::of(&serde_json::from_value(object).unwrap());
        assert_eq!(report.agent, AgentReady::NotReady("No\\u{202e}".to_owned()));
        assert_eq!(report.shown.message, "x\\u{7}");
        let [(service, conflicts)] = Vec::from_iter(&report.refused)[..] else {
            panic!("{:?}", report.refused);
        };
        assert_eq!(service.to_string(), "shop/web");
        assert_eq!(conflicts[0].held_by, "a\\u{1b}[31m\\u{202e}\\nb");
    }
}
