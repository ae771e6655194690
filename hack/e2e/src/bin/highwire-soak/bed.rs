//! The cluster that histories happen to: does each operation, and puts everything back.

mod clean;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use highwire_e2e::lab::unit::Spec;
use highwire_e2e::{
    Cluster, Node, Pod, Program, Programs as _, ProxyMode, ProxyModes, Scope, Unit, lifecycle,
};
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::api::{Api, ListParams, Patch, PatchParams};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::api_fault::{ApiClient, Networks};
use crate::history::{Bind, Operation, PodKind, Pool, Protocol};
use crate::service::{Services, set};

/// How long a program may take until it is ready.
const READY: Duration = Duration::from_secs(60);
const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const POOL: &str = "pool";
const CONTROLLERS: [u8; 2] = [1, 2];
/// The nodes that serve when a history begins.
const SERVING: [u8; 2] = [1, 2];

/// A cluster, and what a history has put on it.
pub(crate) struct Bed {
    cluster: Cluster,
    scope: Scope,
    pods: BTreeMap<u8, Pod>,
    listeners: BTreeSet<String>,
    networks: Networks,
    /// What old lists are of.
    version: u64,
    /// The modes of kube-proxies, as far as they are known.
    modes: BTreeMap<u8, ProxyMode>,
}

impl Bed {
    /// On a cluster where Highwire runs. Its programs start anew, each behind a network of
    /// its own, which ends with this process.
    pub(crate) async fn new(cluster: &Cluster) -> Result<Self> {
        let mut bed = Self {
            cluster: cluster.clone(),
            scope: Scope::new(cluster, "soak").await?,
            pods: BTreeMap::new(),
            listeners: BTreeSet::new(),
            networks: Networks::new(cluster).await?,
            version: 0,
            modes: BTreeMap::new(),
        };
        bed.note_version().await?;
        for node in 1..=cluster.config().nodes {
            bed.agent(node)?.kill()?;
        }
        for number in CONTROLLERS {
            let controller = bed.controller(number)?;
            controller.kill()?;
            controller.start(&[]).await?;
        }
        Ok(bed)
    }

    /// Old lists are of now, from now on.
    pub(crate) async fn note_version(&mut self) -> Result<()> {
        let nodes: Api<NodeObject> = Api::all(self.cluster.client());
        let list = nodes.list_metadata(&ListParams::default().limit(1)).await?;
        let version = list.metadata.resource_version.context("no version")?;
        self.version = version.parse().context("read a version")?;
        Ok(())
    }

    /// Whose way to the API server fails.
    pub(crate) fn networks(&self) -> &Networks {
        &self.networks
    }

    fn node(&self, number: u8) -> Result<Node> {
        self.cluster.node(&format!("n{number}"))
    }

    fn agent(&self, node: u8) -> Result<Program> {
        let network = self.networks.of(ApiClient::Agent(node))?;
        Ok(self.cluster.agent(&format!("n{node}"))?.through(network))
    }

    fn controller(&self, number: u8) -> Result<Program> {
        let network = self.networks.of(ApiClient::Controller(number))?;
        let controller = self.cluster.controller(&format!("c{number}"))?;
        Ok(controller.through(network))
    }

    /// Does it. `Quiet` is the caller's.
    pub(crate) async fn apply(&mut self, operation: &Operation) -> Result<()> {
        let services = Services {
            cluster: &self.cluster,
            namespace: self.scope.namespace(),
        };
        match operation {
            Operation::Quiet => Ok(()),
            Operation::PutService { slot, shape } => services.put(*slot, shape).await,
            Operation::DeleteService { slot } => services.delete(*slot).await,
            Operation::ForeignStatus { slot, node } => {
                let ip = match node {
                    Some(node) => self.node(*node)?.v4(0).ip().to_string(),
                    None => "203.0.113.200".to_owned(),
                };
                services.write_status(*slot, &ip).await
            }
            Operation::PutPod { slot, node, kind } => self.put_pod(*slot, *node, *kind).await,
            Operation::ReadyPod { slot, ready } => match self.pods.get(slot) {
                Some(pod) => pod.set_ready(&self.cluster, *ready).await,
                None => Ok(()),
            },
            Operation::DeletePod { slot } => self.delete_pod(*slot).await,
            Operation::EnableNode { node, enabled } => self.enable(*node, *enabled).await,
            Operation::ExcludeNode { node, excluded } => {
                self.label(*node, EXCLUDE, excluded.then_some("")).await
            }
            Operation::PoolNode { node, pool } => {
                self.label(*node, POOL, pool.map(Pool::as_str)).await
            }
            Operation::Listen {
                node,
                at,
                protocol,
                port,
            } => self.listen(*node, *at, *protocol, *port),
            Operation::StopListening {
                node,
                protocol,
                port,
            } => self.stop_listening(&listener(*node, *protocol, *port)),
            Operation::SecondAddress { node, there } => self.second_address(*node, *there),
            Operation::ExternalAddress { node, named } => self.name_address(*node, *named).await,
            _ => self.break_something(operation).await,
        }
    }

