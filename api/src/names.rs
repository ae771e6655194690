//! Names in the API: labels, annotations, classes, Leases.

use std::time::Duration;

/// Label by which a node opts in. It is the DaemonSet's nodeSelector, so a node
/// without it runs nothing of Highwire.
pub const ENABLED_LABEL: &str = "highwire.dev/enabled";

/// The value of [`ENABLED_LABEL`] that opts a node in.
pub const ENABLED_VALUE: &str = "true";

/// Well-known label of a node that must not be advertised by load balancers.
/// Source: kubernetes.io "Well-Known Labels", KEP-1143.
pub const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Label by which an EndpointSlice names its Service (k8s.io/api/discovery/v1
/// `LabelServiceName`).
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Label selector of the EndpointSlices that kube-proxy follows (kubernetes
/// pkg/proxy/config, cmd/kube-proxy/app `Run`).
pub const FOR_KUBE_PROXY: &str =
    "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";

/// The `spec.loadBalancerClass` of Highwire.
pub const LOAD_BALANCER_CLASS: &str = "highwire.dev/node";

/// The `spec.loadBalancerClass` of Services that a load balancer outside the cluster serves.
pub const EXTERNAL_CLASS: &str = "highwire.dev/external";

/// Service annotation: the name of the ExternalLoadBalancer that serves it.
pub const EXTERNAL_LOAD_BALANCER_ANNOTATION: &str = "highwire.dev/external-load-balancer";

/// Service annotation: a label selector; only matching nodes serve the Service.
pub const NODE_SELECTOR_ANNOTATION: &str = "highwire.dev/node-selector";

/// Service annotation: which node addresses are advertised
/// (`ExternalIP`, `InternalIP` or `Auto`).
pub const ADDRESS_TYPE_ANNOTATION: &str = "highwire.dev/address-type";

/// Service annotation: `"true"` makes a Service ours although another program wrote
/// its ingress.
pub const ADOPT_ANNOTATION: &str = "highwire.dev/adopt";

/// The field manager under which the controller writes to Services. The API
/// server records it in `managedFields`, by which we know our own ingress; changing it
/// would orphan every ingress written before.
pub const FIELD_MANAGER: &str = "highwire-controller";

/// Service annotation: how many nodes are advertised at most, each with all of its
/// addresses.
pub const MAX_ADDRESSES_ANNOTATION: &str = "highwire.dev/max-addresses";

/// Kubernetes' own annotation for source ranges, older than
/// `spec.loadBalancerSourceRanges`: networks joined by commas.
pub const SOURCE_RANGES_ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// Lease annotation with the agent's observed resource version, written at every
/// renewal, so that it advances even while the report does not change.
pub const OBSERVED_VERSION_ANNOTATION: &str = "highwire.dev/observed-resource-version";

/// Lease annotation with the resource version of the report that goes with
/// [`OBSERVED_VERSION_ANNOTATION`]. Who watches Leases and reports may get the Lease first:
/// the observed version counts once that report, or a later one, is there.
pub const REPORT_VERSION_ANNOTATION: &str = "highwire.dev/report-version";

/// The namespace of Highwire's Leases for a program that is run by hand. In a Pod it is
/// the Pod's.
pub const SYSTEM_NAMESPACE: &str = "highwire-system";

/// The Lease by which controllers elect their leader.
pub const CONTROLLER_LEASE: &str = "highwire-controller";

/// The default duration of an agent's Lease. It bounds how long a dead node is
/// advertised.
pub const AGENT_LEASE_DURATION: Duration = Duration::from_secs(12);

/// The duration of the Lease that an agent leaves behind when its Pod is replaced: as
/// long as pulling an image may take.
pub const AGENT_ABSENCE: Duration = Duration::from_secs(120);

/// The name of the Lease that the agent on `node` renews.
///
/// ```
/// assert_eq!(highwire_api::names::agent_lease("n1"), "agent-n1");
/// ```
#[must_use]
pub fn agent_lease(node: &str) -> String {
    format!("{AGENT_LEASE_PREFIX}{node}")
}

/// The node whose agent renews the Lease `lease`, if it is an agent's Lease.
///
/// ```
/// assert_eq!(highwire_api::names::node_of_agent_lease("agent-n1"), Some("n1"));
/// assert_eq!(highwire_api::names::node_of_agent_lease("highwire-controller"), None);
/// ```
#[must_use]
pub fn node_of_agent_lease(lease: &str) -> Option<&str> {
    lease.strip_prefix(AGENT_LEASE_PREFIX)
}

const AGENT_LEASE_PREFIX: &str = "agent-";

/// The name of the Lease that the agent on the box of this ExternalLoadBalancer renews.
///
/// ```
/// assert_eq!(highwire_api::names::edge_lease("front"), "edge-front");
/// ```
#[must_use]
pub fn edge_lease(external: &str) -> String {
    format!("{EDGE_LEASE_PREFIX}{external}")
}

/// The ExternalLoadBalancer whose box renews the Lease `lease`, if it is such a Lease.
#[must_use]
pub fn external_of_edge_lease(lease: &str) -> Option<&str> {
    lease.strip_prefix(EDGE_LEASE_PREFIX)
}

const EDGE_LEASE_PREFIX: &str = "edge-";
