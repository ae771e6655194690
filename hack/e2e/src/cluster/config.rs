//! What a cluster was asked to be.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::cluster::cilium::Cilium;
use crate::cluster::layout::{IpFamily, MAX_NODES};
use crate::lab::requirements;
use crate::lab::state::{State, check_name, read_json};
use crate::lab::wait::scaled;

/// How a kube-proxy programs the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyMode {
    /// iptables rules (through iptables-nft on Debian).
    Iptables,
    /// Its own nftables table.
    Nftables,
    /// Virtual servers of the kernel's ipvs.
    Ipvs,
}

impl ProxyMode {
    /// The value of kube-proxy's `mode`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::Ipvs => "ipvs",
        }
    }

    /// Whether a node without an endpoint refuses clients of a Service with
    /// `externalTrafficPolicy: Local`. With ipvs it sends them, not masqueraded, to Pods of
    /// other nodes, whose answers do not come back through it: clients wait in vain.
    pub fn refuses_without_local_endpoints(self) -> bool {
        self != Self::Ipvs
    }
}

/// Which mode the kube-proxies of a cluster run in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyModes {
    /// All in iptables mode.
    Iptables,
    /// All in nftables mode.
    Nftables,
    /// All in ipvs mode.
    Ipvs,
    /// nftables on n1, n3, …; iptables on n2, n4, ….
    Mixed,
    /// No node has a kube-proxy, so nobody answers at ClusterIPs and NodePorts.
    None,
}

impl ProxyModes {
    /// The mode of the kube-proxy on node `index`, if one is started there.
    pub fn on(self, index: u8) -> Option<ProxyMode> {
        match self {
            Self::Iptables => Some(ProxyMode::Iptables),
            Self::Nftables => Some(ProxyMode::Nftables),
            Self::Ipvs => Some(ProxyMode::Ipvs),
            Self::Mixed if index % 2 == 1 => Some(ProxyMode::Nftables),
            Self::Mixed => Some(ProxyMode::Iptables),
            Self::None => None,
        }
    }

    /// Whether kube-proxies are started with the cluster.
    pub fn has_any(self) -> bool {
        self != Self::None
    }

    /// What node `index` reports as its `proxyMode`.
    pub fn reported_by(self, index: u8) -> &'static str {
        self.on(index).map_or("none", ProxyMode::as_str)
    }

    /// As the command line has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::Ipvs => "ipvs",
            Self::Mixed => "mixed",
            Self::None => "none",
        }
    }
}

/// How often kube-proxy programs the kernel, as its configuration names it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProxySync {
    /// `minSyncPeriod`: the shortest time between two syncs.
    pub min: String,
    /// `syncPeriod`: a change that waits for two of them makes it unhealthy.
    pub period: String,
}

impl Default for ProxySync {
    /// Upstream's shortest time, 1 s, would hide how long Highwire itself takes, and make
    /// tests that run side by side wait for each other.
    fn default() -> Self {
        Self {
            min: format!("{}ms", scaled(Duration::from_millis(100)).as_millis()),
            period: "30s".to_owned(),
        }
    }
}

/// What runs Pods on the nodes of a cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// The harness: a Pod is a network namespace with a process, and its object.
    Bare,
    /// A kubelet and containerd on a machine of namespaces; Pods are scheduled.
    Kubelet(Containers),
}

/// What containers are made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Containers {
    /// Folder of containerd, its shim and ctr.
    pub containerd: PathBuf,
    /// Folder of archives of images, which every node imports.
    pub images: PathBuf,
}

/// What a cluster was asked to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    /// Its name.
    pub name: String,
    /// How many nodes it has.
    pub nodes: u8,
    /// What runs Pods on them.
    pub node_kind: NodeKind,
    /// The kube-proxies' modes.
    pub proxy_modes: ProxyModes,
    /// What connects Pods in place of the harness and does kube-proxy's work; on bare nodes
    /// without kube-proxies only.
    #[serde(default)]
    pub cilium: Option<Cilium>,
    /// Families of nodes, Pods and Services.
    pub ip_family: IpFamily,
    /// Whether kube-proxy is configured with the Pods' addresses. If not, it masquerades nothing
    /// but what enters at NodePorts.
    pub proxy_knows_pods: bool,
    /// How often kube-proxy programs the kernel.
    #[serde(default)]
    pub proxy_sync: ProxySync,
    /// Folder of the upstream programs.
    pub controlplane: PathBuf,
    /// Folder of `highwire-cluster`, `highwire-echo` and, unless others are named, our
    /// programs.
    pub tools: PathBuf,
}

impl Config {
    /// The configuration of a cluster that is up.
    pub fn read(state: &State) -> Result<Self> {
        read_json(&state.path("cluster.json")).with_context(|| {
            format!(
                "cluster {:?} is not up; hack/cluster up starts one",
                state.name()
            )
        })
    }

    /// Refuses what cannot work, naming the limit.
    pub fn check(&self) -> Result<()> {
        check_name(&self.name)?;
        ensure!(
            self.nodes <= MAX_NODES,
            "--nodes must be at most {MAX_NODES}"
        );
        if self.proxy_modes == ProxyModes::Ipvs {
            requirements::check_ipvs()?;
        }
        let apiserver = self.controlplane.join("kube-apiserver");
        ensure!(
            apiserver.exists(),
            "{} does not exist: run hack/build-controlplane, or use hack/cluster, which does",
            apiserver.display()
        );
        if let Some(cilium) = &self.cilium {
            ensure!(
                matches!(self.node_kind, NodeKind::Bare) && !self.proxy_modes.has_any(),
                "Cilium takes kube-proxy's place: --cilium needs --proxy-mode none"
            );
            let agent = cilium.programs.join("cilium-agent");
            ensure!(
                agent.exists(),
                "{} does not exist: run hack/build-cilium",
                agent.display()
            );
        }
        if let NodeKind::Kubelet(containers) = &self.node_kind {
            ensure!(
                self.proxy_modes.has_any(),
                "Pods of kubelets reach the API server by its ClusterIP: --kubelet needs a \
                 kube-proxy"
            );
            let containerd = containers.containerd.join("containerd");
            ensure!(
                containerd.exists(),
                "{} does not exist: run hack/build-containerd, or use hack/cluster, which does",
                containerd.display()
            );
        }
        Ok(())
    }
}