    async fn break_something(&mut self, operation: &Operation) -> Result<()> {
        match operation {
            Operation::KillAgent { node } => crash(&self.agent(*node)?),
            Operation::FreezeAgent { node } => self.agent(*node)?.unit().signal(Signal::SIGSTOP),
            Operation::ThawAgent { node } => self.agent(*node)?.unit().signal(Signal::SIGCONT),
            Operation::KillController { number } => crash(&self.controller(*number)?),
            Operation::FreezeController { number } => {
                // One goes on, or nobody writes what the checker waits for.
                let other = self.controller(3 - *number)?;
                other.unit().signal(Signal::SIGCONT)?;
                self.controller(*number)?.unit().signal(Signal::SIGSTOP)
            }
            Operation::ThawController { number } => {
                self.controller(*number)?.unit().signal(Signal::SIGCONT)
            }
            Operation::KillProxy { node } => self.kill_proxy(*node),
            Operation::ProxyMode { node, nftables } => {
                // A cluster of one mode stays so.
                if self.cluster.config().proxy_modes != ProxyModes::Mixed {
                    return Ok(());
                }
                self.proxy_mode(
                    *node,
                    match nftables {
                        true => ProxyMode::Nftables,
                        false => ProxyMode::Iptables,
                    },
                )
            }
            Operation::FlushRuleset { node } => {
                self.node(*node)?
                    .netns()
                    .check(&["nft", "flush", "ruleset"])?;
                self.kill_proxy(*node)
            }
            Operation::DeleteTable { node } => self.nft(*node, "delete table inet highwire"),
            Operation::DeleteElement {
                node,
                protocol,
                port,
            } => self.element(*node, "delete", *protocol, *port),
            Operation::AddElement {
                node,
                protocol,
                port,
            } => self.element(*node, "add", *protocol, *port),
            Operation::CutOff { nodes, seconds } => {
                for node in nodes {
                    self.cable(*node, "down")?;
                }
                tokio::time::sleep(Duration::from_secs(u64::from(*seconds))).await;
                for node in nodes {
                    self.cable(*node, "up")?;
                }
                Ok(())
            }
            Operation::FailApi {
                client,
                fault,
                resource,
            } => {
                self.networks.set(*client, *fault, resource, self.version);
                Ok(())
            }
            Operation::MendApi => {
                self.networks.clear(ApiClient::All);
                Ok(())
            }
            Operation::Pause { seconds } => {
                tokio::time::sleep(Duration::from_secs(u64::from(*seconds))).await;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn label(&self, node: u8, label: &str, value: Option<&str>) -> Result<()> {
        self.cluster
            .label_node(&format!("n{node}"), label, value)
            .await
    }

    async fn put_pod(&mut self, slot: u8, node: u8, kind: PodKind) -> Result<()> {
        self.delete_pod(slot).await?;
        let pod = self.scope.pod(&format!("p{slot}")).on(&format!("n{node}"));
        let pod = pod.label("set", set(slot));
        let pod = match kind {
            PodKind::Web => pod.label("app", "web").tcp(8080).udp(5353),
            PodKind::Edge(port) => pod.label("app", "edge").tcp(port).host_network(),
            PodKind::HostPort(port) => pod.label("app", "edge").tcp(port).host_port(),
        };
        match pod.start().await {
            Ok(pod) => drop(self.pods.insert(slot, pod)),
            // The port may be taken on the node.
            Err(error) if matches!(kind, PodKind::Edge(_)) => {
                let text = format!("{error:#}");
                println!("    (no Pod: {})", text.lines().next().unwrap_or_default());
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn delete_pod(&mut self, slot: u8) -> Result<()> {
        match self.pods.remove(&slot) {
            Some(pod) => pod.delete(&self.cluster).await,
            None => Ok(()),
        }
    }

    /// As the DaemonSet does: the agent starts with the label, and ends after it.
    async fn enable(&mut self, node: u8, enabled: bool) -> Result<()> {
        let (agent, name) = (self.agent(node)?, format!("n{node}"));
        if enabled {
            self.cluster.opt_in(&name).await?;
            if !agent.is_running() {
                agent.start(&[]).await?;
            }
            return Ok(());
        }
        self.cluster.opt_out(&name).await?;
        // One that is frozen would be killed, and one that cannot ask why it has to end keeps
        // its rules: the table would stay.
        self.networks.clear(ApiClient::Agent(node));
        agent.unit().signal(Signal::SIGCONT)?;
        agent.stop()
    }

    fn listen(&mut self, node: u8, at: Bind, protocol: Protocol, port: u16) -> Result<()> {
        let name = listener(node, protocol, port);
        self.stop_listening(&name)?;
        let echo = self.cluster.config().tools.join("highwire-echo");
        let protocol = protocol.as_str().to_lowercase();
        let mut argv = vec![
            echo.display().to_string(),
            format!("--name={name}"),
            format!("--{protocol}={port}"),
        ];
        argv.extend(match at {
            Bind::All => None,
            Bind::V4 => Some("--address=0.0.0.0".to_owned()),
            Bind::Loopback => Some("--address=127.0.0.1".to_owned()),
        });
        let spec = Spec::new(name.clone(), self.node(node)?.netns(), argv);
        Unit::spawn(self.cluster.state(), spec)?;
        self.listeners.insert(name);
        Ok(())
    }

    fn stop_listening(&mut self, name: &str) -> Result<()> {
        match self.listeners.remove(name) {
            true => self.cluster.unit(name).remove(),
            false => Ok(()),
        }
    }

    fn second_address(&self, node: u8, there: bool) -> Result<()> {
        let verb = if there { "replace" } else { "del" };
        let [v4, v6] = second(node);
        let lines = format!("addr {verb} {v4}/24 dev eth0\naddr {verb} {v6}/64 dev eth0 nodad\n");
        // It may not be there.
        self.node(node)?
            .netns()
            .ip_batch(&lines)
            .or_else(|error| match there {
                true => Err(error),
                false => Ok(()),
            })
    }

    async fn name_address(&self, node: u8, named: bool) -> Result<()> {
        let of = self.node(node)?;
        let mut addresses: Vec<_> = of
            .addresses()
            .iter()
            .map(|address| json!({ "type": "InternalIP", "address": address }))
            .collect();
        if named {
            let [v4, _] = second(node);
            addresses.push(json!({ "type": "ExternalIP", "address": v4 }));
        }
        let patch = Patch::Merge(json!({ "status": { "addresses": addresses } }));
        let nodes: Api<NodeObject> = Api::all(self.cluster.client());
        let patched = nodes
            .patch_status(&of.name, &PatchParams::default(), &patch)
            .await;
        patched.map(drop).context("name a Node's addresses")
    }

    /// Starts the node's kube-proxy in that mode, if it is in another.
    fn proxy_mode(&mut self, node: u8, mode: ProxyMode) -> Result<()> {
        if self.modes.get(&node) == Some(&mode) {
            return Ok(());
        }
        lifecycle::change_proxy_mode(&self.cluster, &self.node(node)?, mode, None)?;
        self.modes.insert(node, mode);
        Ok(())
    }

    fn kill_proxy(&self, node: u8) -> Result<()> {
        if !self.cluster.config().proxy_modes.has_any() {
            return Ok(());
        }
        let proxy = self.cluster.unit(&format!("kube-proxy-n{node}"));
        proxy.kill()?;
        proxy.start_again()
    }

    /// What is not there to be changed is not.
    fn nft(&self, node: u8, command: &str) -> Result<()> {
        let changed = self.node(node)?.netns().check(&["nft", command]);
        if changed.is_err() {
            println!("    (not there)");
        }
        Ok(())
    }

    fn element(&self, node: u8, verb: &str, protocol: Protocol, port: u16) -> Result<()> {
        let protocol = protocol.as_str().to_lowercase();
        let element = format!("{{ {protocol} . {port} }}");
        self.nft(
            node,
            &format!("{verb} element inet highwire ports4 {element}"),
        )?;
        if verb == "delete" {
            self.nft(
                node,
                &format!("delete element inet highwire clusterip6 {element}"),
            )?;
        }
        Ok(())
    }

    fn cable(&self, node: u8, state: &str) -> Result<()> {
        self.cluster
            .netns("fabric")?
            .ip_batch(&format!("link set n{node} {state}"))
    }
}

/// The process dies, and a new one takes its place.
fn crash(program: &Program) -> Result<()> {
    if !program.is_running() {
        return Ok(());
    }
    program.kill()?;
    program.unit().start_again()
}

fn listener(node: u8, protocol: Protocol, port: u16) -> String {
    format!("host-n{node}-{}-{port}", protocol.as_str().to_lowercase())
}

/// The second addresses of a node.
fn second(node: u8) -> [String; 2] {
    [
        format!("192.0.2.{}", 100 + node),
        format!("2001:db8:1::{}", 100 + u16::from(node)),
    ]
}
