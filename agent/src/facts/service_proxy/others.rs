//! Other programs that do kube-proxy's work, recognised by the network interfaces that they
//! make in the host's network.

use nix::net::if_::if_nametoindex;

use super::mode::virtual_servers;

/// A program that can take kube-proxy's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// Cilium, whether it replaces kube-proxy or not.
    Cilium,
    /// kube-router with `--run-service-proxy`.
    KubeRouter,
    /// OVN-Kubernetes.
    OvnKubernetes,
    /// Calico's eBPF dataplane.
    CalicoEbpf,
    /// Antrea, whether it replaces kube-proxy (`proxyAll`) or not.
    Antrea,
}

/// Each with its interface, from their sources: cilium `pkg/defaults/node.go`; kube-router
/// `pkg/controllers/proxy/network_services_controller.go`; ovn-kubernetes
/// `go-controller/pkg/types/const.go`; calico
/// `felix/dataplane/linux/dataplanedefs/dataplane_defs.go`; antrea
/// `cmd/antrea-agent/options.go`.
const ALL: [(Other, &str); 5] = [
    (Other::Cilium, "cilium_host"),
    (Other::KubeRouter, "kube-dummy-if"),
    (Other::OvnKubernetes, "ovn-k8s-mp0"),
    (Other::CalicoEbpf, "bpfin.cali"),
    (Other::Antrea, "antrea-gw0"),
];

impl Other {
    /// The one that is on this host, if any is.
    pub(super) fn find() -> Option<Self> {
        let is_here = |other, interface: &str| {
            // What kube-router leaves when it is stopped has no virtual server.
            if_nametoindex(interface).is_ok() && (other != Self::KubeRouter || virtual_servers())
        };
        let mut here = ALL
            .into_iter()
            .filter(|(other, name)| is_here(*other, name));
        here.next().map(|(other, _)| other)
    }
}
