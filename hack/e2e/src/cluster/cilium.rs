//! Cilium on bare nodes, in kube-proxy's place: its agent is a process of the node, and Pods
//! are plugged in by its CNI plugin. Its BPF programs are in the node's network namespace, its
//! maps are pinned in a file system of its own, and its cgroup is below one of the node's.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cluster::config::Config;
use crate::cluster::controlplane::api_url;
use crate::cluster::layout::IpFamily;
use crate::cluster::pki;
use crate::lab::netns::Netns;
use crate::lab::state::State;
use crate::lab::unit::{self, Spec};

/// Mounts what Cilium needs and stays.
const MOUNTS: &str = include_str!("cilium.sh");
/// The network configuration that the plugin is given, as the agent would write it.
const NETWORK: &str = r#"{"cniVersion":"1.0.0","name":"cilium","type":"cilium-cni"}"#;

/// What Cilium is on a cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cilium {
    /// Folder of its programs, as hack/build-cilium makes it.
    pub programs: PathBuf,
    /// How it leads packets of Pods out of the node.
    pub host_routing: HostRouting,
    /// How nodes send packets to each other's Pods.
    pub routing: Routing,
    /// Additional flags of its agent.
    pub flags: Vec<String>,
}

/// What `cilium-dbg status` calls `Host:`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostRouting {
    /// Through the host's stack, with masquerading by iptables: the Helm default.
    Legacy,
    /// Past it, with masquerading by BPF.
    Bpf,
}

/// What `cilium-dbg status` calls `Network:`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Routing {
    /// By the routes of the cluster's nodes.
    Native,
    /// In VXLAN.
    Tunnel,
}

/// The process that keeps a node's mounts.
pub fn mounts(state: &State, cilium: &Cilium, index: u8) -> Result<Spec> {
    let node = format!("n{index}");
    let own = folder(state, &node);
    fs::create_dir_all(&own).with_context(|| format!("create {}", own.display()))?;
    fs::remove_file(own.join("pid")).ok();
    let argv = [
        "bash".to_owned(),
        "-c".to_owned(),
        MOUNTS.to_owned(),
        "mounts".to_owned(),
        // What `machine` removes with the laboratory.
        format!("highwire-{}-{node}", state.name()),
        cilium.programs.display().to_string(),
        own.display().to_string(),
    ];
    let name = format!("cilium-mounts-{node}");
    Ok(Spec::new(name, &Netns::of(state, &node), argv.into()))
}

/// Cilium's agent on a node whose mounts are there.
pub fn agent(state: &State, config: &Config, cilium: &Cilium, index: u8) -> Result<Spec> {
    let node = format!("n{index}");
    let kubeconfig = folder(state, &node).join("kubeconfig");
    pki::certificate_kubeconfig(state, &kubeconfig, &api_url(config.ip_family), "admin")?;
    // In the laboratory's PID namespace already.
    let mut argv = inside(state, &node, &[])?;
    argv.push(cilium.programs.join("cilium-agent").display().to_string());
    argv.push(format!("--k8s-kubeconfig-path={}", kubeconfig.display()));
    argv.extend(flags(config.ip_family, cilium));
    let spec = Spec::new(unit_name(&node), &Netns::of(state, &node), argv);
    let programs = cilium.programs.display();
    Ok(spec
        .env("PATH", format!("{programs}:{}", unit::PATH))
        .env("HOME", "/root")
        .env("K8S_NODE_NAME", node))
}

/// The name of its unit.
pub fn unit_name(node: &str) -> String {
    format!("cilium-{node}")
}

fn flags(family: IpFamily, cilium: &Cilium) -> Vec<String> {
    let mut flags: Vec<String> = [
        "--kube-proxy-replacement=true",
        "--ipam=kubernetes",
        "--identity-allocation-mode=crd",
        "--devices=eth0",
        "--cgroup-root=/run/cilium/cgroup",
        "--bpf-root=/sys/fs/bpf",
        // Left out: what is beside the path of packets.
        "--enable-l7-proxy=false",
        "--enable-hubble=false",
        "--enable-health-checking=false",
        "--enable-endpoint-health-checking=false",
    ]
    .map(str::to_owned)
    .into();
    flags.push(format!("--enable-ipv4={}", family.has_v4()));
    flags.push(format!("--enable-ipv6={}", family.has_v6()));
    let bpf = cilium.host_routing == HostRouting::Bpf;
    flags.push(format!("--enable-bpf-masquerade={bpf}"));
    flags.push(format!("--enable-host-legacy-routing={}", !bpf));
    match cilium.routing {
        Routing::Tunnel => flags.push("--routing-mode=tunnel".to_owned()),
        Routing::Native => {
            flags.push("--routing-mode=native".to_owned());
            let cidrs = family.pick(
                "--ipv4-native-routing-cidr=10.244.0.0/16",
                "--ipv6-native-routing-cidr=fd00:244::/32",
            );
            flags.extend(cidrs.into_iter().map(str::to_owned));
        }
    }
    flags.extend(cilium.flags.iter().cloned());
    flags
}

