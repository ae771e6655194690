//! The `LoadBalancerNode` resource: what the agent on one node reports.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ServiceKey, port::Protocol, version::ResourceVersion};

/// The condition type that says whether a node forwards.
pub const READY: &str = "Ready";

/// The condition's reason if kube-proxy does not follow what changes: what the node serves
/// already goes on.
pub const SERVICE_PROXY_FAILING: &str = "ServiceProxyFailing";

/// How many refused ports a report explains. With names of the greatest length they are
/// 1 MB, of the 1.5 MiB that etcd takes.
pub const MOST_CONFLICTS: usize = 1000;

/// How many characters `heldBy` may have.
pub const LONGEST_HELD_BY: usize = 512;

/// How many bytes of names `refused` may have.
pub const MOST_REFUSED_BYTES: usize = 400_000;

/// Empty: a LoadBalancerNode only reports.
#[derive(
    CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema,
)]
#[kube(
    group = "highwire.dev",
    version = "v1alpha1",
    kind = "LoadBalancerNode",
    plural = "loadbalancernodes",
    shortname = "lbn",
    status = "LoadBalancerNodeStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "LoadBalancerNode is what the Highwire agent on the Node of the same name reports.",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name":"Services","type":"integer","jsonPath":".status.services"}"#,
    printcolumn = r#"{"name":"Conflicts","type":"integer","jsonPath":".status.conflictCount"}"#,
    printcolumn = r#"{"name":"Proxy","type":"string","jsonPath":".status.proxyMode"}"#,
    printcolumn = r#"{"name":"Addresses","type":"string","jsonPath":".status.addresses"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerNodeSpec {}

/// What a node forwards now, and what it refuses. Its size grows with the
/// number of refusals, not with the number of Services.
// Every field is written, also when empty: it goes out as a merge patch, in which a
// missing field would leave what stood there before.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerNodeStatus {
    /// Conditions of the node; `Ready` is True while it forwards.
    #[serde(default)]
    #[schemars(extend(
        "x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"],
        "maxItems" = 16
    ))]
    pub conditions: Vec<Condition>,
    /// Every Service event up to this resource version is in the node's nftables.
    #[serde(default)]
    pub observed_resource_version: Option<String>,
    /// How many Services the node forwards.
    // Kubernetes knows no unsigned formats and warns of them at every apply.
    #[serde(default)]
    #[schemars(extend("format" = "int32"))]
    pub services: u32,
    /// How many ports the node forwards, over all Services.
    #[serde(default)]
    #[schemars(extend("format" = "int32"))]
    pub ports: u32,
    /// How many ports are refused, over all Services.
    #[serde(default)]
    #[schemars(extend("format" = "int32"))]
    pub conflict_count: u32,
    /// Ports that Services asked for and this node refuses, and why; the first 1,000.
    #[serde(default)]
    #[schemars(extend("maxItems" = MOST_CONFLICTS))]
    pub conflicts: Vec<Conflict>,
    /// The Services of all further refused ports, as `namespace/name`.
    #[serde(default)]
    #[schemars(extend("maxItems" = 100_000))]
    pub refused: Vec<ServiceKey>,
    /// The addresses of the node at which Services answer.
    #[serde(default)]
    #[schemars(extend("maxItems" = 10_000))]
    pub addresses: Vec<String>,
    /// How kube-proxy works on this node; `none` if the node does without one.
    #[serde(default)]
    #[schemars(with = "Option<String>", extend("maxLength" = 64, "pattern" = "^[a-z]+$"))]
    pub proxy_mode: Option<ProxyMode>,
}

impl LoadBalancerNodeStatus {
    /// The parsed `observedResourceVersion`.
    #[must_use]
    pub fn observed(&self) -> Option<ResourceVersion> {
        self.observed_resource_version.as_deref()?.parse().ok()
    }

    /// The `Ready` condition.
    #[must_use]
    pub fn ready(&self) -> Option<&Condition> {
        self.conditions
            .iter()
            .find(|condition| condition.type_ == READY)
    }
}

/// One port that a Service asked for and the node refuses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Conflict {
    /// The refused Service, as `namespace/name`.
    pub service: ServiceKey,
    /// The protocol of the refused port.
    pub protocol: Protocol,
    /// The refused port.
    #[schemars(extend("format" = "int32", "minimum" = 1))]
    pub port: u16,
    /// Why it is refused; more reasons may be added.
    #[schemars(with = "String", extend("maxLength" = 64, "pattern" = "^[A-Za-z]+$"))]
    pub reason: ConflictReason,
    /// Who has the port, such as `Service default/traefik`.
    #[schemars(extend("maxLength" = LONGEST_HELD_BY))]
    pub held_by: String,
}

