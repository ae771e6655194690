//! A cluster that is up, as tests and tools see it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::api::{Api, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config as ClientConfig};
use serde_json::json;

use crate::cluster::config::Config;
use crate::cluster::layout::{CLIENT_V4, CLIENT_V6, node_addresses, node_v4, node_v6};
use crate::lab::init::{Init, in_thread};
use crate::lab::machine::Machine;
use crate::lab::netns::Netns;
use crate::lab::requirements;
use crate::lab::state::State;
use crate::lab::test_run;
use crate::lab::unit::Unit;

/// Names the cluster that tests attach to.
pub const ENV: &str = "HIGHWIRE_CLUSTER";

/// A cluster that is up. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    state: State,
    config: Config,
    client: Client,
}

/// A node of a cluster.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name, `n1`.
    pub name: String,
    /// Its number, from 1.
    pub index: u8,
    addresses: Vec<IpAddr>,
    netns: Netns,
}

impl Cluster {
    /// The cluster that `HIGHWIRE_CLUSTER` names; for tests.
    pub async fn attach() -> Result<Self> {
        Self::open(&Self::shared()?.name).await
    }

    /// What that cluster was asked to be.
    pub fn shared() -> Result<Config> {
        requirements::check()?;
        let Ok(name) = std::env::var(ENV) else {
            bail!(
                "{ENV} is not set: `hack/test cluster` runs these tests; by hand, \
                 `hack/cluster up --name dev` and then {ENV}=dev"
            );
        };
        Config::read(&State::new(&name)?)
    }

    /// The cluster of that name.
    pub async fn open(name: &str) -> Result<Self> {
        let state = State::new(name)?;
        let config = Config::read(&state)?;
        let client = client(&state).await?;
        test_run::uses(&state);
        Ok(Self {
            state,
            config,
            client,
        })
    }

    /// Whether it is the one that all tests attach to.
    pub fn is_shared(&self) -> bool {
        std::env::var(ENV).is_ok_and(|name| name == self.config.name)
    }

    /// A client of the API server with all rights.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A client with the rights that a token gives.
    pub async fn client_with(&self, token: &str) -> Result<Client> {
        let mut config = client_config(&self.state).await?;
        config.auth_info = kube::config::AuthInfo {
            token: Some(token.to_owned().into()),
            ..kube::config::AuthInfo::default()
        };
        Ok(Client::try_from(config)?)
    }

    /// How a client without credentials reaches the API server from the host.
    pub(crate) async fn anonymous_config(&self) -> Result<ClientConfig> {
        let mut config = client_config(&self.state).await?;
        config.auth_info = kube::config::AuthInfo::default();
        Ok(config)
    }

    /// What the cluster was asked to be.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its folder.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The admin's kubeconfig, by the relay: for people and tests on the host.
    pub fn kubeconfig(&self) -> PathBuf {
        kubeconfig(&self.state)
    }

    /// All nodes, opted in or not.
    pub fn nodes(&self) -> Vec<Node> {
        (1..=self.config.nodes)
            .map(|index| self.node_at(index))
            .collect()
    }

    /// One node, by name.
    pub fn node(&self, name: &str) -> Result<Node> {
        self.nodes()
            .into_iter()
            .find(|node| node.name == name)
            .with_context(|| {
                format!(
                    "no node {name}: the cluster has n1 to n{}",
                    self.config.nodes
                )
            })
    }

    /// The namespace of a role: `n1`, `client`, `cp`, `fabric`.
    pub fn netns(&self, role: &str) -> Result<Netns> {
        let netns = Netns::of(&self.state, role);
        ensure!(
            netns.exists(),
            "no namespace {}: roles are client, cp, fabric and the nodes' names",
            netns.name()
        );
        Ok(netns)
    }

    /// The namespace of a client outside the cluster.
    pub fn outside(&self) -> Netns {
        Netns::of(&self.state, "client")
    }

    /// The outside client's address in the family of `like`.
    pub fn outside_address(&self, like: IpAddr) -> IpAddr {
        match like {
            IpAddr::V4(_) => CLIENT_V4.into(),
            IpAddr::V6(_) => CLIENT_V6.into(),
        }
    }

    /// A process of the cluster: `etcd`, `kube-apiserver`, `kube-proxy-n1`, `agent-n1`, …
    pub fn unit(&self, name: &str) -> Unit {
        Unit::new(&self.state, name)
    }

    /// Sets or removes a label of a node.
    pub async fn label_node(&self, node: &str, label: &str, value: Option<&str>) -> Result<()> {
        let nodes: Api<NodeObject> = Api::all(self.client());
        let patch = json!({ "metadata": { "labels": { label: value } } });
        nodes
            .patch(node, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .with_context(|| format!("label node {node}"))?;
        Ok(())
    }

    /// Runs kubectl as admin, in the checkout's root; returns what it prints.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        kubectl(&self.state, &self.config, arguments)
    }

    fn node_at(&self, index: u8) -> Node {
        let name = format!("n{index}");
        Node {
            netns: Netns::of(&self.state, &name),
            addresses: node_addresses(index, self.config.ip_family),
            name,
            index,
        }
    }
}

impl Node {
    /// Its addresses, primary first.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Its primary address with that port.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.addresses[0], port)
    }

    /// Its IPv4 address with that port (whether or not the cluster speaks IPv4).
    pub fn v4(&self, port: u16) -> SocketAddr {
        SocketAddr::new(node_v4(self.index).into(), port)
    }

    /// Its IPv6 address with that port (whether or not the cluster speaks IPv6).
    pub fn v6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(node_v6(self.index).into(), port)
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The machine it is, in a cluster with kubelets.
    pub fn machine(&self) -> Machine {
        Machine::of(&self.netns)
    }
}

/// The admin's kubeconfig.
pub(crate) fn kubeconfig(state: &State) -> PathBuf {
    state.path("kubeconfig")
}

/// Runs kubectl as admin of a cluster, in the checkout's root; returns what it prints.
pub(crate) fn kubectl(state: &State, config: &Config, arguments: &[&str]) -> Result<String> {
    let init = Init::of(state).context("the cluster has ended")?;
    let mut command = Command::new(config.controlplane.join("kubectl"));
    command
        .arg("--kubeconfig")
        .arg(kubeconfig(state))
        .arg("--request-timeout=30s")
        .env("KUBECACHEDIR", state.path("kubectl-cache"))
        .args(arguments)
        .current_dir(checkout());
    // It ends with the cluster, whatever it waits for.
    let output = in_thread(|| {
        init.adopt()?;
        command.output().context("start kubectl")
    })?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "kubectl {}: {}{stdout}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr),
    );
    Ok(stdout.into_owned())
}

/// An admin client by the relay.
pub(crate) async fn client(state: &State) -> Result<Client> {
    Ok(Client::try_from(client_config(state).await?)?)
}

async fn client_config(state: &State) -> Result<ClientConfig> {
    let path = kubeconfig(state);
    let kubeconfig = Kubeconfig::read_from(&path)?;
    let options = KubeConfigOptions::default();
    let mut config = ClientConfig::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .with_context(|| format!("use {}", path.display()))?;
    // Proxies of the machine have nothing to do with an address on its loopback.
    config.proxy_url = None;
    Ok(config)
}

/// The root of the checkout: what the scripts in hack/ say, since checkouts that share a target
/// folder share this program; else where this was built.
pub fn checkout() -> PathBuf {
    match std::env::var_os("HIGHWIRE_CHECKOUT") {
        Some(root) => PathBuf::from(root),
        None => PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")),
    }
}
