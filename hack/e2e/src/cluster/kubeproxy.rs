//! kube-proxy of a node: its configuration and command line.

use anyhow::Result;
use serde_json::json;

use crate::cluster::config::{Config, NodeKind, ProxyMode};
use crate::cluster::controlplane::program;
use crate::cluster::layout::{IpFamily, PROXY_HEALTH_PORT};
use crate::lab::place::Place;
use crate::lab::state::{State, write_json};
use crate::lab::unit::Spec;

/// Writes the kube-proxy configuration of node `index` and returns the process to start.
pub fn spec(state: &State, config: &Config, index: u8, mode: ProxyMode) -> Result<Spec> {
    let node = format!("n{index}");
    let any = match config.ip_family {
        IpFamily::Ipv6 => "::",
        IpFamily::Ipv4 | IpFamily::Dual => "0.0.0.0",
    };
    let health = std::net::SocketAddr::new(any.parse()?, PROXY_HEALTH_PORT);
    let file = state.path(format!("pki/kube-proxy-{node}.json"));
    let sync = json!({
        "minSyncPeriod": config.proxy_sync.min,
        "syncPeriod": config.proxy_sync.period,
    });
    let place = match config.node_kind {
        NodeKind::Bare => Place::Netns(node.clone()),
        NodeKind::Kubelet(_) => Place::Machine(node.clone()),
    };
    write_json(
        &file,
        &json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": mode.as_str(),
            "hostnameOverride": node,
            "clientConnection": { "kubeconfig": state.path("pki/kube-proxy.kubeconfig") },
            "clusterCIDR": if config.proxy_knows_pods {
                config.ip_family.cluster_cidrs()
            } else {
                String::new()
            },
            "detectLocalMode": "ClusterCIDR",
            "bindAddress": any,
            "healthzBindAddress": health.to_string(),
            "metricsBindAddress": "127.0.0.1:10249",
            "iptables": sync,
            "nftables": sync,
            "ipvs": sync,
            // Zero leaves the kernel's values: the table's size belongs to the host.
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
                "udpTimeout": "0s",
                "udpStreamTimeout": "0s",
            },
        }),
    )?;
    Ok(Spec {
        name: format!("kube-proxy-{node}"),
        place,
        argv: vec![
            program(config, "kube-proxy"),
            format!("--config={}", file.display()),
        ],
        env: Vec::new(),
    })
}