/// Why a node refuses a port.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum ConflictReason {
    /// Another Service serves the port on this node.
    HeldByService,
    /// A program on the host listens on it, or did until a moment ago.
    HostListener,
    /// It is one of the ports that no Service gets.
    ReservedPort,
    /// A Pod claims it as hostPort.
    HostPort,
    /// It is the NodePort of a Service.
    NodePort,
    /// It is the health check NodePort of a Service.
    HealthCheckNodePort,
    /// A Service has it at an externalIP that is an address of this node.
    #[serde(rename = "ExternalIP")]
    ExternalIp,
    /// Another load balancer has it for a Service at an address of this node, where kube-proxy
    /// serves it: `ipMode` is not `Proxy`.
    LoadBalancerAddress,
    /// Nobody has it, but nft refuses the Service's rules.
    RefusedByNft,
    /// The node has no room for the Service's source ranges.
    TooManySourceRanges,
    /// The Service's own Pod listens on it in the host's network, where the Service's
    /// source ranges cannot be enforced.
    SourceRangesNotEnforced,
    /// A reason that only a newer version knows; `heldBy` explains it.
    #[serde(other)]
    Other,
}

impl ConflictReason {
    /// Every reason.
    pub const ALL: [Self; 12] = [
        Self::HeldByService,
        Self::HostListener,
        Self::ReservedPort,
        Self::HostPort,
        Self::NodePort,
        Self::HealthCheckNodePort,
        Self::ExternalIp,
        Self::LoadBalancerAddress,
        Self::RefusedByNft,
        Self::TooManySourceRanges,
        Self::SourceRangesNotEnforced,
        Self::Other,
    ];

    /// The reason as it stands in the API and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HeldByService => "HeldByService",
            Self::HostListener => "HostListener",
            Self::ReservedPort => "ReservedPort",
            Self::HostPort => "HostPort",
            Self::NodePort => "NodePort",
            Self::HealthCheckNodePort => "HealthCheckNodePort",
            Self::ExternalIp => "ExternalIP",
            Self::LoadBalancerAddress => "LoadBalancerAddress",
            Self::RefusedByNft => "RefusedByNft",
            Self::TooManySourceRanges => "TooManySourceRanges",
            Self::SourceRangesNotEnforced => "SourceRangesNotEnforced",
            Self::Other => "Other",
        }
    }
}

/// How kube-proxy implements Services on a node, if it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProxyMode {
    /// `--proxy-mode=iptables`, in either iptables flavour.
    Iptables,
    /// `--proxy-mode=nftables`.
    Nftables,
    /// `--proxy-mode=ipvs`.
    Ipvs,
    /// There is no kube-proxy, and Highwire itself picks the Pods.
    #[serde(rename = "none")]
    Absent,
    /// One that only a newer version knows.
    #[serde(other)]
    Other,
}

impl ProxyMode {
    /// Its name, as in kube-proxy's `--proxy-mode`, or `none`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::Ipvs => "ipvs",
            Self::Absent => "none",
            Self::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_newer_agents_report_is_readable() {
        let status: LoadBalancerNodeStatus = serde_json::from_value(json!({
            "observedResourceVersion": "7",
            "proxyMode": "ebpf",
            "conflicts": [{"service": "a/b", "protocol": "TCP", "port": 80,
                           "reason": "HeldByCni", "heldBy": "a CNI", "since": "today"}],
            "zone": "a",
        }))
        .unwrap();
        assert_eq!(status.proxy_mode, Some(ProxyMode::Other));
        let conflict = &status.conflicts[0];
        assert_eq!(
            (conflict.reason, conflict.held_by.as_str()),
            (ConflictReason::Other, "a CNI")
        );
    }

    #[test]
    fn a_report_of_an_older_agent_is_read() {
        let status: LoadBalancerNodeStatus = serde_json::from_value(json!({
            "conflictCount": 1,
            "conflicts": [{"service": "a/b", "protocol": "UDP", "port": 53,
                           "reason": "ExternalIP", "heldBy": "x"}],
        }))
        .unwrap();
        assert_eq!(status.conflicts[0].reason, ConflictReason::ExternalIp);
        assert!(status.refused.is_empty());
    }
}
