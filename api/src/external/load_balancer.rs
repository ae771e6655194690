//! The `LoadBalancer` resource: what one Service gets on a box outside the cluster.

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::port::Protocol;

/// What the box does for the Service of the same name. The controller writes it.
#[derive(
    CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema,
)]
#[kube(
    group = "highwire.dev",
    version = "v1alpha1",
    kind = "LoadBalancer",
    plural = "loadbalancers",
    shortname = "lb",
    namespaced,
    status = "LoadBalancerStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "LoadBalancer is what the Service of the same name gets on an ExternalLoadBalancer.",
    printcolumn = r#"{"name":"Host","type":"string","jsonPath":".status.host"}"#,
    printcolumn = r#"{"name":"Ports","type":"string","jsonPath":".status.ports"}"#,
    printcolumn = r#"{"name":"Targets","type":"integer","jsonPath":".status.targets"}"#,
    printcolumn = r#"{"name":"Status","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerSpec {
    /// The ExternalLoadBalancer.
    #[schemars(length(max = 253))]
    pub external_load_balancer: String,
    /// The Service's ports on the box, each with where its traffic goes.
    #[schemars(extend("maxItems" = 100))]
    pub ports: Vec<BoxPort>,
    /// The networks of the clients that may use it; empty for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        with = "Vec<String>",
        extend("x-kubernetes-list-type" = "atomic", "maxItems" = 5000),
        inner(length(max = 43))
    )]
    pub source_ranges: Vec<IpNet>,
    /// Whether a client keeps its target.
    #[serde(default, skip_serializing_if = "SessionAffinity::is_none")]
    pub session_affinity: SessionAffinity,
}

/// Whether a client keeps its target, as `spec.sessionAffinity` of its Service says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SessionAffinity {
    /// Each connection may get another.
    #[default]
    None,
    /// By its address, as long as that is a target.
    #[serde(rename = "ClientIP")]
    ClientIp,
}

impl SessionAffinity {
    fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// A port of the box.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BoxPort {
    /// The Service's port.
    #[schemars(extend("format" = "int32", "minimum" = 1))]
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// The box's port: the Service's own, or one of the range.
    #[schemars(extend("format" = "int32", "minimum" = 1))]
    pub box_port: u16,
    /// Where its traffic goes; refused while there is none.
    #[serde(default)]
    #[schemars(extend("maxItems" = 5000))]
    pub targets: Vec<Target>,
}

/// A node's address and port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Target {
    /// An address of the node.
    #[schemars(length(max = 45))]
    pub address: std::net::IpAddr,
    /// The NodePort.
    #[schemars(extend("format" = "int32", "minimum" = 1))]
    pub port: u16,
}

/// What the box has taken of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerStatus {
    /// Conditions. `Accepted` is True if the Service gets what it asks for; `Ready` is True
    /// while the box has it.
    #[serde(default)]
    #[schemars(extend(
        "x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"],
        "maxItems" = 16
    ))]
    pub conditions: Vec<Condition>,
    /// Where clients reach the Service now: IP addresses or host names of the box.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "atomic", "maxItems" = 16))]
    pub addresses: Vec<String>,
    /// The same in one text.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub host: String,
    /// The ports that it does not get because another Service has them.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "atomic", "maxItems" = 100))]
    pub conflicts: Vec<BoxConflict>,
    /// Its ports there, as people read them: `443/TCP 8001:80/TCP`.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub ports: String,
    /// How many nodes its traffic goes to.
    #[serde(default)]
    #[schemars(extend("format" = "int32"))]
    pub targets: u32,
}

/// A port of the box that another Service has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BoxConflict {
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    #[schemars(extend("format" = "int32", "minimum" = 1))]
    pub port: u16,
    /// Who has it, such as `Service default/traefik`.
    #[schemars(extend("maxLength" = 600))]
    pub held_by: String,
}
