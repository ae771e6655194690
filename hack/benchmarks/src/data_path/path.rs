//! The paths from a client outside the cluster to the same Pods.

/// A path. All lead from the same client over a node to Pods on it, and all but two over the
/// same node to the same Pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Path {
    /// To the Pods' own addresses, routed by the node: the most that any path can carry.
    Pod,
    /// By the node's address and the Service's NodePort.
    NodePort,
    /// By the node's address and the Service's port.
    Highwire,
    /// By the NodePort of the Service with `externalTrafficPolicy: Local`.
    NodePortLocal,
    /// By the port of the Service with `externalTrafficPolicy: Local`.
    HighwireLocal,
    /// By a hostPort to the Pod that K3s ServiceLB would run, and from there to the ClusterIP.
    Klipper,
    /// By nginx in the node's network namespace, as ingress controllers with hostNetwork do.
    Proxy,
    /// By a NodePort of the node whose agent chooses the Pods itself, by kube-proxy's rules.
    NodePortThere,
    /// By a Service's port of that node, by the agent's rules alone.
    WithoutProxy,
}

impl Path {
    /// In the order in which they are measured.
    pub(crate) const ALL: [Self; 9] = [
        Self::Pod,
        Self::NodePort,
        Self::Highwire,
        Self::NodePortThere,
        Self::WithoutProxy,
        Self::NodePortLocal,
        Self::HighwireLocal,
        Self::Klipper,
        Self::Proxy,
    ];

    /// Those that do the same for a Service with `externalTrafficPolicy: Cluster`.
    pub(crate) const POLICY_CLUSTER: [Self; 7] = [
        Self::Pod,
        Self::NodePort,
        Self::Highwire,
        Self::NodePortThere,
        Self::WithoutProxy,
        Self::Klipper,
        Self::Proxy,
    ];

    /// What documents call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pod => "straight to the Pods",
            Self::NodePort => "NodePort",
            Self::Highwire => "Highwire",
            Self::NodePortLocal => "NodePort, policy Local",
            Self::HighwireLocal => "Highwire, policy Local",
            Self::Klipper => "klipper-lb",
            Self::Proxy => "nginx on the node",
            Self::NodePortThere => "NodePort of the other node",
            Self::WithoutProxy => "Highwire without kube-proxy",
        }
    }
}
