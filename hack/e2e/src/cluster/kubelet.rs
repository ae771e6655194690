//! What runs on a node with a kubelet: containerd, the kubelet, and their configuration.

use std::fs;

use anyhow::{Context, Result};
use serde_json::json;

use crate::cluster::config::{Config, Containers};
use crate::cluster::controlplane::program;
use crate::cluster::layout::{node_addresses, pod_cidrs};
use crate::lab::machine::Machine;
use crate::lab::netns::Netns;
use crate::lab::state::{State, write_json, write_private};
use crate::lab::unit::{self, Spec};

/// Every Pod's first container, made by hack/build-images.
pub const PAUSE_IMAGE: &str = "localhost/pause:1";
/// Where containerd listens.
const CONTAINERD: &str = "/run/containerd/containerd.sock";
/// Debian's package containernetworking-plugins.
const CNI_PLUGINS: &str = "/usr/lib/cni";

/// containerd of a node, after writing its configuration and that of the Pods' network.
pub fn containerd(
    state: &State,
    config: &Config,
    containers: &Containers,
    index: u8,
) -> Result<Spec> {
    let node = format!("n{index}");
    let machine = machine(state, &node);
    let folder = machine.folder();
    let networks = folder.join("cni");
    fs::create_dir_all(&networks).with_context(|| format!("create {}", networks.display()))?;
    write_json(&networks.join("pods.conflist"), &pod_network(config, index))?;
    let file = folder.join("containerd.toml");
    // No CAP_SYS_RESOURCE is needed, and no AppArmor; a machine has neither.
    let text = format!(
        "version = 3\n\
         root = \"{root}\"\n\
         state = \"/run/containerd\"\n\
         [grpc]\n\
         address = \"{CONTAINERD}\"\n\
         [plugins.'io.containerd.cri.v1.images'.pinned_images]\n\
         sandbox = \"{PAUSE_IMAGE}\"\n\
         [plugins.'io.containerd.cri.v1.runtime']\n\
         disable_apparmor = true\n\
         restrict_oom_score_adj = true\n\
         [plugins.'io.containerd.cri.v1.runtime'.cni]\n\
         bin_dirs = [\"{CNI_PLUGINS}\"]\n\
         conf_dir = \"{networks}\"\n",
        root = folder.join("containerd").display(),
        networks = networks.display(),
    );
    write_private(&file, text.as_bytes())?;
    let programs = containers.containerd.display();
    Ok(Spec {
        name: format!("containerd-{node}"),
        place: machine.place(),
        argv: vec![
            format!("{programs}/containerd"),
            format!("--config={}", file.display()),
            "--log-level=warn".into(),
        ],
        env: Vec::new(),
    }
    .env("PATH", format!("{programs}:{}", unit::PATH)))
}

/// The kubelet of a node, after writing its configuration.
pub fn kubelet(state: &State, config: &Config, index: u8) -> Result<Spec> {
    let node = format!("n{index}");
    let machine = machine(state, &node);
    let file = machine.folder().join("kubelet.json");
    write_json(
        &file,
        &json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": { "enabled": false },
                "webhook": { "enabled": true },
                "x509": { "clientCAFile": state.path("pki/ca.crt") },
            },
            "authorization": { "mode": "Webhook" },
            "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
            "cgroupDriver": "cgroupfs",
            // Some hosts have cgroup v1.
            "failCgroupV1": false,
            "failSwapOn": false,
            // A full disk of the host is no reason to evict.
            "evictionHard": {
                "memory.available": "1Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
                "imagefs.available": "0%", "imagefs.inodesFree": "0%",
            },
            "imageGCHighThresholdPercent": 100,
            "resolvConf": "",
            // Nobody answers there; without it, there is a Warning for every Pod.
            "clusterDNS": ["10.96.0.10"],
            "clusterDomain": "cluster.local",
            // A node that boots again finds its Pods sooner.
            "nodeStatusUpdateFrequency": "5s",
        }),
    )?;
    let addresses: Vec<String> = node_addresses(index, config.ip_family)
        .iter()
        .map(ToString::to_string)
        .collect();
    Ok(Spec {
        name: format!("kubelet-{node}"),
        place: machine.place(),
        argv: vec![
            program(config, "kubelet"),
            format!("--config={}", file.display()),
            format!(
                "--kubeconfig={}",
                state.path(format!("pki/{node}.kubeconfig")).display()
            ),
            format!("--hostname-override={node}"),
            format!("--node-ip={}", addresses.join(",")),
        ],
        env: Vec::new(),
    })
}

/// Imports the images into the containerd of a node.
pub fn import_images(state: &State, containers: &Containers, node: &str) -> Result<()> {
    let (machine, ctr) = (machine(state, node), containers.containerd.join("ctr"));
    let ctr = ctr.display().to_string();
    for entry in fs::read_dir(&containers.images)
        .with_context(|| format!("read {}", containers.images.display()))?
    {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == "tar") {
            let archive = path.display().to_string();
            machine.check(&[&ctr, "--namespace=k8s.io", "images", "import", &archive])?;
        }
    }
    Ok(())
}

/// Whether containerd answers.
pub fn containerd_answers(state: &State, containers: &Containers, node: &str) -> Result<()> {
    let ctr = containers.containerd.join("ctr").display().to_string();
    machine(state, node).check(&[&ctr, "version"]).map(drop)
}

fn machine(state: &State, node: &str) -> Machine {
    Machine::of(&Netns::of(state, node))
}

/// A routed veth for each Pod, and hostPorts.
fn pod_network(config: &Config, index: u8) -> serde_json::Value {
    let ranges: Vec<_> = pod_cidrs(index, config.ip_family)
        .into_iter()
        .map(|subnet| json!([{ "subnet": subnet }]))
        .collect();
    let routes: Vec<_> = config
        .ip_family
        .pick("0.0.0.0/0", "::/0")
        .into_iter()
        .map(|to| json!({ "dst": to }))
        .collect();
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "ptp",
                "ipam": { "type": "host-local", "ranges": ranges, "routes": routes },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}