/// Fails unless the agent of a node answers that it is well.
pub fn answers(state: &State, cilium: &Cilium, node: &str) -> Result<()> {
    dbg(state, cilium, node, &["status", "--brief"]).map(drop)
}

/// What `cilium-dbg` prints on a node.
pub fn dbg(state: &State, cilium: &Cilium, node: &str, arguments: &[&str]) -> Result<String> {
    let program = cilium.programs.join("cilium-dbg").display().to_string();
    let mut argv = inside(state, node, &["--pid"])?;
    argv.push(program);
    argv.extend(arguments.iter().map(ToString::to_string));
    run(&Netns::of(state, node), &argv)
}

/// Where Cilium's custom resources are defined.
pub fn definitions(cilium: &Cilium) -> PathBuf {
    cilium.programs.join("crds")
}

/// Plugs a Pod, whose object and namespace are there, into its node; returns its addresses,
/// those of the cluster's first family first.
pub fn plug(
    cilium: &Cilium,
    node: &Netns,
    pod: &Netns,
    object: (&str, &str),
    family: IpFamily,
) -> Result<Vec<IpAddr>> {
    // The first Pod of a node waits for the compiler of Cilium's programs, maybe too long.
    let text = match plugin(cilium, node, pod, object, "ADD") {
        Ok(text) => text,
        Err(_) => {
            unplug(cilium, node, pod, object)?;
            plugin(cilium, node, pod, object, "ADD")?
        }
    };
    let answer: Value = serde_json::from_str(&text).context("read what cilium-cni answers")?;
    let addresses: Vec<IpAddr> = answer["ips"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok())
        .collect();
    let of = |v4: bool| addresses.iter().copied().find(|it| it.is_ipv4() == v4);
    let wanted = family.pick(of(true), of(false));
    let found: Vec<IpAddr> = wanted.iter().flatten().copied().collect();
    ensure!(found.len() == wanted.len(), "cilium-cni answers {text}");
    Ok(found)
}

/// Unplugs it.
pub fn unplug(cilium: &Cilium, node: &Netns, pod: &Netns, object: (&str, &str)) -> Result<()> {
    plugin(cilium, node, pod, object, "DEL").map(drop)
}

fn plugin(
    cilium: &Cilium,
    node: &Netns,
    pod: &Netns,
    (namespace, name): (&str, &str),
    what: &str,
) -> Result<String> {
    let mut argv = inside(node.state(), node.role(), &["--pid"])?;
    // Process 1 of the laboratory has the names of network namespaces.
    let netns = Path::new("/proc/1/root").join(pod.inner_path().strip_prefix("/")?);
    argv.extend([
        "env".to_owned(),
        format!("CNI_COMMAND={what}"),
        format!("CNI_CONTAINERID={}-{namespace}-{name}", node.role()),
        format!("CNI_NETNS={}", netns.display()),
        "CNI_IFNAME=eth0".to_owned(),
        format!(
            "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
             K8S_POD_INFRA_CONTAINER_ID={name}"
        ),
        format!("CNI_PATH={}", cilium.programs.display()),
        "sh".to_owned(),
        "-c".to_owned(),
        format!(
            "echo '{NETWORK}' | {}",
            cilium.programs.join("cilium-cni").display()
        ),
    ]);
    run(node, &argv)
}

/// The beginning of a command that runs among a node's mounts.
fn inside(state: &State, node: &str, namespaces: &[&str]) -> Result<Vec<String>> {
    let file = folder(state, node).join("pid");
    let pid = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let target = format!("--target={}", pid.trim());
    let argv = ["nsenter", &target, "--mount", "--cgroup"];
    let argv = argv.iter().chain(namespaces).chain(&["--"]);
    Ok(argv.map(ToString::to_string).collect())
}

fn run(node: &Netns, argv: &[String]) -> Result<String> {
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    node.check(&argv)
}

fn folder(state: &State, node: &str) -> PathBuf {
    state.path("cilium").join(node)
}

/// Whether a node's mounts are there.
pub(crate) fn has_mounts(state: &State, node: &str) -> Result<()> {
    let file: &Path = &folder(state, node).join("pid");
    ensure!(file.exists(), "{} does not exist", file.display());
    Ok(())
}
