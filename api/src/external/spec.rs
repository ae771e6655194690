//! The `ExternalLoadBalancer` resource: a box in front of the cluster, and how it is driven.
#![allow(
    unreachable_pub,
    reason = "what KubeSchema derives from is repeated in a private module"
)]

use std::num::NonZeroU16;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::service::AddressType;

/// How long an updater may take to answer, in seconds.
const TIMEOUT: u16 = 10;
/// How often everything is sent again, in seconds: a box that was restarted has its state back
/// by then.
const RESYNC: u32 = 300;

/// How clients get from the box to the nodes.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "highwire.dev",
    version = "v1alpha1",
    kind = "ExternalLoadBalancer",
    plural = "externalloadbalancers",
    shortname = "xlb",
    status = "ExternalLoadBalancerStatus",
    derive = "PartialEq",
    doc = "ExternalLoadBalancer is a load balancer outside the cluster that brings clients to its nodes.",
    printcolumn = r#"{"name":"Default","type":"boolean","jsonPath":".spec.default"}"#,
    printcolumn = r#"{"name":"Addresses","type":"string","jsonPath":".spec.addresses"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name":"Ports","type":"integer","jsonPath":".status.portsInUse"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.httpUpdater) != has(self.edge)")
        .message("write exactly one of httpUpdater and edge")
)]
pub struct ExternalLoadBalancerSpec {
    /// Whether Services that name no ExternalLoadBalancer use this one. Only one may be.
    #[serde(default)]
    pub default: bool,
    /// Where clients reach the box: IP addresses or host names. Services list them.
    #[schemars(
        length(min = 1, max = 16),
        inner(length(min = 1, max = 253)),
        extend("x-kubernetes-list-type" = "set")
    )]
    #[x_kube(validation = Rule::new(
        "self.all(a, isIP(a) || a.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$'))"
    ).message("write IP addresses or host names in lower case"))]
    pub addresses: Vec<String>,
    /// Which ports of the box Services get.
    #[serde(default)]
    pub ports: Ports,
    /// Which addresses of the nodes the box sends traffic to.
    #[serde(default)]
    pub target_address_type: TargetAddressType,
    /// A program on the box that takes changes over HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_updater: Option<HttpUpdater>,
    /// The box runs `highwire-agent edge` itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge: Option<Edge>,
}

/// Which ports of the box Services get.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.range) == (self.type == 'Range')")
        .message("range goes with type Range, and only with that")
)]
pub struct Ports {
    /// How they are chosen.
    #[serde(default, rename = "type")]
    pub choice: PortChoice,
    /// For `Range`: the ports there are to choose from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<PortRange>,
}

/// How a Service's ports on the box are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PortChoice {
    /// The Service's own ports.
    #[default]
    ServicePort,
    /// For each port the lowest one of the range that is free.
    Range,
}

/// Ports from `low` to `high`, both included.
#[derive(KubeSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("self.low <= self.high").message("low must not be above high")
)]
pub struct PortRange {
    /// The first.
    #[schemars(extend("format" = "int32", "minimum" = 1, "maximum" = 65535))]
    pub low: NonZeroU16,
    /// The last.
    #[schemars(extend("format" = "int32", "minimum" = 1, "maximum" = 65535))]
    pub high: NonZeroU16,
}

/// Which of a node's addresses the box sends traffic to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TargetAddressType {
    /// Per family: ExternalIPs if any node has one, else InternalIPs.
    #[default]
    Auto,
    /// Addresses of type ExternalIP only.
    #[serde(rename = "ExternalIP")]
    ExternalIp,
    /// Addresses of type InternalIP only.
    #[serde(rename = "InternalIP")]
    InternalIp,
}

impl From<TargetAddressType> for AddressType {
    fn from(choice: TargetAddressType) -> Self {
        match choice {
            TargetAddressType::Auto => Self::Auto,
            TargetAddressType::ExternalIp => Self::ExternalIp,
            TargetAddressType::InternalIp => Self::InternalIp,
        }
    }
}

/// A program on the box that takes changes over HTTP, in the protocol of PaperLB's updaters.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpUpdater {
    /// Where it takes POST and DELETE, such as `https://lb.example:3000/api/v1/lb`.
    #[schemars(length(max = 2048))]
    #[x_kube(validation = Rule::new("isURL(self) && url(self).getScheme() in ['http', 'https']")
        .message("write a URL that begins with http:// or https://"))]
    pub url: String,
    /// How long one request may take, in seconds.
    #[serde(default = "timeout")]
    #[schemars(extend("format" = "int32", "minimum" = 1, "maximum" = 120))]
    pub timeout_seconds: u16,
    /// Certificates (PEM) of authorities that may have signed the updater's; those that
    /// browsers trust if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub ca_bundle: Option<String>,
    /// A Secret in Highwire's namespace by which the updater knows the controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// Whether a TCP port counts as served only once it takes a connection: an updater may
    /// answer before its load balancer has loaded what it wrote.
    #[serde(default)]
    pub check: Check,
    /// How often everything is sent again, in seconds, so that a box that was restarted gets
    /// its state back.
    #[serde(default = "resync")]
    #[schemars(extend("format" = "int32", "minimum" = 10, "maximum" = 86400))]
    pub resync_seconds: u32,
}

/// How it is made sure that the box serves what its updater took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Check {
    /// The controller connects to each TCP port at the first of the addresses.
    #[default]
    Connect,
    /// Not at all, for a controller that cannot reach these ports.
    None,
}

const fn timeout() -> u16 {
    TIMEOUT
}

const fn resync() -> u32 {
    RESYNC
}

/// A Secret: of type `kubernetes.io/basic-auth` or `kubernetes.io/tls`, or with a key `token`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// The box runs `highwire-agent edge --name` with the name of this object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Edge {}

/// What the box serves, and what is left to do there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalLoadBalancerStatus {
    /// Conditions; `Ready` is True while the box has taken everything it was sent.
    #[serde(default)]
    #[schemars(extend(
        "x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"],
        "maxItems" = 16
    ))]
    pub conditions: Vec<Condition>,
    /// How many ports Services have on the box.
    #[serde(default)]
    #[schemars(extend("format" = "int32"))]
    pub ports_in_use: u32,
    /// How many ports are free, of a `Range`: of TCP or of UDP, whichever has fewer.
    #[serde(default)]
    #[schemars(extend("format" = "int32"))]
    pub ports_free: Option<u32>,
    /// When the box had last taken everything.
    #[serde(default)]
    pub last_successful_sync: Option<Time>,
    /// What the box may have, written here before it is sent: whoever leads next knows it.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "atomic", "maxItems" = 10_000))]
    pub backends: Vec<RecordedBackend>,
    /// What has to be deleted on the box still. Its Services may be gone.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "atomic", "maxItems" = 10_000))]
    pub pending_deletions: Vec<RecordedBackend>,
}

/// A backend that the box may have.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub struct RecordedBackend {
    /// Its name there.
    #[schemars(length(max = 512))]
    pub backend_name: String,
    /// Where it was sent: the updater's URL then.
    #[schemars(length(max = 2048))]
    pub url: String,
}
